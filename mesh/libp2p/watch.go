package libp2p

import (
	"slices"
	"strings"
	"sync"

	"github.com/beammesh/beammesh/mesh"
)

// maxPending is when a slow watcher's queue is folded: per member only its last
// two events stay, so the queue is bounded by the size of the table.
const maxPending = 2 * maxMembers

// watcher is one Watch call: a queue and the goroutine that empties it.
type watcher struct {
	wake chan struct{} // capacity 1
	stop chan struct{}
	once sync.Once

	mu    sync.Mutex
	queue []mesh.Event
}

// watch starts with an Up for every connected member, in order of id.
func (t *table) watch(fn func(mesh.Event)) (cancel func()) {
	w := &watcher{wake: make(chan struct{}, 1), stop: make(chan struct{})}
	t.mu.Lock()
	for _, r := range t.rows {
		if r.m.Connected {
			w.queue = append(w.queue, mesh.Event{Type: mesh.MemberUp, Member: clone(r.m)})
		}
	}
	slices.SortFunc(w.queue, func(a, b mesh.Event) int { return strings.Compare(string(a.Member.ID), string(b.Member.ID)) })
	if t.closed {
		t.mu.Unlock()
		return func() {}
	}
	t.watchers[w] = struct{}{}
	t.mu.Unlock()
	w.wake <- struct{}{}
	go w.run(fn)
	return func() {
		t.mu.Lock()
		delete(t.watchers, w)
		t.mu.Unlock()
		w.end()
	}
}

func (t *table) emitLocked(e mesh.Event) {
	for w := range t.watchers {
		w.push(e)
	}
}

// close ends all watchers after what is queued now was delivered or dropped.
func (t *table) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for w := range t.watchers {
		w.end()
	}
	clear(t.watchers)
}

func (w *watcher) end() { w.once.Do(func() { close(w.stop) }) }

func (w *watcher) push(e mesh.Event) {
	w.mu.Lock()
	w.queue = append(w.queue, e)
	if len(w.queue) > maxPending {
		w.queue = fold(w.queue)
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// fold keeps the last two events of each member, in their order.
func fold(q []mesh.Event) []mesh.Event {
	n := map[mesh.PeerID]int{}
	out := make([]mesh.Event, 0, len(q)/2)
	for _, e := range slices.Backward(q) {
		if n[e.Member.ID]++; n[e.Member.ID] <= 2 {
			out = append(out, e)
		}
	}
	slices.Reverse(out)
	return out
}

func (w *watcher) run(fn func(mesh.Event)) {
	for {
		select {
		case <-w.stop:
			return
		case <-w.wake:
		}
		for {
			w.mu.Lock()
			if len(w.queue) == 0 {
				w.mu.Unlock()
				break
			}
			e := w.queue[0]
			w.queue = w.queue[1:]
			w.mu.Unlock()
			select {
			case <-w.stop:
				return
			default:
			}
			fn(e)
		}
	}
}

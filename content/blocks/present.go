package blocks

import (
	"sync"

	"github.com/beammesh/beammesh/content"
)

// present remembers sizes of blocks that are on disk. It keeps at most max
// entries: two generations of max/2, of which the older is dropped whole when
// the younger is full. What it does not know costs one stat.
type present struct {
	max int

	mu         sync.Mutex
	young, old map[key]uint32
}

func (p *present) size(k key) (int, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n, ok := p.young[k]; ok {
		return int(n), true
	}
	n, ok := p.old[k]
	if ok {
		p.addLocked(k, n)
	}
	return int(n), ok
}

func (p *present) add(k key, size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addLocked(k, uint32(size))
}

func (p *present) addLocked(k key, size uint32) {
	if p.young == nil || len(p.young) >= max(p.max/2, 1) {
		p.old, p.young = p.young, make(map[key]uint32)
	}
	p.young[k] = size
}

func (p *present) drop(k key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.young, k)
	delete(p.old, k)
}

// maxTouched bounds the memory of touched: 1 Mi digests, about 50 MiB. Above
// it the collector frees nothing until the holds are over.
const maxTouched = 1 << 20

// touched is the set of blocks that were put or asked for while somebody holds
// the collector away or while it runs.
type touched struct {
	mu      sync.Mutex
	holds   int
	running bool // the collector
	full    bool
	set     map[key]struct{}
}

// hold starts a hold; the function ends it, once.
func (t *touched) hold() func() {
	t.mu.Lock()
	t.holds++
	t.mu.Unlock()
	return sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.holds--
		t.resetLocked()
	})
}

// collect marks the start of a collection; the function marks its end. What was
// touched before a hold ended stays in the set until the collection is over.
func (t *touched) collect() func() {
	t.mu.Lock()
	t.running = true
	t.mu.Unlock()
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.running = false
		t.resetLocked()
	}
}

func (t *touched) resetLocked() {
	if t.holds == 0 && !t.running {
		t.set, t.full = nil, false
	}
}

// add records k. It is called with k's stripe held, so that a removal under the
// same stripe sees it.
func (t *touched) add(k key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.holds == 0 && !t.running {
		return
	}
	if t.set == nil {
		t.set = make(map[key]struct{})
	}
	if len(t.set) >= maxTouched {
		t.full = true
		return
	}
	t.set[k] = struct{}{}
}

// has is true when k must stay.
func (t *touched) has(k key) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.set[k]
	return ok || t.full
}

// Hold keeps the collector away from all blocks put or asked for until release.
func (s *Store) Hold() (release func()) { return s.live.hold() }

var _ content.Holder = (*Store)(nil)

package replicas

import (
	"fmt"
	"slices"
	"time"
)

// tb is what a *testing.T and a *rapid.T have in common.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
}

// world plays the shell and the containers of a pool in virtual time: a
// container runs Concurrency calls in the order they arrive.
type world struct {
	deep     bool // calls may be short enough for the deep window
	t        tb
	p        *Pool
	now      time.Duration
	rtt      time.Duration // half of it each way
	start    time.Duration // of a container
	length   func(CallID) time.Duration
	speed    func(node string) int64 // percent; nil = 100
	nodeOf   func(n int) string      // of the n-th container
	conc     int
	queue    []pending
	seq      int
	started  int
	boxes    map[ReplicaID]*box
	finished map[CallID]Finished
	ranOn    map[CallID]string // node that gave the accepted result
	begins   map[CallID]int
	asked    int // Acquire - Unacquire - ready
	peak     int
	retries  []Retrying
	log      []string
	noStart  bool // Acquire is not answered
}

type pending struct {
	at  time.Duration
	seq int
	do  func()
}

// box is a container: what runs and what stands in line.
type box struct {
	id      ReplicaID
	node    string
	line    []job
	running []job
}

type job struct {
	call    CallID
	attempt int
	token   int
}

func newWorld(t tb, cfg Config) *world {
	return &world{
		t: t, p: New(cfg), rtt: time.Millisecond, start: time.Second, conc: max(1, cfg.Concurrency),
		length:   func(CallID) time.Duration { return 50 * time.Millisecond },
		nodeOf:   func(n int) string { return fmt.Sprintf("box%d", n%3+1) },
		boxes:    map[ReplicaID]*box{},
		finished: map[CallID]Finished{}, ranOn: map[CallID]string{}, begins: map[CallID]int{},
	}
}

func (w *world) after(d time.Duration, do func()) {
	w.seq++
	e := pending{w.now + d, w.seq, do}
	i, _ := slices.BinarySearchFunc(w.queue, e, func(a, b pending) int {
		if a.at != b.at {
			return int(a.at - b.at)
		}
		return a.seq - b.seq
	})
	w.queue = slices.Insert(w.queue, i, e)
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	end := w.now + d
	for {
		at, ok := w.p.NextWake()
		switch {
		case ok && at <= end && (len(w.queue) == 0 || at <= w.queue[0].at):
			w.now = max(w.now, at)
			w.step(Tick{})
		case len(w.queue) > 0 && w.queue[0].at <= end:
			e := w.queue[0]
			w.queue = w.queue[1:]
			w.now = e.at
			e.do()
		default:
			w.now = end
			return
		}
	}
}

func (w *world) step(ev Event) {
	w.t.Helper()
	for _, a := range slices.Clone(w.p.Step(w.now, ev)) {
		w.log = append(w.log, fmt.Sprintf("%T%+v", a, a))
		switch a := a.(type) {
		case Acquire:
			w.asked += a.N
			for range a.N {
				if w.noStart {
					break
				}
				w.started++
				id := ReplicaID(fmt.Sprintf("c%d", w.started))
				node := w.nodeOf(w.started - 1)
				w.after(w.start, func() { w.ready(id, node) })
			}
		case Unacquire:
			w.asked -= a.N
		case ReleaseReplica:
			delete(w.boxes, a.Replica)
		case Dispatch:
			b := w.boxes[a.Replica]
			if b == nil {
				w.t.Fatalf("call %s was sent to %s, which is not there", a.Call, a.Replica)
			}
			j := job{a.Call, a.Attempt, 0}
			w.after(w.rtt/2, func() {
				if w.boxes[b.id] == b {
					b.line = append(b.line, j)
					w.fill(b)
				}
			})
		case Recall:
			w.after(w.rtt/2, func() {
				b := w.boxes[a.Replica]
				given := false
				if b != nil {
					n := len(b.line)
					b.line = slices.DeleteFunc(b.line, func(j job) bool { return j.call == a.Call && j.attempt == a.Attempt })
					given = len(b.line) < n
				}
				w.after(w.rtt/2, func() { w.step(Recalled{a.Replica, a.Call, a.Attempt, given}) })
			})
		case StopCall:
			w.after(w.rtt/2, func() { w.end(a.Replica, a.Call, a.Attempt, &Failure{Kind: a.Kind}) })
		case Finished:
			if _, twice := w.finished[a.Call]; twice {
				w.t.Fatalf("call %s finished twice", a.Call)
			}
			w.finished[a.Call] = a
			if b := w.boxes[a.Replica]; b != nil && a.Failure == nil {
				w.ranOn[a.Call] = b.node
			}
		case Retrying:
			w.retries = append(w.retries, a)
		}
	}
	w.check()
}

// check looks at what must hold after every step.
func (w *world) check() {
	for _, r := range w.p.order {
		most := w.p.cfg.Concurrency + w.p.cfg.Window
		if w.deep {
			most = w.p.cfg.Concurrency + deepest*w.p.cfg.Window
		}
		if n := len(r.slots); n > most {
			w.t.Fatalf("%s has %d calls", r.id, n)
		}
	}
	if n := w.p.live + len(w.p.asked); n > w.peak {
		w.peak = n
	}
}

func (w *world) ready(id ReplicaID, node string) {
	w.asked--
	if w.boxes[id] == nil {
		w.boxes[id] = &box{id: id, node: node}
	}
	w.step(ReplicaReady{Replica: id, Node: node, Took: w.start})
}

// fill begins the next calls of a container.
func (w *world) fill(b *box) {
	for len(b.running) < w.conc && len(b.line) > 0 {
		j := b.line[0]
		b.line = b.line[1:]
		w.seq++
		j.token = w.seq
		b.running = append(b.running, j)
		w.begins[j.call]++
		d := w.length(j.call)
		if w.speed != nil {
			d = d * 100 / time.Duration(w.speed(b.node))
		}
		w.after(w.rtt/2, func() { w.step(Begun{b.id, j.call, j.attempt}) })
		w.after(d, func() {
			if w.boxes[b.id] == b && slices.Contains(b.running, j) {
				w.end(b.id, j.call, j.attempt, nil)
			}
		})
	}
}

// end takes a call off a container and reports it.
func (w *world) end(id ReplicaID, call CallID, attempt int, f *Failure) {
	b := w.boxes[id]
	if b == nil {
		return
	}
	is := func(j job) bool { return j.call == call && j.attempt == attempt }
	n := len(b.running) + len(b.line)
	b.running = slices.DeleteFunc(b.running, is)
	b.line = slices.DeleteFunc(b.line, is)
	if len(b.running)+len(b.line) == n {
		return
	}
	w.after(w.rtt/2, func() { w.step(Result{id, call, attempt, f}) })
	w.fill(b)
}

// lose takes a container away; node tells a lost node from a crash.
func (w *world) lose(id ReplicaID, node bool) {
	delete(w.boxes, id)
	w.step(ReplicaLost{Replica: id, NodeLost: node, Failure: Failure{Kind: FailCrash, Text: "exit status 1"}})
}

func (w *world) submit(n int, prefix string) {
	for i := range n {
		w.step(Submit{Call{ID: CallID(fmt.Sprintf("%s%d", prefix, i))}})
	}
}

// share counts the accepted results by node.
func (w *world) share() map[string]int {
	m := map[string]int{}
	for _, n := range w.ranOn {
		m[n]++
	}
	return m
}

package replicas

import (
	"cmp"
	"slices"
	"time"
)

// Pool is the machine of one stub. See the package comment.
//
// A call goes
//
//	queued --Dispatch--> sent --Begun--> running --Result--> finished
//	  ^                   |                 |
//	  +-----Recalled------+---lost, retry---+
//
// and a container
//
//	asked for --ReplicaReady--> idle <--> busy --drained, idle too long--> released
type Pool struct {
	cfg    Config
	calls  map[CallID]*call // alive: queued, sent or running
	again  []*call          // queued for another time, by submission
	fresh  []*call          // queued for the first time, in order
	queued int              // in both, without those cancelled in fresh
	seq    uint64

	byID  map[ReplicaID]*replica
	order []*replica // by readiness, draining included
	idle  []*replica // nothing to do, by how long, the longest first
	live  int        // not draining
	sent  int        // slots taken on live replicas
	timers

	asked     []time.Duration // when each container was asked for that did not come yet
	askAfter  time.Duration   // not before, after a failure
	backoff   time.Duration
	badStarts int           // containers in a row that ended before any call did
	mean      time.Duration // of a call
	start     time.Duration // of a container
	lastBegun time.Duration
	begun     int // running calls
	growAt    time.Duration
	recallAt  time.Duration
	closed    bool
	out       []Action
}

type call struct {
	Call
	seq      uint64
	attempt  int   // of the last Dispatch
	slot     *slot // nil = queued
	fresh    bool  // in Pool.fresh
	over     bool
	retries  int // used
	losses   int
	deadline timer
}

type replica struct {
	id        ReplicaID
	node      string
	slots     []*slot // in the order of Dispatch
	idleSince time.Duration
	mean      time.Duration // of its calls
	finished  int
	draining  bool
	gone      bool
}

// slot is a call on a container. call is nil when it was stopped and only its
// end is awaited.
type slot struct {
	r       *replica
	call    *call
	id      CallID
	attempt int
	sentAt  time.Duration
	begun   bool
	begunAt time.Duration
	recall  bool // asked back
	resumed bool // sent in an earlier life, which may have heard Begun
	timer   timer
}

func (c Config) withDefaults() Config {
	def(&c.Max, 1)
	def(&c.Concurrency, 1)
	switch {
	case c.Window == 0:
		c.Window = 1
	case c.Window < 0:
		c.Window = 0
	}
	c.Window = min(c.Window, 4)
	def(&c.WindowBelow, 250*time.Millisecond)
	def(&c.MaxQueue, 100_000)
	def(&c.MaxNodeLosses, 5)
	def(&c.StartHint, 3*time.Second)
	def(&c.Unknown, 4)
	def(&c.CancelWait, 15*time.Second)
	def(&c.AcquireBackoff, time.Second)
	c.Min = max(0, min(c.Min, c.Max))
	return c
}

func def[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// New makes an empty pool.
func New(cfg Config) *Pool {
	cfg = cfg.withDefaults()
	return &Pool{
		cfg: cfg, calls: map[CallID]*call{}, byID: map[ReplicaID]*replica{},
		mean: cfg.CallHint, start: cfg.StartHint, backoff: cfg.AcquireBackoff,
	}
}

// Step takes one event and returns what the shell has to do, in order. The
// slice is valid until the next Step.
func (p *Pool) Step(now time.Duration, ev Event) []Action {
	clear(p.out)
	p.out = p.out[:0]
	p.due(now)
	var freed *replica // where a slot may have become free
	switch e := ev.(type) {
	case Submit:
		p.submit(now, e.Call)
	case Resume:
		p.resume(now, e)
	case Cancel:
		p.cancel(now, e)
	case ReplicaReady:
		freed = p.ready(now, e)
	case AcquireFailed:
		p.acquireFailed(now, e)
	case ReplicaLost:
		p.lost(now, e)
	case ReplicaDraining:
		p.drain(now, e.Replica)
	case Begun:
		p.beginCall(now, e)
	case Result:
		freed = p.result(now, e)
	case Recalled:
		freed = p.recalled(now, e)
	case SetLimits:
		p.cfg.Max = max(1, e.Max)
		p.cfg.Min = max(0, min(e.Min, p.cfg.Max))
		p.cfg.KeepWarm = e.KeepWarm
	case Close:
		p.close(now, e.Reason)
	case Tick:
	}
	p.pump(now, freed)
	p.recallSent(now)
	p.scale(now)
	return p.out
}

func (p *Pool) emit(a Action) { p.out = append(p.out, a) }

// due does what the clock asks for.
func (p *Pool) due(now time.Duration) {
	for len(p.heap) > 0 && p.heap[0].at <= now {
		t := p.heap[0]
		p.stop(t)
		switch {
		case t.c != nil:
			if s := t.c.slot; s != nil { // sent, but it stands behind others
				p.stopSlot(now, s, FailExpired)
			}
			p.finish(t.c, "", &Failure{Kind: FailExpired, Text: "not begun before its deadline"})
		case t.s.call == nil:
			p.drop(now, t.s.r, "did not give up a call in "+p.cfg.CancelWait.String())
		default:
			c := t.s.call
			p.stopSlot(now, t.s, FailTimeout)
			p.fail(now, c, t.s.r.id, Failure{Kind: FailTimeout, Text: "ran longer than " + c.Timeout.String()})
		}
	}
}

// NextWake is when a Tick is due; ok is false when none is.
func (p *Pool) NextWake() (at time.Duration, ok bool) {
	soonest := func(t time.Duration) {
		if !ok || t < at {
			at, ok = t, true
		}
	}
	if len(p.heap) > 0 {
		soonest(p.heap[0].at)
	}
	if p.closed {
		return at, ok
	}
	if len(p.idle) > 0 && p.cfg.KeepWarm >= 0 && p.live > p.cfg.Min {
		soonest(p.idle[0].idleSince + p.cfg.KeepWarm)
	}
	if p.live+len(p.asked) < p.cfg.Min {
		soonest(p.askAfter) // a new pool starts with this
	}
	if p.growAt > 0 {
		soonest(p.growAt)
	}
	if p.recallAt > 0 {
		soonest(p.recallAt)
	}
	return at, ok
}

// Starting is Stats.Starting alone, at no cost.
func (p *Pool) Starting() int { return len(p.asked) }

// Stats is a snapshot.
func (p *Pool) Stats() Stats {
	s := Stats{
		Queued: p.queued, Running: p.begun, Starting: len(p.asked), Replicas: len(p.order),
		Idle: len(p.idle), CallMean: p.mean, Start: p.start,
	}
	for _, c := range p.calls {
		if c.slot != nil && !c.slot.begun {
			s.Sent++
		}
	}
	return s
}

// ReplicaState is one line of Pool.Replicas.
type ReplicaState struct {
	Replica  ReplicaID
	Node     string
	Running  int
	Sent     int // not begun
	Finished int
	CallMean time.Duration
	Draining bool
}

// Replicas lists the containers, the oldest first.
func (p *Pool) Replicas() []ReplicaState {
	out := make([]ReplicaState, 0, len(p.order))
	for _, r := range p.order {
		s := ReplicaState{Replica: r.id, Node: r.node, Finished: r.finished, CallMean: r.mean, Draining: r.draining}
		for _, x := range r.slots {
			if x.begun {
				s.Running++
			} else {
				s.Sent++
			}
		}
		out = append(out, s)
	}
	return out
}

// close ends everything.
func (p *Pool) close(now time.Duration, reason string) {
	p.closed = true
	all := make([]*call, 0, len(p.calls))
	for _, c := range p.calls {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *call) int { return cmp.Compare(a.seq, b.seq) })
	for _, c := range all {
		p.cancel(now, Cancel{c.ID, reason})
	}
	for _, r := range slices.Clone(p.order) {
		p.drop(now, r, reason)
	}
	p.unask(len(p.asked))
	p.growAt, p.recallAt = 0, 0
}

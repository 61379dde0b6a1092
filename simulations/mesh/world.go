package mesh

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/simulations"
)

// Config of a World. All of it decides what happens, but for Threads and
// Progress.
type Config struct {
	Seed  uint64
	Nodes []scheduler.Capacity // with their zones
	// Tasks by owner; their number is the number of owners.
	Tasks [][]Task
	Kinds []scheduler.Demand // what Task.Kind stands for

	Latency time.Duration // one way within a zone; also the length of a tick
	Far     time.Duration // between zones; at least Latency
	Jitter  time.Duration // added to both, uniform
	LossPPM int           // messages lost of a million

	GossipEvery time.Duration // a node's advert, when it changed
	// Discovery is how long a lookup in the directory takes.
	Discovery time.Duration
	Start     time.Duration // of a container
	// Detect is how long after a node's death its connections break; 0 = they never
	// do, and only leases that expire tell.
	Detect time.Duration
	// TakeOver is how long after an owner's death another host goes on from its
	// journal.
	TakeOver time.Duration

	Owner  market.OwnerConfig  // template: ID, Wire, Packing are filled in
	Worker market.WorkerConfig // template: Node, Boot, Capacity, Wire, Packing are filled in

	// Mix is what fragmentation is measured by from the start; nil = what the
	// owners see, told to each other every MixEvery.
	Mix      *scheduler.Mix
	MixEvery time.Duration
	NoMix    bool // do without

	// Keep makes tasks that find no room wait; else they are given up, Patience
	// after they came.
	Keep     bool
	Patience time.Duration

	Faults []Fault
	// Check looks into the books of every worker each time it gossips, and at the
	// end.
	Check bool

	Threads  int // 1 at least; the result does not depend on it
	Progress func(done, total int64)
}

// Fault is something that breaks.
type Fault struct {
	At    time.Duration
	Node  int           // index into Config.Nodes, or -1
	Owner int           // index into Config.Tasks when Node is -1
	Back  time.Duration // until a node comes back; 0 = never
}

// Task is one container that somebody wants.
type Task struct {
	At   time.Duration
	Run  time.Duration // once it has started; negative = for ever
	Kind int32         // index into Config.Kinds

	// What became of it.
	State    TaskState
	Accepted uint8 // ends that counted; more than one is a broken promise
	Attempts uint16
	Node     int32         // where it ran last; -1 = nowhere yet
	Placed   time.Duration // when it was placed first
	Ended    time.Duration // when its end was accepted, or it was refused
	lostAt   time.Duration // when its node died; 0 = it did not
	epoch    uint16        // of its owner when it was placed
}

// TaskState is how far a task has come.
type TaskState uint8

// The states of a task.
const (
	Pending TaskState = iota // not arrived, or its owner looks for a place
	Waiting                  // an open offer
	Running                  // placed
	Done                     // its end was accepted
	GivenUp                  // there was no room, and the world does not keep it
	Refused                  // no node could ever take it
)

// World is one simulated mesh.
type World struct {
	cfg    Config
	nodes  []node
	owners []owner
	seqs   []uint32 // by actor: what it has sent
	parts  []part
	events uint64 // handled before this tick
	topics []topic
	recent scheduler.Recent
	mixes  int
	total  int64         // tasks
	calm   time.Duration // after the last fault
	now    time.Duration // of the tick handled last
}

// New makes a world at time 0. Every owner knows the nodes that it listens to.
func New(cfg Config) (*World, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	w := &World{cfg: cfg, nodes: make([]node, len(cfg.Nodes)), owners: make([]owner, len(cfg.Tasks))}
	w.seqs = make([]uint32, len(w.nodes)+len(w.owners)+1)
	w.parts = make([]part, max(1, min(cfg.Threads, 16, len(w.nodes))))
	for i := range w.parts {
		p := &w.parts[i]
		p.w, p.index, p.out = w, i, make([][]event, len(w.parts))
		p.wheel.tick = int64(cfg.Latency)
		p.stats = newStats()
		if cfg.Mix != nil {
			p.packing.SetMix(cfg.Mix)
		}
	}
	for i := range w.nodes {
		w.nodes[i].init(w, int32(i))
	}
	for i := range w.owners {
		w.owners[i].init(w, int32(i))
		w.total += int64(len(cfg.Tasks[i]))
	}
	w.makeTopics()
	for i := range w.owners {
		w.greet(&w.owners[i])
	}
	for i := range w.nodes {
		w.nodes[i].startGossip(w)
	}
	w.plan()
	return w, nil
}

func (c *Config) check() error {
	if len(c.Nodes) == 0 {
		return fmt.Errorf("a mesh needs nodes: set nodes to 1 or more")
	}
	if len(c.Tasks) == 0 {
		return fmt.Errorf("a mesh needs an owner: set owners to 1 or more")
	}
	if c.Latency < time.Microsecond || c.Far != 0 && c.Far < c.Latency || c.Jitter < 0 {
		return fmt.Errorf("latency %v, far %v, jitter %v: want latency of 1us or more, far not below it", c.Latency, c.Far, c.Jitter)
	}
	if len(c.Nodes) > 1<<24 || len(c.Tasks) > 1<<20 {
		return fmt.Errorf("%d nodes and %d owners are too many: at most %d and %d", len(c.Nodes), len(c.Tasks), 1<<24, 1<<20)
	}
	return nil
}

// partOf is who handles an actor. Neighbours are together, an owner is with the
// nodes of its zone.
func (w *World) partOf(actor int32) *part {
	n := len(w.nodes)
	if int(actor) >= n {
		return &w.parts[(int(actor)-n)*len(w.parts)/len(w.owners)]
	}
	return &w.parts[int(actor)*len(w.parts)/n]
}

// plan schedules what comes from outside.
func (w *World) plan() {
	outside := int32(len(w.seqs) - 1)
	push := func(to int32, at time.Duration, k kind) {
		w.seqs[outside]++
		p := w.partOf(to)
		p.wheel.push(&event{at: max(int64(at), p.wheel.tick), from: -1, to: to, seq: w.seqs[outside], kind: k})
	}
	for _, f := range w.cfg.Faults {
		w.calm = max(w.calm, f.At+max(f.Back, w.cfg.TakeOver)+1)
		switch {
		case f.Node >= 0:
			w.nodes[f.Node].diesAt = f.At
			push(int32(f.Node), f.At, kill)
			if f.Back > 0 {
				push(int32(f.Node), f.At+f.Back, restart)
			}
		default:
			push(int32(len(w.nodes)+f.Owner), f.At, kill)
			push(int32(len(w.nodes)+f.Owner), f.At+w.cfg.TakeOver, takeOver)
		}
	}
	for i := range w.owners {
		if o := &w.owners[i]; len(o.tasks) > 0 {
			push(o.actor, o.tasks[0].At, arrive)
		}
	}
}

// Run lets the world go on until nothing happens any more, or until end.
func (w *World) Run(ctx context.Context, end time.Duration) error {
	last := int64(end) / int64(w.cfg.Latency)
	var ticks, shown uint64
	mixAt := w.nextMix(0)
	crew := newCrew(w.parts)
	defer crew.stop()
	for {
		tick, some := int64(0), false
		for i := range w.parts {
			if t, ok := w.parts[i].wheel.next(); ok && (!some || t < tick) {
				tick, some = t, true
			}
		}
		if !some || tick > last {
			return w.checkAll()
		}
		w.now = time.Duration(tick * int64(w.cfg.Latency))
		if mixAt > 0 && w.now >= mixAt {
			w.tellMix(w.now)
			mixAt = w.nextMix(w.now)
		}
		crew.run(tick)
		var broken *part
		w.events = 0
		for i := range w.parts {
			p := &w.parts[i]
			w.events += p.done
			if p.err != nil && (broken == nil || before(&p.errAt, &broken.errAt)) {
				broken = p
			}
		}
		if broken != nil {
			return broken.err
		}
		if w.settled() == w.total && w.now >= w.calm {
			return w.checkAll()
		}
		if ticks++; ticks%256 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			if w.cfg.Progress != nil && w.events-shown > 1<<20 {
				shown = w.events
				w.cfg.Progress(w.settled(), w.total)
			}
		}
	}
}

// checkAll looks into all books.
func (w *World) checkAll() error {
	for i := range w.nodes {
		n := &w.nodes[i]
		if n.worker == nil || !w.cfg.Check {
			continue
		}
		if what := overcommitted(n); what != "" {
			return &simulations.BrokenError{Seed: w.cfg.Seed, Event: w.events, At: w.now.String(), What: fmt.Sprintf("node %d granted more than it has: %s", i, what)}
		}
	}
	return nil
}

// settled is how many tasks are done, given up or refused.
func (w *World) settled() (n int64) {
	for i := range w.parts {
		n += w.parts[i].stats.Settled
	}
	return n
}

// crew runs the parts of a world side by side, tick by tick: each handles its
// events of the tick, and when all have, each takes what the others sent it.
// Since no message is faster than a tick, nobody misses anything.
type crew struct {
	parts []part
	start []chan int64
	phase sync.WaitGroup
	done  sync.WaitGroup
}

func newCrew(parts []part) *crew {
	c := &crew{parts: parts}
	for i := range parts[1:] {
		start := make(chan int64)
		c.start = append(c.start, start)
		c.done.Go(func() {
			for tick := range start {
				if tick >= 0 {
					parts[i+1].run(tick)
				} else {
					parts[i+1].exchange()
				}
				c.phase.Done()
			}
		})
	}
	return c
}

func (c *crew) run(tick int64) {
	c.each(tick, func(p *part) { p.run(tick) })
	if len(c.parts) > 1 {
		c.each(-1, func(p *part) { p.exchange() })
	}
}

func (c *crew) each(tick int64, mine func(*part)) {
	c.phase.Add(len(c.start))
	for _, start := range c.start {
		start <- tick
	}
	mine(&c.parts[0])
	c.phase.Wait()
}

func (c *crew) stop() {
	for _, start := range c.start {
		close(start)
	}
	c.done.Wait()
}

// tellMix is the owners telling each other what they saw. The world does it in
// one stroke for all.
func (w *World) tellMix(now time.Duration) {
	for i := range w.owners {
		if told := w.owners[i].recent.Take(); len(told) > 0 {
			w.recent.Merge(now, told)
		}
	}
	mix := w.recent.Mix()
	if mix.Weight() == 0 {
		return
	}
	for i := range w.parts {
		w.parts[i].packing.SetMix(mix)
	}
	w.mixes++
}

// nextMix is when the owners tell their mixes next; 0 = never. Each mix makes
// them score all nodes anew, so they do it less often as it settles: with each
// doubling of what they have seen, and every MixEvery in the end.
func (w *World) nextMix(now time.Duration) time.Duration {
	if w.cfg.NoMix || w.cfg.Mix != nil || w.cfg.MixEvery <= 0 {
		return 0
	}
	return now + min(max(now, w.cfg.MixEvery/64), w.cfg.MixEvery)
}

package market

import (
	"fmt"
	"slices"
	"time"

	"github.com/beammesh/beammesh/scheduler"
)

// Worker guards the resources of one node. See the package comment.
//
// A lease goes through
//
//	held --Award--> starting --LeaseReady--> running --LeaseDone--> gone
//	  \--HoldFor or Release--> free       \--Stop--> stopping --LeaseDone--> gone
//
// and its resources are taken from "held" on until "gone".
type Worker struct {
	cfg  WorkerConfig
	base scheduler.Capacity // the machine; CPU without overcommit
	cur  scheduler.Capacity // what Advert says
	seq  uint64
	// said are the devices as of saidSeq, in adverts that may be anywhere by now.
	said    []scheduler.Device
	saidSeq uint64

	leases map[LeaseID]*lease
	order  []*lease // by start
	holds  []*hold  // by time
	offers []*openOffer
	owners []*ownerSeen // by peer
	fences fenceTable
	ended  []*endedNote // not acknowledged yet

	drain    bool
	holdSeq  uint64
	shown    bool // somebody saw an advert in which another's hold counts as used
	gossip   bool // this Step must end in AdvertChanged
	out      []WorkerAction
	history  []decision // ring
	nHistory int
}

type lease struct {
	Award
	grant    scheduler.Grant
	ready    bool
	stopping EndReason
	since    time.Duration
	pulled   bool
}

type hold struct {
	id     string
	owner  OwnerID
	offer  OfferID // "" for a pull
	round  int
	shape  string // of a pull
	demand scheduler.Demand
	grant  scheduler.Grant
	until  time.Duration
}

type endedNote struct {
	msg   Ended
	sends int
	next  time.Duration
}

func (c WorkerConfig) withDefaults() WorkerConfig {
	def(&c.CPUOvercommit, 1)
	def(&c.HoldFor, 2*time.Second)
	def(&c.RenewEvery, 5*time.Second)
	def(&c.OwnerGap, time.Minute)
	def(&c.PullSpread, 50*time.Millisecond)
	def(&c.MaxLeases, 1024)
	def(&c.MaxHolds, 64)
	def(&c.MaxPulls, 4)
	def(&c.MaxOpenOffers, 256)
	def(&c.MaxFences, 4096)
	return c
}

// def sets a zero to its default.
func def[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// NewWorker makes a worker with nothing granted.
func NewWorker(cfg WorkerConfig) *Worker {
	w := &Worker{cfg: cfg.withDefaults(), leases: map[LeaseID]*lease{}}
	w.fences.limit = w.cfg.MaxFences
	w.base = cfg.Capacity.Clone()
	w.cur.HotRoots = hotRoots(cfg.Capacity.HotRoots)
	w.cfg.Capacity = scheduler.Capacity{} // base has it
	w.recount()
	return w
}

func hotRoots(roots []string) []string {
	return slices.Clone(roots[:min(len(roots), scheduler.MaxHotRoots)])
}

// recount computes what is free from the machine, the leases and the holds, in
// their order; nothing else ever adds to cur.Free. The amounts stay at or above
// zero when the machine has shrunk under running leases.
func (w *Worker) recount() {
	hot := w.cur.HotRoots
	devices := append(w.cur.Devices[:0], w.base.Devices...)
	w.cur = w.base
	w.cur.Devices, w.cur.HotRoots, w.cur.Draining = devices, hot, w.drain
	w.cur.Total.CPUMillis = w.base.Total.CPUMillis * w.cfg.CPUOvercommit
	disk := min(w.base.Free.DiskMiB, w.base.Total.DiskMiB)
	w.cur.Free = w.cur.Total
	w.cur.Free.DiskMiB = disk
	for i := range w.cur.Devices {
		w.cur.Devices[i].FreeMilli = scheduler.GPUExclusive
	}
	w.cur.Queue = 0
	for _, l := range w.order {
		if !l.ready {
			w.cur.Queue++
		}
		w.take(&l.Demand, &l.grant)
	}
	for _, h := range w.holds {
		w.take(&h.demand, &h.grant)
	}
	w.seq++
}

// take subtracts a grant. CPU counts as demanded: the grant may be clamped to
// the machine's cores while the overcommitted total is larger.
func (w *Worker) take(d *scheduler.Demand, g *scheduler.Grant) {
	c := &w.cur
	c.Free.CPUMillis = max(0, c.Free.CPUMillis-d.CPUMillis)
	c.Free.MemoryMiB = max(0, c.Free.MemoryMiB-g.MemoryMiB)
	c.Free.DiskMiB = max(0, c.Free.DiskMiB-g.DiskMiB)
	for i := range c.Devices {
		if slices.Contains(g.Devices, c.Devices[i].ID) {
			c.Devices[i].FreeMilli = max(0, c.Devices[i].FreeMilli-g.GPUMilli)
		}
	}
}

// allocate reserves d out of what is free; the caller adds the lease or hold
// that recount will find it by.
func (w *Worker) allocate(d *scheduler.Demand) (scheduler.Grant, bool) {
	g, ok := w.cfg.Packing.Allocate(d, &w.cur)
	if ok {
		g.CPUMillis = min(g.CPUMillis, w.base.Total.CPUMillis)
		w.seq++
	}
	return g, ok
}

// Advert is what this node would say of itself now. The slices may be kept but
// not written to. If it shows what is only held, an AdvertChanged follows when
// the hold is over.
func (w *Worker) Advert() scheduler.Advert {
	w.shown = w.shown || len(w.holds) > 0
	return w.advert()
}

// Capacity is the same for looking at, not for telling others.
func (w *Worker) Capacity() scheduler.Capacity { return w.cur.Clone() }

func (w *Worker) advert() scheduler.Advert {
	if w.saidSeq != w.seq {
		// The devices are all that ever changes in place.
		w.said, w.saidSeq = slices.Clone(w.cur.Devices), w.seq
	}
	a := scheduler.Advert{Node: w.cfg.Node, Name: w.cfg.Name, Boot: w.cfg.Boot, Seq: w.seq, Capacity: w.cur}
	a.Capacity.Devices = w.said
	return a
}

// advertTo is the advert that goes with an answer. When it shows what is held
// for others, the end of those holds must be told too.
func (w *Worker) advertTo(owner OwnerID) scheduler.Advert {
	for _, h := range w.holds {
		if h.owner.Peer != owner.Peer {
			w.shown = true
		}
	}
	return w.advert()
}

// Step takes one event and returns what the shell has to do, in order. The
// slice is valid until the next Step.
func (w *Worker) Step(now time.Duration, ev WorkerEvent) []WorkerAction {
	clear(w.out)
	w.out, w.gossip = w.out[:0], false
	w.expire(now)
	switch e := ev.(type) {
	case Ask:
		w.ask(now, &e)
	case *Ask:
		w.ask(now, e)
	case Award:
		w.award(now, &e)
	case *Award:
		w.award(now, e)
	case Release:
		w.release(now, &e)
	case *Release:
		w.release(now, e)
	case RenewAck:
		w.renewAck(now, &e)
	case *RenewAck:
		w.renewAck(now, e)
	case EndedAck:
		w.endedAck(&e)
	case *EndedAck:
		w.endedAck(e)
	case OpenOffer:
		w.openOffer(now, &e)
	case *OpenOffer:
		w.openOffer(now, e)
	case LeaseReady:
		if l := w.leases[e.Lease]; l != nil && !l.ready {
			l.ready = true
			w.recount()
		}
	case Restore:
		w.restore(now, e)
	case LeaseDone:
		w.leaseDone(now, e)
	case OwnerDown:
		w.ownerDown(e.Peer)
	case OwnerUp:
		w.ownerUp(now, e.Peer)
	case Drain:
		w.setDrain(now, e)
	case SetCapacity:
		w.setCapacity(now, e)
	case SetMix:
		w.setMix(e)
	case SetHotRoots:
		w.cur.HotRoots = hotRoots(e.Roots)
		w.seq++
		w.gossip = true
	case Tick:
	}
	w.pull(now)
	if w.gossip {
		w.shown = len(w.holds) > 0
		w.advertChanged()
	}
	return w.out
}

func (w *Worker) endedAck(e *EndedAck) {
	w.ended = slices.DeleteFunc(w.ended, func(n *endedNote) bool {
		return n.msg.Lease == e.Lease && n.msg.Owner.Peer == e.Owner.Peer
	})
}

func (w *Worker) emit(a WorkerAction) { w.out = append(w.out, a) }

// expire does what is due by now; it runs at the start of every Step, so that a
// late Tick changes nothing but the time.
func (w *Worker) expire(now time.Duration) {
	w.expireHolds(now)
	w.offers = slices.DeleteFunc(w.offers, func(o *openOffer) bool { return now >= o.expires && o.hold == "" })
	w.tendOwners(now)
	for _, n := range w.ended {
		if now >= n.next {
			w.sendEnded(&n.msg)
			n.sends++
			n.next = now + w.cfg.RenewEvery
		}
	}
	w.ended = slices.DeleteFunc(w.ended, func(n *endedNote) bool { return n.sends >= EndedRepeats })
}

// NextWake is when a Tick is due; ok is false when none is.
func (w *Worker) NextWake() (at time.Duration, ok bool) {
	soonest := func(t time.Duration) {
		if !ok || t < at {
			at, ok = t, true
		}
	}
	for _, h := range w.holds {
		soonest(h.until)
	}
	for _, n := range w.ended {
		soonest(n.next)
	}
	for _, s := range w.owners {
		if s.leases > 0 {
			soonest(s.nextRenew)
		}
		if s.attached > 0 {
			soonest(s.seen + w.cfg.OwnerGap)
		}
	}
	if w.pulls() < w.cfg.MaxPulls && len(w.holds) < w.cfg.MaxHolds {
		for _, o := range w.offers {
			if o.hold == "" && scheduler.FitOf(&o.msg.Demand, &w.cur) == scheduler.FitNow {
				soonest(o.ready)
			}
		}
	}
	return at, ok
}

func (w *Worker) setDrain(now time.Duration, e Drain) {
	if w.drain != e.On {
		w.drain = e.On
		w.recount()
		w.gossip = true
	}
	if e.On && e.StopAll {
		for _, l := range w.order {
			w.stop(now, l, EndDrained)
		}
	}
}

func (w *Worker) setCapacity(now time.Duration, e SetCapacity) {
	w.base = e.Capacity.Clone()
	w.recount()
	w.gossip = true
	for _, l := range w.order {
		for _, id := range l.grant.Devices {
			if !slices.ContainsFunc(w.base.Devices, func(d scheduler.Device) bool { return d.ID == id }) {
				w.stop(now, l, EndDevice)
			}
		}
	}
}

// Leases lists what is granted, oldest first.
func (w *Worker) Leases() []LeaseState {
	out := make([]LeaseState, 0, len(w.order))
	for _, l := range w.order {
		out = append(out, LeaseState{
			Owner: l.Owner, Offer: l.Offer, Lease: l.Lease, Fence: l.Fence, Grant: l.grant, Demand: l.Demand,
			Headless: l.Headless, Ready: l.ready, Stopping: l.stopping, Since: l.since, Pulled: l.pulled,
		})
	}
	return out
}

// maxDecisions bounds the worker's memory for History.
const maxDecisions = 1024

type decision struct {
	offer OfferID
	scheduler.Moment
}

func (w *Worker) note(now time.Duration, offer OfferID, format string, args ...any) {
	if w.cfg.NoHistory {
		return
	}
	d := decision{offer, scheduler.Moment{At: now, Text: fmt.Sprintf(format, args...)}}
	if len(w.history) < maxDecisions {
		w.history = append(w.history, d)
	} else {
		w.history[w.nHistory%maxDecisions] = d
	}
	w.nHistory++
}

// History is what this worker decided about an offer, oldest first, as far back
// as its memory (the last 1024 decisions) goes.
func (w *Worker) History(id OfferID) []scheduler.Moment {
	var out []scheduler.Moment
	for i := range w.history {
		d := w.history[(w.nHistory+i)%len(w.history)]
		if d.offer == id {
			out = append(out, d.Moment)
		}
	}
	return out
}

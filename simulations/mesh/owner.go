package mesh

import (
	"strconv"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"github.com/beammesh/beammesh/scheduler/market"
)

// owner answers for tasks: a market.Owner and the shell around it. Its tasks are
// its journal, which outlives the host.
type owner struct {
	market *market.Owner // nil = its host is gone
	id     market.OwnerID
	actor  int32
	zone   int32
	life   uint16
	wakeAt int64
	tasks  []Task
	next   int // the first that has not arrived
	topics []int32
	recent scheduler.Recent
	after  []market.OwnerEvent // to be fed once the present step is over
}

func (o *owner) init(w *World, i int32) {
	o.actor = int32(len(w.nodes)) + i
	o.tasks = w.cfg.Tasks[i]
	o.id.Peer = ownerID(int(i))
	for t := range o.tasks {
		o.tasks[t].Node = -1
	}
	o.boot(w)
}

func (o *owner) boot(w *World) {
	o.life++
	o.id.Epoch++
	c := w.cfg.Owner
	p := w.partOf(o.actor)
	c.ID, c.Wire = o.id, p
	if !w.cfg.NoMix {
		c.Packing = &p.packing
	}
	o.market, o.wakeAt = market.NewOwner(c), 0
}

func (p *part) handleOwner(o *owner, e *event) {
	switch e.kind {
	case kill:
		o.market = nil
		o.life++
		p.stats.Killed++
		return
	case takeOver:
		p.takeOver(o)
		return
	}
	if o.market == nil {
		return
	}
	switch e.kind {
	case toOwner:
		switch m := e.msg.(type) {
		case *nodeDown:
			p.stepOwner(o, m.NodeDown)
		case market.OwnerEvent:
			p.stepOwner(o, m)
			p.recycle(e.msg)
		}
	case bounced:
		p.stepOwner(o, *e.msg.(*market.SendFailed))
	case wakeUp:
		if e.life == o.life && e.at == o.wakeAt {
			o.wakeAt = 0
			p.stepOwner(o, market.Tick{})
		}
	case arrive:
		p.arrivals(o)
	case resume:
		if e.life == o.life {
			for i := range o.tasks[:o.next] {
				if s := o.tasks[i].State; s == Pending || s == Waiting {
					p.submit(o, i)
				}
			}
			p.arrivals(o)
		}
	case giveUp:
		if e.life == o.life {
			p.giveUp(o, market.OfferID("t"+strconv.Itoa(int(*e.msg.(*int32)))))
			p.stepOwner(o, market.Tick{})
		}
	case looked:
		p.stepOwner(o, *e.msg.(*market.DiscoveryDone))
	}
}

// arrivals submits what has come by now.
func (p *part) arrivals(o *owner) {
	for o.next < len(o.tasks) && int64(o.tasks[o.next].At) <= p.now {
		i := o.next
		o.next++
		o.recent.Observe(time.Duration(p.now), &p.w.cfg.Kinds[o.tasks[i].Kind])
		p.submit(o, i)
	}
	if o.next < len(o.tasks) {
		p.timer(int64(o.tasks[o.next].At), arrive, 0, nil)
	}
}

func (p *part) submit(o *owner, i int) {
	t := &o.tasks[i]
	t.State = Pending
	p.stepOwner(o, market.Submit{Offer: market.Offer{
		ID: market.OfferID("t" + strconv.Itoa(i)), Demand: p.w.cfg.Kinds[t.Kind], Headless: true,
		FirstAttempt: uint32(t.Attempts) + 1,
	}})
}

func (p *part) stepOwner(o *owner, ev market.OwnerEvent) {
	p.ownerActions(o, o.market.Step(time.Duration(p.now), ev))
	for len(o.after) > 0 {
		next := o.after[0]
		o.after = o.after[1:]
		p.ownerActions(o, o.market.Step(time.Duration(p.now), next))
	}
	at, ok := o.market.NextWake()
	if wake := int64(at); ok && (o.wakeAt == 0 || wake < o.wakeAt) {
		o.wakeAt = p.afterTick(wake)
		p.timer(o.wakeAt, wakeUp, o.life, nil)
	}
}

// ownerActions does what an owner's shell does.
func (p *part) ownerActions(o *owner, actions []market.OwnerAction) {
	task := func(id market.OfferID) *Task { return &o.tasks[number(string(id))] }
	for _, a := range actions {
		switch a := a.(type) {
		case market.Placed:
			p.placed(task(a.Offer), &a)
		case market.Waiting:
			t := task(a.Offer)
			if a.Never {
				break // Infeasible follows, or a node is found
			}
			t.State = Waiting
			if at := int64(t.At + p.w.cfg.Patience); p.now < at && !p.w.cfg.Keep {
				i := number(string(a.Offer))
				p.timer(at, giveUp, o.life, &i)
			} else {
				p.giveUp(o, a.Offer)
			}
		case market.Infeasible:
			t := task(a.Offer)
			t.State, t.Ended = Refused, time.Duration(p.now)
			p.stats.Settled++
			p.stats.Told.add(p.now - int64(t.At))
		case market.Lost:
			p.ended(o, task(a.Offer), &a)
		case market.Orphan:
			// Its task is being placed again, or over: only what the journal has
			// as running was adopted.
			o.after = append(o.after, market.Disown(a))
		case market.Discover:
			p.lookUp(o, &a)
		}
	}
}

// giveUp takes back a task that found no room, if it may not wait.
func (p *part) giveUp(o *owner, id market.OfferID) {
	t := &o.tasks[number(string(id))]
	if p.w.cfg.Keep || t.State != Waiting || t.Attempts > 0 {
		return
	}
	t.State = GivenUp
	p.stats.Settled++
	o.after = append(o.after, market.Withdraw{Offer: id, Reason: "no room"})
}

func (p *part) placed(t *Task, a *market.Placed) {
	if t.Placed == 0 {
		t.Placed = time.Duration(p.now)
		p.stats.Place.add(p.now - int64(t.At))
	}
	if t.lostAt > 0 {
		p.stats.Again.add(p.now - int64(t.lostAt))
		t.lostAt = 0
	}
	t.State, t.Node, t.Attempts, t.epoch = Running, nodeIndex(a.Node), uint16(a.Fence.Attempt), uint16(a.Fence.Epoch)
	p.stats.Placements++
	if a.Pulled {
		p.stats.Pulled++
	}
	if t.Run < 0 {
		p.stats.Settled++
	}
}

// ended takes the end of a container: of its task, if it ran to its end.
func (p *part) ended(o *owner, t *Task, a *market.Lost) {
	if a.Reason == market.EndExited {
		t.State, t.Ended = Done, time.Duration(p.now)
		t.Accepted++
		p.stats.Settled++
		return
	}
	p.stats.Lost++
	if t.Run < 0 {
		p.stats.Settled--
	}
	t.lostAt = time.Duration(p.now)
	if at := p.w.nodes[nodeIndex(a.Node)].diesAt; at > 0 && at <= t.lostAt {
		t.lostAt = at
	}
	t.State = Pending
	o.after = append(o.after, market.Submit{Offer: market.Offer{
		ID: a.Offer, Demand: p.w.cfg.Kinds[t.Kind], Headless: true, FirstAttempt: a.NextAttempt,
	}})
}

// takeOver starts an owner on another host: with the journal, and no idea of the
// nodes until they have answered.
func (p *part) takeOver(o *owner) {
	o.boot(p.w)
	for i := range o.tasks[:o.next] {
		if t := &o.tasks[i]; t.State == Running {
			id := market.OfferID("t" + strconv.Itoa(i))
			p.stepOwner(o, market.Adopt{
				Offer: market.Offer{ID: id, Demand: p.w.cfg.Kinds[t.Kind], Headless: true},
				Lease: market.LeaseID(string(id) + "-" + strconv.Itoa(int(t.Attempts))),
				Fence: market.Fence{Epoch: uint64(t.epoch), Attempt: uint32(t.Attempts)}, Node: nodeID(int(t.Node)),
			})
		}
	}
	far := max(p.w.cfg.Latency, p.w.cfg.Far) + p.w.cfg.Jitter
	for _, topic := range o.topics {
		for _, n := range p.w.topics[topic].nodes {
			p.send(n, probe, MsgProbe, nil)
		}
	}
	p.timer(p.now+3*int64(far), resume, o.life, nil)
}

// lookups bounds the nodes that a lookup in the directory finds.
const lookups = 16

// lookUp asks nodes of the wanted classes that the owner does not know, chosen
// at random.
func (p *part) lookUp(o *owner, a *market.Discover) {
	ts := p.w.topics
	start := int(p.w.draw(o.actor, outside, p.w.seqs[o.actor]) % uint64(len(ts)))
	found := 0
	for i := range ts {
		t := &ts[(start+i)%len(ts)]
		if found == lookups {
			break
		}
		fits := len(a.Classes) == 0
		for _, class := range a.Classes {
			fits = fits || t.name.Class != "" && gpu.Matches(class, t.name.Class)
		}
		for _, n := range t.nodes {
			if !fits || found == lookups {
				break
			}
			if _, known := o.market.View().Advert(nodeID(int(n))); !known {
				p.send(n, probe, MsgProbe, nil)
				found++
			}
		}
	}
	p.timer(p.now+int64(p.w.cfg.Discovery), looked, o.life, &market.DiscoveryDone{Offer: a.Offer})
}

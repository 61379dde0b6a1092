package replay

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/record"
	"github.com/beammesh/beammesh/scheduler/replicas"
	"github.com/beammesh/beammesh/simulations/engine"
)

// patience is how long after the last submission calls may still begin; what
// waits longer never ran.
const patience = 24 * time.Hour

// Options of a simulated run.
type Options struct {
	Seed uint64
	// HostOf names the machine of a node: nodes of one machine share its
	// processors for container starts. nil = each node is a machine.
	HostOf func(node string) string
	// Until is when to stop looking at the earliest, so that containers that are
	// kept warm count as long as they did in the recording.
	Until time.Duration
	// Owner may change the settings of every owner; nil = as recorded.
	Owner func(*market.OwnerConfig)
}

// Simulate runs the load and gives the journals of the simulated nodes. The
// second result is how many calls never ended.
func Simulate(ctx context.Context, l Load, m Models, o Options) ([]Journal, int, error) {
	if len(l.Nodes) == 0 {
		return nil, 0, fmt.Errorf("replay: there is no node left")
	}
	w := newWorld(l, m, o)
	err := engine.Run(ctx, o.Seed, &w.queue, w.handle)
	js := make([]Journal, 0, len(w.nodes))
	for _, n := range w.nodes {
		js = append(js, Journal{Node: n.id, Name: n.name, Records: n.records})
	}
	return js, w.open, err
}

type eventKind uint8

const (
	evSubmit   eventKind = iota // of a call: call
	evOwner                     // msg for node's owner
	evWorker                    // msg for node's worker
	evWakes                     // of node's machines
	evWakePool                  // of pool
	evGossip                    // node's advert to the others
	evJobs                      // the next job of host is over
	evStarted                   // container takes calls
	evReady                     // lease is known to pool's owner as ready
	evStopped                   // the container of lease is gone
	evArrive                    // call at container
	evEnd                       // of call in container
	evRecalled                  // call came back to its pool
)

type event struct {
	kind      eventKind
	node      *node
	pool      *pool
	host      *host
	container *container
	call      int
	number    int // attempt, or version of the host's jobs
	msg       any
}

type world struct {
	load   Load
	models Models
	seed   uint64
	rand   engine.Rand
	queue  engine.Queue[event]
	nodes  []*node
	byID   map[scheduler.NodeID]*node
	hosts  []*host
	pools  []*pool // by stub
	calls  map[replicas.CallID]int
	ended  []bool // by call
	open   int
	seq    int
	until  time.Duration
	limit  time.Duration
}

type node struct {
	id      scheduler.NodeID
	name    string
	owner   *market.Owner
	worker  *market.Worker // nil where it runs no containers
	host    *host
	hot     []string
	records []record.Record
	wake    time.Duration // of the scheduled one; 0 = none

	leases map[market.LeaseID]*container // here
	offers map[market.OfferID]*wanted    // of this owner

	gossipDue bool
	gossiped  time.Duration
}

// wanted is a container that a pool asked for.
type wanted struct {
	id    market.OfferID
	pool  *pool
	lease market.LeaseID
	gone  bool // taken back
	ready bool
	early *container // ready before its lease was known
}

func newWorld(l Load, m Models, o Options) *world {
	w := &world{load: l, models: m, byID: map[scheduler.NodeID]*node{}, calls: map[replicas.CallID]int{},
		ended: make([]bool, len(l.Calls)), open: len(l.Calls), until: o.Until, seed: o.Seed, rand: engine.Stream(o.Seed, "replay", 0)}
	hostOf := o.HostOf
	if hostOf == nil {
		hostOf = func(name string) string { return name }
	}
	for _, ln := range l.Nodes {
		cfg := ln.Owner
		cfg.NoHistory = true
		if o.Owner != nil {
			o.Owner(&cfg)
		}
		n := &node{id: ln.ID, name: ln.Name, owner: market.NewOwner(cfg), hot: ln.Hot, host: w.host(hostOf(ln.Name)),
			leases: map[market.LeaseID]*container{}, offers: map[market.OfferID]*wanted{}}
		n.add(0, record.Owner, record.OwnerStart{Config: cfg, Name: ln.Name}, nil)
		if ln.Worker.Node != "" {
			wc := ln.Worker
			wc.NoHistory, wc.Capacity.HotRoots = true, ln.Hot
			n.worker = market.NewWorker(wc)
			n.add(0, record.Worker, record.WorkerStart{Config: wc}, nil)
		}
		w.nodes = append(w.nodes, n)
		w.byID[n.id] = n
	}
	for _, s := range l.Stubs {
		p := &pool{stub: s, world: w, node: w.byID[s.Owner], machine: replicas.New(s.Config), containers: map[replicas.ReplicaID]*container{}}
		p.node.add(0, record.PoolPrefix+s.Key, record.PoolStart{Config: s.Config, Stub: s.Name, Demand: s.Demand}, nil)
		w.pools = append(w.pools, p)
	}
	// Everyone knows everyone before the first call, as after a hello.
	for _, n := range w.nodes {
		for _, of := range w.nodes {
			if of.worker != nil {
				src := scheduler.SourceHello
				if of == n {
					src = scheduler.SourceSelf
				}
				w.stepOwner(0, n, market.AdvertSeen{Advert: of.worker.Advert(), Source: src})
			}
		}
	}
	for i, c := range l.Calls {
		w.calls[c.ID] = i
		w.queue.Push(max(0, c.At), event{kind: evSubmit, call: i})
		w.limit = max(w.limit, c.At+patience)
	}
	return w
}

func (n *node) add(at time.Duration, machine string, ev any, decisions []string) {
	n.records = append(n.records, record.Record{At: at, Machine: machine, Event: ev, Decisions: decisions})
}

func (w *world) handle(now time.Duration, e event) {
	if now > w.limit || w.open == 0 && now >= w.until {
		engine.Stop(nil)
	}
	switch e.kind {
	case evSubmit:
		c := w.load.Calls[e.call]
		call := replicas.Call{ID: c.ID, Timeout: c.Timeout}
		if c.Deadline > 0 {
			call.Deadline = now + c.Deadline
		}
		w.pools[c.Stub].step(now, replicas.Submit{Call: call})
	case evOwner:
		w.stepOwner(now, e.node, e.msg.(market.OwnerEvent))
	case evWorker:
		w.stepWorker(now, e.node, e.msg.(market.WorkerEvent))
	case evWakes:
		if now == e.node.wake {
			e.node.wake = 0
			w.stepOwner(now, e.node, market.Tick{})
			if e.node.worker != nil {
				w.stepWorker(now, e.node, market.Tick{})
			}
		}
	case evWakePool:
		if now == e.pool.wake {
			e.pool.wake = 0
			e.pool.step(now, replicas.Tick{})
		}
	case evGossip:
		w.gossip(now, e.node)
	case evJobs:
		if e.number == e.host.version {
			w.jobsDone(now, e.host)
		}
	case evStarted:
		e.container.started(now)
	case evReady:
		e.container.readyAt(now)
	case evStopped:
		delete(e.node.leases, e.container.lease)
		w.stepWorker(now, e.node, market.LeaseDone{Lease: e.container.lease, Reason: market.EndReleased})
	case evArrive:
		e.container.arrive(now, e.call, e.number)
	case evEnd:
		e.container.end(now, e.call, e.number)
	case evRecalled:
		e.pool.step(now, e.msg.(replicas.Event))
	}
}

func (w *world) stepOwner(now time.Duration, n *node, ev market.OwnerEvent) {
	actions := slices.Clone(n.owner.Step(now, ev))
	n.add(now, record.Owner, ev, record.OwnerDecisions(actions))
	for _, a := range actions {
		switch a := a.(type) {
		case market.SendAsk:
			w.toWorker(now, n, a.To, a.Ask)
		case market.SendAward:
			w.toWorker(now, n, a.To, a.Award)
		case market.SendRelease:
			w.toWorker(now, n, a.To, a.Release)
		case market.SendRenewAck:
			w.toWorker(now, n, a.To, a.Ack)
		case market.SendEndedAck:
			w.toWorker(now, n, a.To, a.Ack)
		case market.SendOpenOffer:
			w.toWorker(now, n, a.To, a.OpenOffer)
		case market.PublishOpenOffer:
			for _, to := range w.nodes {
				w.toWorker(now, n, to.id, a.OpenOffer)
			}
		case market.Discover:
			w.toOwner(now, n, n.id, market.DiscoveryDone{Offer: a.Offer})
		case market.Placed:
			if x := n.offers[a.Offer]; x != nil {
				x.lease = a.Lease
				if c := x.early; c != nil {
					x.early = nil
					c.readyAt(now)
				}
			}
		case market.Infeasible:
			if x := n.offers[a.Offer]; x != nil {
				delete(n.offers, a.Offer)
				x.pool.step(now, replicas.AcquireFailed{N: 1, Final: true, Reason: "no node could ever take it"})
			}
		case market.Lost:
			// Nothing dies in this world, but on a machine with far too much to do
			// renewals may come too late.
			w.lost(now, n, &a)
		}
	}
	w.schedule(now, n)
}

func (w *world) lost(now time.Duration, n *node, a *market.Lost) {
	x := n.offers[a.Offer]
	if x == nil {
		return
	}
	delete(n.offers, a.Offer)
	switch {
	case x.gone:
	case x.ready:
		id := replicas.ReplicaID(a.Lease)
		delete(x.pool.containers, id)
		x.pool.step(now, replicas.ReplicaLost{Replica: id, NodeLost: true})
	default:
		x.pool.step(now, replicas.AcquireFailed{N: 1, Reason: string(a.Reason)})
	}
}

func (w *world) stepWorker(now time.Duration, n *node, ev market.WorkerEvent) {
	n.add(now, record.Worker, ev, nil)
	for _, a := range slices.Clone(n.worker.Step(now, ev)) {
		switch a := a.(type) {
		case market.ReplyAsk:
			w.toOwner(now, n, a.To.Peer, a.Reply)
		case market.ReplyAward:
			w.toOwner(now, n, a.To.Peer, a.Reply)
		case market.ReplyRelease:
			w.toOwner(now, n, a.To.Peer, a.Reply)
		case market.SendRenew:
			w.toOwner(now, n, a.To.Peer, a.Renew)
		case market.SendEnded:
			w.toOwner(now, n, a.To.Peer, a.Ended)
		case market.SendPull:
			w.toOwner(now, n, a.To.Peer, a.Pull)
		case market.Start:
			w.start(now, n, a)
		case market.Stop:
			if c := n.leases[a.Lease]; c != nil {
				w.stop(now, n, c)
			}
		case market.AdvertChanged:
			w.queue.Push(now, event{kind: evOwner, node: n, msg: market.AdvertSeen{Advert: a.Advert, Source: scheduler.SourceSelf}})
			if !n.gossipDue {
				n.gossipDue = true
				w.queue.Push(max(now, n.gossiped+gossipEvery), event{kind: evGossip, node: n})
			}
		}
	}
	w.schedule(now, n)
}

// schedule sees to it that a node's machines are woken when they want.
func (w *world) schedule(now time.Duration, n *node) {
	at, ok := n.owner.NextWake()
	if n.worker != nil {
		if t, some := n.worker.NextWake(); some && (!ok || t < at) {
			at, ok = t, true
		}
	}
	if !ok {
		return
	}
	if at = max(at, now); n.wake == 0 || at < n.wake || n.wake < now {
		n.wake = at
		w.queue.Push(at, event{kind: evWakes, node: n})
	}
}

// Package markettest runs owners and workers of package market in virtual time:
// a discrete-event harness for tests and simulations. The machines are the real
// ones; the network, the containers and the clock are made up.
//
//	s := markettest.New(markettest.Config{Latency: time.Millisecond})
//	s.AddNode("box1", markettest.Box(4, 16))
//	s.AddNode("box2", markettest.Box(8, 32, "H100"))
//	s.Submit("box1", market.Offer{ID: "f", Demand: d})
//	s.Run(time.Second)
//	s.Node("box2").Worker.Leases()
//
// A run is a function of its Config and the calls made: the same seed gives the
// same trace. After every step of a worker Sim checks that nothing is granted
// twice and collects what it finds in Violations. Not safe for concurrent use.
package markettest

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"github.com/beammesh/beammesh/scheduler/market"
)

// Config of a simulation. Zeros mean: no latency, adverts seen at once, starts
// take no time.
type Config struct {
	Seed    uint64
	Latency time.Duration // one way
	Jitter  time.Duration // added at random, uniform
	// GossipEvery is how often a node's advert reaches the others after a change:
	// the staleness of views. 0 = at once (after Latency).
	GossipEvery time.Duration
	Heartbeat   time.Duration // gossip the advert this often even when it did not change; 0 = never
	NoGossip    bool          // adverts and open offers are lost
	NoDHT       bool          // Discover finds nothing
	DHTDelay    time.Duration
	StartTime   time.Duration // of a container
	StopTime    time.Duration
	DetectDown  time.Duration // until the others notice that a node is gone

	Owner  market.OwnerConfig  // template; ID is filled in
	Worker market.WorkerConfig // template; Node, Name, Boot, Capacity are filled in

	// RunFor says how long a container runs; nil or negative = until released.
	RunFor func(market.OfferID) time.Duration
	// Resubmit places an offer again when it is Lost.
	Resubmit bool
	// Filter decides the fate of a message; nil = deliver.
	Filter func(from, to scheduler.NodeID, msg any) Fate
	// Trace takes a line for each message and decision; nil = none.
	Trace func(string)
	// OnAction sees what an owner tells its shell (Placed, Lost, ...).
	OnAction func(n *Node, a market.OwnerAction)
}

// Hello stands for the handshake of two nodes in Filter.
type Hello struct{}

// Fate of a message.
type Fate int

// The fates.
const (
	Deliver Fate = iota
	Drop
	Twice
	Fail // the sender is told (SendFailed where there is one)
)

// Node is one simulated node: an owner and a worker.
type Node struct {
	ID     scheduler.NodeID
	Owner  *market.Owner
	Worker *market.Worker
	Up     bool

	epoch    uint64
	capacity scheduler.Capacity
	offers   map[market.OfferID]market.Offer
	running  map[market.LeaseID]bool // containers on this machine
	wakeAt   time.Duration           // of the scheduled tick; 0 = none
	gossipAt time.Duration           // of the scheduled gossip; 0 = none
	lastSent time.Duration           // of gossip
}

// Sim is the world.
type Sim struct {
	cfg   Config
	rng   *rand.Rand
	now   time.Duration
	queue events
	seq   uint64
	nodes map[scheduler.NodeID]*Node
	order []*Node // by AddNode

	// Counts has the number of messages sent, by the name of their type.
	Counts map[string]int
	// Violations are broken promises; a test fails when there is one.
	Violations []string
	// Placements are all Placed actions in order.
	Placements []Placement
}

// Placement is a Placed with its owner and time.
type Placement struct {
	At    time.Duration
	Owner scheduler.NodeID
	market.Placed
}

// New makes an empty world at time 0.
func New(cfg Config) *Sim {
	return &Sim{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 0x9e3779b97f4a7c15)),
		nodes: map[scheduler.NodeID]*Node{}, Counts: map[string]int{},
	}
}

// Box is the capacity of a machine with so many cores, GiB of memory, 100 GiB of
// disk and these GPUs (24 GiB each).
func Box(cores, gib int64, gpus ...string) scheduler.Capacity {
	r := scheduler.Resources{CPUMillis: cores * 1000, MemoryMiB: gib << 10, DiskMiB: 100 << 10}
	c := scheduler.Capacity{Total: r, Free: r, Arch: "amd64", Isolation: []string{"trusted"}}
	for i, g := range gpus {
		c.Devices = append(c.Devices, scheduler.Device{
			ID: fmt.Sprintf("%s-%d", strings.ToLower(g), i), Class: gpu.Normalise(g),
			MemoryMiB: 24 << 10, FreeMilli: scheduler.GPUExclusive,
		})
	}
	return c
}

// Now is the virtual time.
func (s *Sim) Now() time.Duration { return s.now }

// Node finds a node; nil when there is none.
func (s *Sim) Node(id scheduler.NodeID) *Node { return s.nodes[id] }

// Nodes are all nodes in the order they were added.
func (s *Sim) Nodes() []*Node { return s.order }

// AddNode starts a node, which exchanges adverts with all that are up.
func (s *Sim) AddNode(id scheduler.NodeID, c scheduler.Capacity) *Node {
	n := &Node{ID: id, capacity: c, offers: map[market.OfferID]market.Offer{}}
	s.nodes[id] = n
	s.order = append(s.order, n)
	s.boot(n)
	return n
}

// Restart brings a killed node back with nothing but its identity.
func (s *Sim) Restart(id scheduler.NodeID) {
	if n := s.nodes[id]; n != nil && !n.Up {
		s.boot(n)
	}
}

func (s *Sim) boot(n *Node) {
	n.epoch++
	oc, wc := s.cfg.Owner, s.cfg.Worker
	oc.ID = market.OwnerID{Peer: n.ID, Epoch: n.epoch}
	wc.Node, wc.Name, wc.Boot = n.ID, string(n.ID), fmt.Sprintf("b%d", n.epoch)
	wc.Capacity = n.capacity
	n.Owner, n.Worker = market.NewOwner(oc), market.NewWorker(wc)
	n.Up, n.running, n.wakeAt = true, map[market.LeaseID]bool{}, 0
	s.trace("%s is up: %s", n.ID, describeCapacity(n.capacity))
	s.stepOwner(n, market.AdvertSeen{Advert: n.Worker.Advert(), Source: scheduler.SourceSelf})
	n.gossipAt = 0
	s.heartbeat(n)
	for _, m := range s.order {
		if m == n || !m.Up || s.cfg.Filter != nil && s.cfg.Filter(n.ID, m.ID, Hello{}) != Deliver {
			continue
		}
		if n.epoch > 1 { // its old connection is noticed to be gone, at the latest now
			s.stepOwner(m, market.NodeDown{Node: n.ID, Reason: "restarted"})
			s.stepWorker(m, market.OwnerDown{Peer: n.ID})
		}
		s.stepOwner(n, market.AdvertSeen{Advert: m.Worker.Advert(), Source: scheduler.SourceHello})
		s.stepOwner(m, market.AdvertSeen{Advert: n.Worker.Advert(), Source: scheduler.SourceHello})
		s.stepWorker(m, market.OwnerUp{Peer: n.ID})
	}
}

func (s *Sim) heartbeat(n *Node) {
	if s.cfg.Heartbeat > 0 && !s.cfg.NoGossip && n.gossipAt == 0 {
		n.gossipAt = s.now + s.cfg.Heartbeat
		s.push(n.gossipAt, event{kind: evGossip, to: n, epoch: n.epoch})
	}
}

// Submit hands an offer to the owner on a node.
func (s *Sim) Submit(node scheduler.NodeID, o market.Offer) {
	n := s.nodes[node]
	n.offers[o.ID] = o
	s.trace("%s submits %s: %s", node, o.ID, o.Demand)
	s.stepOwner(n, market.Submit{Offer: o})
}

// Kill ends a node without a word; the others notice after DetectDown.
func (s *Sim) Kill(id scheduler.NodeID) {
	n := s.nodes[id]
	n.Up, n.running = false, nil
	s.trace("%s is killed", id)
	for _, m := range s.order {
		if m != n && m.Up {
			s.push(s.now+s.cfg.DetectDown, event{kind: evDown, to: m, from: n.ID, epoch: m.epoch, fromEpoch: n.epoch})
		}
	}
}

// StepOwner feeds an event into the owner of a node, as its shell would.
func (s *Sim) StepOwner(id scheduler.NodeID, ev market.OwnerEvent) { s.stepOwner(s.nodes[id], ev) }

// StepWorker feeds an event into the worker of a node, as its shell would.
func (s *Sim) StepWorker(id scheduler.NodeID, ev market.WorkerEvent) { s.stepWorker(s.nodes[id], ev) }

// Run lets the world go on for d.
func (s *Sim) Run(d time.Duration) {
	end := s.now + d
	for len(s.queue) > 0 && s.queue[0].at <= end {
		e := s.queue.pop()
		s.now = e.at
		s.handle(e)
	}
	s.now = end
}

// Idle reports whether no message is on its way and no container starts or stops.
func (s *Sim) Idle() bool {
	for _, e := range s.queue {
		if e.kind != evWake && e.kind != evGossip {
			return false
		}
	}
	return true
}

func (s *Sim) trace(format string, args ...any) {
	if s.cfg.Trace != nil {
		s.cfg.Trace(fmt.Sprintf("%8s  ", stamp(s.now)) + fmt.Sprintf(format, args...))
	}
}

// stamp prints a time as "12.345s".
func stamp(d time.Duration) string {
	ms := d.Milliseconds()
	return fmt.Sprintf("%d.%03ds", ms/1000, ms%1000)
}

// check looks at a worker's books after each of its steps.
func (s *Sim) check(n *Node) {
	for _, v := range Audit(n.Worker) {
		s.Violations = append(s.Violations, fmt.Sprintf("%s at %s: %s", n.ID, stamp(s.now), v))
	}
}

// Audit looks at a worker's books: what it granted must fit the machine, and what
// it calls free must be within the rest. It gives one line per broken promise.
func Audit(w *market.Worker) (broken []string) {
	c := w.Capacity()
	var cpu, mem, disk int64
	milli := map[string]int64{}
	for _, l := range w.Leases() {
		cpu += l.Demand.CPUMillis
		mem += l.Grant.MemoryMiB
		disk += l.Grant.DiskMiB
		for _, d := range l.Grant.Devices {
			milli[d] += l.Grant.GPUMilli
		}
	}
	bad := func(format string, args ...any) {
		broken = append(broken, fmt.Sprintf(format, args...))
	}
	if cpu > c.Total.CPUMillis || mem > c.Total.MemoryMiB || disk > c.Total.DiskMiB {
		bad("granted %d cpu, %d memory, %d disk of %+v", cpu, mem, disk, c.Total)
	}
	if c.Free.CPUMillis > c.Total.CPUMillis-cpu || c.Free.MemoryMiB > c.Total.MemoryMiB-mem || c.Free.DiskMiB > c.Total.DiskMiB-disk {
		bad("calls more free than there is: %+v of %+v", c.Free, c.Total)
	}
	for _, d := range c.Devices {
		if milli[d.ID] > scheduler.GPUExclusive || d.FreeMilli > scheduler.GPUExclusive-milli[d.ID] {
			bad("device %s: %d/1000 granted, %d free", d.ID, milli[d.ID], d.FreeMilli)
		}
	}
	if a := (scheduler.Advert{Node: "audited", Capacity: c}); a.Validate() != nil {
		bad("advert: %v", a.Validate())
	}
	return broken
}

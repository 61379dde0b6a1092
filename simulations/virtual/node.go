package virtual

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/libp2p"
	"github.com/beammesh/beammesh/node/link"
	"github.com/beammesh/beammesh/node/marketwire"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/market/markettest"
)

// Node is one machine: a worker, and an owner if it takes tasks.
type Node struct {
	w     *World
	i     int
	topic scheduler.Topic // of its adverts
	mesh  *libp2p.Mesh
	links *link.Links

	changed  chan struct{} // capacity 1: the advert changed
	knowsAll chan struct{} // closed when the owner's view has every node
	over     chan struct{} // closed when the node ends

	mu      sync.Mutex
	dead    bool
	owner   *market.Owner // nil: takes no tasks
	worker  *market.Worker
	tick    *time.Timer // for both machines
	adverts map[scheduler.NodeID]heard
	running map[market.LeaseID]bool
}

// boot makes the machines and registers the handlers, before the mesh starts.
func (n *Node) boot(m *libp2p.Mesh) {
	cfg := &n.w.cfg
	id := peer(m.PeerID())
	n.mesh = m
	n.changed, n.knowsAll, n.over = make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	n.adverts, n.running = map[scheduler.NodeID]heard{}, map[market.LeaseID]bool{}
	n.worker = market.NewWorker(market.WorkerConfig{Node: id, Name: m.Self().Name, Boot: "1", Capacity: cfg.Capacity, NoHistory: true})
	if n.i < cfg.Owners {
		oc := cfg.Owner
		oc.ID = market.OwnerID{Peer: id, Epoch: 1}
		oc.NoHistory = true
		n.owner = market.NewOwner(oc)
	}
	n.tick = time.AfterFunc(time.Hour, func() {
		n.stepOwner(market.Tick{})
		n.stepWorker(market.Tick{})
	})
	n.links = link.New(m.PeerID(), m, n.receive, slog.New(slog.DiscardHandler))
	m.Handle(link.Protocol, n.links.Serve)
	n.stepOwner(market.AdvertSeen{Advert: n.worker.Advert(), Source: scheduler.SourceSelf})
	m.Watch(n.member)
}

// halt ends the machines: nothing happens on this node any more. close, after
// its mesh is closed, waits for what still writes.
func (n *Node) halt() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dead || n.mesh == nil {
		return
	}
	n.dead = true
	close(n.over)
	n.tick.Stop()
}

func (n *Node) close() {
	if n.links != nil {
		_ = n.links.Close()
	}
}

// Leases are what the node's worker has granted.
func (n *Node) Leases() []market.LeaseState {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.worker.Leases()
}

// ID is the node's id.
func (n *Node) ID() scheduler.NodeID { return peer(n.mesh.PeerID()) }

func (n *Node) member(e mesh.Event) {
	id := peer(e.Member.ID)
	switch e.Type {
	case mesh.MemberUp:
		n.stepOwner(market.NodeUp{Node: id})
		n.stepWorker(market.OwnerUp{Peer: id})
	case mesh.MemberDown:
		n.stepOwner(market.NodeDown{Node: id, Reason: e.Reason})
		n.stepWorker(market.OwnerDown{Peer: id})
	}
}

// receive takes a message from a market stream.
func (n *Node) receive(from mesh.PeerID, m *peerv1.MarketMessage) {
	d, err := marketwire.Decode(peer(from), m)
	switch {
	case err != nil:
		n.w.violated("%s sent node %d: %v", from, n.i, err)
	case d.ToOwner != nil:
		n.stepOwner(d.ToOwner)
	default:
		n.stepWorker(d.ToWorker)
	}
}

// send puts a market message on the stream to a node. failed may be nil.
func (n *Node) send(to scheduler.NodeID, m any, failed func(error)) {
	wire, err := marketwire.Encode(m, nil)
	if err != nil {
		n.w.violated("node %d: %v", n.i, err)
		return
	}
	n.w.sent(m)
	n.links.Send(mesh.PeerID(to), wire, failed)
}

// stepOwner feeds the owner an event and carries out what it wants.
func (n *Node) stepOwner(ev market.OwnerEvent) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.owner == nil || n.dead {
		return
	}
	for _, a := range n.owner.Step(n.w.Now(), ev) {
		n.ownerLocked(a)
	}
	if _, news := ev.(market.AdvertSeen); news && n.owner.View().Len() == n.w.cfg.Nodes {
		select {
		case <-n.knowsAll:
		default:
			close(n.knowsAll)
		}
	}
	n.wakeLocked()
}

func (n *Node) ownerLocked(a market.OwnerAction) {
	switch a := a.(type) {
	case market.SendAsk:
		n.send(a.To, a.Ask, func(err error) {
			n.stepOwner(market.SendFailed{Node: a.To, Offer: a.Ask.Offer, Round: a.Ask.Round, Reason: err.Error()})
		})
	case market.SendAward:
		n.send(a.To, a.Award, func(err error) {
			n.stepOwner(market.SendFailed{Node: a.To, Offer: a.Award.Offer, Lease: a.Award.Lease, Reason: err.Error()})
		})
	case market.SendRelease:
		n.send(a.To, a.Release, nil)
	case market.SendRenewAck:
		n.send(a.To, a.Ack, nil)
	case market.SendEndedAck:
		n.send(a.To, a.Ack, nil)
	case market.SendOpenOffer:
		n.send(a.To, a.OpenOffer, nil)
	case market.PublishOpenOffer:
		n.w.sent(a.OpenOffer)
		if b, err := proto.Marshal(marketwire.OpenOfferOut(a.OpenOffer)); err == nil {
			n.w.wg.Go(func() { _ = n.mesh.Publish(n.w.ctx, TopicOffers, b) }) // repeated while it waits
		}
	case market.Discover:
		n.w.wg.Go(func() { n.stepOwner(market.DiscoveryDone{Offer: a.Offer}) }) // there is no directory here
	case market.Placed:
		n.w.placed(n, a)
	case market.Lost:
		if again, ok := n.w.lost(a); ok {
			n.w.wg.Go(func() { n.stepOwner(market.Submit{Offer: again}) })
		}
	case market.Infeasible:
		n.w.infeasible(a)
	case market.Orphan:
		n.w.wg.Go(func() { n.stepOwner(market.Disown(a)) })
	}
}

// stepWorker feeds the worker an event, carries out what it wants and looks
// whether it has granted anything twice.
func (n *Node) stepWorker(ev market.WorkerEvent) {
	n.mu.Lock()
	if n.dead {
		n.mu.Unlock()
		return
	}
	var own []scheduler.Advert
	for _, a := range n.worker.Step(n.w.Now(), ev) {
		switch a := a.(type) {
		case market.ReplyAsk:
			n.send(a.To.Peer, a.Reply, nil)
		case market.ReplyAward:
			n.send(a.To.Peer, a.Reply, nil)
		case market.ReplyRelease:
			n.send(a.To.Peer, a.Reply, nil)
		case market.SendRenew:
			n.send(a.To.Peer, a.Renew, nil)
		case market.SendEnded:
			n.send(a.To.Peer, a.Ended, nil)
		case market.SendPull:
			n.send(a.To.Peer, a.Pull, nil)
		case market.Start:
			n.runLocked(a.Lease)
		case market.Stop:
			time.AfterFunc(0, func() { n.ended(a.Lease, a.Reason) })
		case market.AdvertChanged:
			own = append(own, a.Advert)
			select {
			case n.changed <- struct{}{}:
			default:
			}
		}
	}
	for _, v := range markettest.Audit(n.worker) {
		n.w.violated("node %d at %v: %s", n.i, n.w.Now(), v)
	}
	n.wakeLocked()
	n.mu.Unlock()
	for _, a := range own {
		n.stepOwner(market.AdvertSeen{Advert: a, Source: scheduler.SourceSelf})
	}
}

// runLocked is a container: it starts, and ends by itself after a while.
func (n *Node) runLocked(lease market.LeaseID) {
	n.running[lease] = true
	time.AfterFunc(n.w.cfg.StartTime, func() { n.stepWorker(market.LeaseReady{Lease: lease}) })
	if n.w.cfg.RunFor > 0 {
		time.AfterFunc(n.w.cfg.StartTime+n.w.cfg.RunFor, func() { n.ended(lease, market.EndExited) })
	}
}

// ended says that a container is gone, once.
func (n *Node) ended(lease market.LeaseID, why market.EndReason) {
	n.mu.Lock()
	was := n.running[lease]
	delete(n.running, lease)
	n.mu.Unlock()
	if was {
		n.stepWorker(market.LeaseDone{Lease: lease, Reason: why})
	}
}

// wakeLocked sets the timer to when either machine wants its next Tick.
func (n *Node) wakeLocked() {
	var due []time.Duration
	if n.owner != nil {
		if at, ok := n.owner.NextWake(); ok {
			due = append(due, at)
		}
	}
	if at, ok := n.worker.NextWake(); ok {
		due = append(due, at)
	}
	if len(due) == 0 {
		n.tick.Stop()
		return
	}
	n.tick.Reset(max(slices.Min(due)-n.w.Now(), 0))
}

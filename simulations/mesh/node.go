package mesh

import (
	"slices"
	"strconv"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
)

// node is a machine: a worker and the shell around it.
type node struct {
	worker  *market.Worker // nil = down
	actor   int32
	zone    int32
	topic   int32
	life    uint16
	wakeAt  int64 // of the scheduled tick; 0 = none
	said    uint64
	running []*container
	diesAt  time.Duration // planned; 0 = it does not
}

// container runs on a node.
type container struct {
	lease  market.LeaseID
	reason market.EndReason
	gone   bool
}

func (n *node) init(w *World, i int32) {
	n.actor = i
	n.boot(w)
}

func (n *node) boot(w *World) {
	n.life++
	c := w.cfg.Worker
	p := w.partOf(n.actor)
	c.Node, c.Boot, c.Capacity, c.Wire = nodeID(int(n.actor)), strconv.Itoa(int(n.life)), w.cfg.Nodes[n.actor], p
	if !w.cfg.NoMix {
		c.Packing = &p.packing
	}
	n.worker = market.NewWorker(c)
	n.running, n.wakeAt, n.said = nil, 0, n.worker.Advert().Seq
}

func (p *part) handleNode(n *node, e *event) {
	switch e.kind {
	case kill:
		p.killNode(n)
		return
	case restart:
		if n.worker == nil {
			n.boot(p.w)
			p.gossip(n)
		}
		return
	case gossip:
		p.checkNode(n)
		if n.worker != nil {
			if a := n.worker.Advert(); a.Seq != n.said {
				p.gossip(n)
			}
		}
		p.timer(p.now+int64(p.w.cfg.GossipEvery), gossip, 0, nil)
		return
	}
	if n.worker == nil {
		p.bounce(e)
		return
	}
	switch e.kind {
	case toWorker:
		p.stepWorker(n, e.msg.(market.WorkerEvent))
		p.recycle(e.msg)
	case wakeUp:
		if e.life == n.life && e.at == n.wakeAt {
			n.wakeAt = 0
			p.stepWorker(n, market.Tick{})
		}
	case ready:
		if c := e.msg.(*container); e.life == n.life && !c.gone {
			p.stepWorker(n, market.LeaseReady{Lease: c.lease})
		}
	case exited:
		if c := e.msg.(*container); e.life == n.life && !c.gone {
			c.gone = true
			n.running = slices.DeleteFunc(n.running, func(x *container) bool { return x == c })
			p.stepWorker(n, market.LeaseDone{Lease: c.lease, Reason: c.reason})
		}
	case probe:
		p.send(e.from, toOwner, MsgProbe, &market.AdvertSeen{Advert: n.worker.Advert(), Source: scheduler.SourceDHT})
	}
}

// bounce tells the sender that nobody is there, where the network would.
func (p *part) bounce(e *event) {
	if p.w.cfg.Detect <= 0 {
		return
	}
	f := market.SendFailed{Node: nodeID(int(e.to)), Reason: "connection refused"}
	switch m := e.msg.(type) {
	case *market.Ask:
		f.Offer, f.Round = m.Offer, m.Round
	case *market.Award:
		f.Offer, f.Lease = m.Offer, m.Lease
	default:
		return
	}
	p.post(e.from, p.now+p.w.delay(e.to, e.from, p.w.seqs[e.to]), bounced, 0, &f)
}

func (p *part) stepWorker(n *node, ev market.WorkerEvent) {
	for _, a := range n.worker.Step(time.Duration(p.now), ev) {
		if stop, ok := a.(market.Stop); ok {
			for _, c := range n.running {
				if c.lease == stop.Lease && !c.gone {
					c.reason = stop.Reason
					p.timer(p.now, exited, n.life, c)
				}
			}
		}
	}
	at, ok := n.worker.NextWake()
	if wake := int64(at); ok && (n.wakeAt == 0 || wake < n.wakeAt) {
		n.wakeAt = p.afterTick(wake)
		p.timer(n.wakeAt, wakeUp, n.life, nil)
	}
}

// Start is one of market.WorkerWire: a container starts.
func (p *part) Start(l market.LeaseID, a *market.Award, _ *scheduler.Grant) {
	n := &p.w.nodes[p.cur]
	c := &container{lease: l, reason: market.EndExited}
	n.running = append(n.running, c)
	up := p.now + int64(p.w.cfg.Start)
	p.timer(up, ready, n.life, c)
	if run := p.w.cfg.Tasks[number(string(a.Owner.Peer))][number(string(a.Offer))].Run; run >= 0 {
		p.timer(up+int64(run), exited, n.life, c)
	}
}

// AdvertChanged is one of market.WorkerWire. Gossip looks at the advert when it
// is its time.
func (p *part) AdvertChanged() {}

// killNode ends a machine without a word.
func (p *part) killNode(n *node) {
	if n.worker == nil {
		return
	}
	p.stats.Killed++
	owners := slices.Clone(p.w.topics[n.topic].owners)
	for _, l := range n.worker.Leases() {
		owners = append(owners, number(string(l.Owner.Peer)))
		p.stats.LeasesKilled++
	}
	slices.Sort(owners)
	n.worker, n.running = nil, nil
	n.life++
	if p.w.cfg.Detect > 0 {
		for _, o := range slices.Compact(owners) {
			to := int32(len(p.w.nodes)) + o
			p.post(to, p.now+int64(p.w.cfg.Detect)+p.w.delay(n.actor, to, p.w.seqs[n.actor]), toOwner, 0,
				&nodeDown{market.NodeDown{Node: nodeID(int(n.actor)), Reason: "connection broke"}})
		}
	}
}

// nodeDown keeps NodeDown apart from messages: it is what a connection tells.
type nodeDown struct{ market.NodeDown }

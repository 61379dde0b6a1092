package virtual

import (
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/node/marketwire"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
)

// maxView bounds what one hello carries, as in the product.
const maxView = 200 << 10

// subscribe joins the topics: an owner those that the scheduler names, which are
// all up to 1,920 nodes; others their own, where they only pass on.
func (n *Node) subscribe() error {
	hear := func(topic string, fn func(mesh.PeerID, []byte)) error {
		_, err := n.mesh.Subscribe(topic, fn) // until the mesh closes
		return err
	}
	topics := []scheduler.Topic{n.topic}
	if n.owner != nil {
		topics = scheduler.Subscriptions(n.ID(), n.topic.Zone, []scheduler.Census{{
			Class: n.topic.Class, Zone: n.topic.Zone, Nodes: n.w.cfg.Nodes, Depth: n.topic.Depth}})
	}
	for _, t := range topics {
		if err := hear(topicName(t), func(_ mesh.PeerID, data []byte) { n.hearAdvert(data) }); err != nil {
			return err
		}
	}
	return hear(TopicOffers, n.hearOffer)
}

// advertise gossips the own advert on change and as a heartbeat. Each node has
// its own phase, or all would speak at once.
func (n *Node) advertise() {
	beat := time.NewTicker(n.w.cfg.Heartbeat)
	defer beat.Stop()
	pause := time.NewTimer(min(n.w.cfg.Heartbeat, firstAdverts) * time.Duration(n.i) / time.Duration(n.w.cfg.Nodes))
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
		case <-n.over:
			return
		}
		if b, err := proto.Marshal(n.signed()); err == nil {
			_ = n.mesh.Publish(n.w.ctx, topicName(n.topic), b) // repeated soon
		}
		pause.Reset(n.w.cfg.AdvertEvery)
		select {
		case <-pause.C:
		case <-n.over:
			return
		}
		select {
		case <-n.changed:
		case <-beat.C:
		case <-n.over:
			return
		}
		pause.Reset(0)
	}
}

// signed is what this node says of itself.
func (n *Node) signed() *peerv1.SignedAdvert {
	n.mu.Lock()
	a := n.worker.Advert()
	n.mu.Unlock()
	b, err := proto.Marshal(marketwire.AdvertOut(a))
	if err != nil {
		panic("virtual: encode an advert: " + err.Error()) // of our own making
	}
	sig, err := n.mesh.Sign(b)
	if err != nil {
		panic("virtual: sign an advert: " + err.Error())
	}
	return &peerv1.SignedAdvert{Advert: b, Signature: sig}
}

func (n *Node) hearAdvert(data []byte) {
	s := new(peerv1.SignedAdvert)
	if n.owner != nil && proto.Unmarshal(data, s) == nil {
		n.take(s, scheduler.SourceGossip)
	}
}

// take feeds the owner an advert that is news, if its node signed it.
func (n *Node) take(s *peerv1.SignedAdvert, source scheduler.Source) {
	p := new(peerv1.Advert)
	if proto.Unmarshal(s.GetAdvert(), p) != nil {
		return
	}
	a := marketwire.AdvertIn(p)
	n.mu.Lock()
	old, known := n.adverts[a.Node]
	n.mu.Unlock()
	if a.Node == peer(n.mesh.PeerID()) || a.Validate() != nil || known && a.Seq < old.seq ||
		n.mesh.Verify(mesh.PeerID(a.Node), s.Advert, s.Signature) != nil {
		return
	}
	n.mu.Lock()
	n.adverts[a.Node] = heard{a.Seq, s}
	n.mu.Unlock()
	n.stepOwner(market.AdvertSeen{Advert: a, Source: source})
}

// heard is an advert that was taken, to be handed on in hello.
type heard struct {
	seq    uint64
	signed *peerv1.SignedAdvert
}

// Local is mesh.Hello's: the own advert and, of an owner, its view.
func (n *Node) Local(mesh.PeerID) []byte {
	v := &peerv1.View{Adverts: []*peerv1.SignedAdvert{n.signed()}}
	size := 0
	n.mu.Lock()
	for _, h := range n.adverts {
		if size += proto.Size(h.signed) + 8; size > maxView {
			break
		}
		v.Adverts = append(v.Adverts, h.signed)
	}
	n.mu.Unlock()
	b, err := proto.Marshal(v)
	if err != nil {
		panic("virtual: encode a view: " + err.Error())
	}
	return b
}

// Remote is mesh.Hello's.
func (n *Node) Remote(_ mesh.PeerID, _ mesh.Via, payload []byte) {
	v := new(peerv1.View)
	if n.owner == nil || proto.Unmarshal(payload, v) != nil {
		return
	}
	for _, s := range v.Adverts {
		n.take(s, scheduler.SourceHello)
	}
}

// hearOffer takes an open offer from gossip.
func (n *Node) hearOffer(from mesh.PeerID, data []byte) {
	n.w.mu.Lock()
	heard := n.w.heard
	n.w.mu.Unlock()
	if heard != nil {
		heard(n.i)
	}
	p := new(peerv1.OpenOffer)
	if proto.Unmarshal(data, p) != nil {
		return
	}
	if o, err := marketwire.OpenOfferIn(peer(from), p); err == nil {
		n.stepWorker(o)
	}
}

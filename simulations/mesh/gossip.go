package mesh

import (
	"cmp"
	"slices"
	"strings"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
)

// topic is one shard of the adverts.
type topic struct {
	name   scheduler.Topic
	nodes  []int32
	owners []int32 // who listens, in order
}

// makeTopics cuts the nodes into topics and lets the owners choose theirs.
func (w *World) makeTopics() {
	type group struct {
		scheduler.Census
		nodes []int32
	}
	var zones []string
	var groups []group
	find := func(class, zone string) int {
		return slices.IndexFunc(groups, func(g group) bool { return g.Class == class && g.Zone == zone })
	}
	// Nodes of one zone stand side by side: remember where the last were.
	last := map[string]int{} // by class, in the present zone
	zone := ""
	for i := range w.nodes {
		c := &w.cfg.Nodes[i]
		if i == 0 || c.Zone != zone {
			zone = c.Zone
			clear(last)
			if !slices.Contains(zones, zone) {
				zones = append(zones, zone)
			}
		}
		class := c.Class()
		g, ok := last[class]
		if !ok {
			if g = find(class, zone); g < 0 {
				g = len(groups)
				groups = append(groups, group{Census: scheduler.Census{Class: class, Zone: zone}})
			}
			last[class] = g
		}
		groups[g].Nodes++
		groups[g].nodes = append(groups[g].nodes, int32(i))
		w.nodes[i].zone = int32(slices.Index(zones, zone))
	}
	slices.SortFunc(groups, func(a, b group) int {
		return cmp.Or(strings.Compare(a.Class, b.Class), strings.Compare(a.Zone, b.Zone))
	})
	census := make([]scheduler.Census, len(groups))
	index := map[scheduler.Topic]int32{}
	for i := range groups {
		g := &groups[i]
		g.Depth = scheduler.Depth(0, g.Nodes)
		census[i] = g.Census
		for _, n := range g.nodes {
			name := scheduler.TopicOf(&w.cfg.Nodes[n], nodeID(int(n)), g.Depth)
			t, ok := index[name]
			if !ok {
				t = int32(len(w.topics))
				index[name] = t
				w.topics = append(w.topics, topic{name: name})
			}
			w.nodes[n].topic = t
			w.topics[t].nodes = append(w.topics[t].nodes, n)
		}
	}
	for i := range w.owners {
		o := &w.owners[i]
		near := len(w.nodes) * i / len(w.owners) // the node that it runs on
		o.zone = w.nodes[near].zone
		for _, name := range scheduler.Subscriptions(o.id.Peer, w.cfg.Nodes[near].Zone, census) {
			if t, ok := index[name]; ok {
				o.topics = append(o.topics, t)
				w.topics[t].owners = append(w.topics[t].owners, int32(i))
			}
		}
	}
}

// greet gives an owner the adverts of its topics, as a handshake does.
func (w *World) greet(o *owner) {
	for _, t := range o.topics {
		for _, n := range w.topics[t].nodes {
			o.market.Step(0, &market.AdvertSeen{Advert: w.nodes[n].worker.Advert(), Source: scheduler.SourceHello})
		}
	}
}

// startGossip schedules the first gossip of a node, at its own phase.
func (n *node) startGossip(w *World) {
	every := int64(w.cfg.GossipEvery)
	if every <= 0 {
		return
	}
	p := w.partOf(n.actor)
	p.cur = n.actor
	p.timer(int64(w.draw(n.actor, n.actor, 0)%uint64(every)), gossip, 0, nil)
}

// gossip sends a node's advert to all that listen. They share one copy.
func (p *part) gossip(n *node) {
	a := &market.AdvertSeen{Advert: n.worker.Advert(), Source: scheduler.SourceGossip}
	n.said = a.Advert.Seq
	p.stats.Published++
	for _, o := range p.w.topics[n.topic].owners {
		p.send(int32(len(p.w.nodes))+o, toOwner, MsgAdvert, a)
	}
}

// publish gossips an open offer to the nodes of the topics that its owner
// listens to.
func (w *World) publish(p *part, m *market.OpenOffer) {
	o := &w.owners[int(p.cur)-len(w.nodes)]
	for _, t := range o.topics {
		for _, n := range w.topics[t].nodes {
			p.send(n, toWorker, MsgOpenOffer, m)
		}
	}
}

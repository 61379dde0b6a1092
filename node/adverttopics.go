package node

import (
	"slices"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/scheduler"
)

const (
	// heartbeatLarge is the heartbeat in meshes above fewNodes.
	heartbeatLarge = 15 * time.Second
	fewNodes       = 64
	// replanEvery bounds how often topics are looked over.
	replanEvery = 15 * time.Second
)

// advertTopics decides on which topics this node says its advert and which it
// hears. Up to scheduler.MaxTopicNodes nodes share topicAdverts. Above that each
// speaks on the topic of its class, zone and hash bits, and only now and then on
// topicAdverts, which then carries a sample: by it every owner learns which
// classes and zones there are, and about how many nodes. What one node hears
// does not grow with the mesh either way.
//
// It belongs to one goroutine.
type advertTopics struct {
	self   scheduler.NodeID
	depths map[census]int // how deep the topics of a class and zone are cut
	beats  uint64         // heartbeats so far
}

type census struct{ class, zone string }

// plan gives the topics to say own on and those to hear. known are all nodes
// that were heard of lately, this one included.
func (t *advertTopics) plan(own *scheduler.Advert, known []scheduler.Advert) (say string, hear []string) {
	if len(known) <= scheduler.MaxTopicNodes {
		clear(t.depths)
		return topicAdverts, []string{topicAdverts}
	}
	if t.depths == nil {
		t.depths = map[census]int{}
	}
	shards := map[census]map[uint32]int{}
	for i := range known {
		c := &known[i].Capacity
		k := census{c.Class(), c.Zone}
		if shards[k] == nil {
			shards[k] = map[uint32]int{}
		}
		shards[k][scheduler.TopicOf(c, known[i].Node, t.depths[k]).Shard]++
	}
	var all []scheduler.Census
	for k, counts := range shards { // Subscriptions does not mind the order
		// Of shards that are not heard only a sample is known: the fullest one
		// stands for all, as hashing spreads nodes evenly.
		most := 0
		for _, n := range counts {
			most = max(most, n)
		}
		nodes := most << t.depths[k]
		t.depths[k] = scheduler.Depth(t.depths[k], nodes)
		all = append(all, scheduler.Census{Class: k.class, Zone: k.zone, Nodes: nodes, Depth: t.depths[k]})
	}
	c := &own.Capacity
	say = advertTopic(scheduler.TopicOf(c, t.self, t.depths[census{c.Class(), c.Zone}]))
	hear = []string{topicAdverts, say}
	for _, x := range scheduler.Subscriptions(t.self, c.Zone, all) {
		if name := advertTopic(x); !slices.Contains(hear, name) {
			hear = append(hear, name)
		}
	}
	return say, hear
}

func advertTopic(t scheduler.Topic) string { return topicAdverts + "/" + t.String() }

// sampled says whether this heartbeat goes to topicAdverts too: of all nodes
// together about scheduler.MaxTopicNodes do so in one period.
func (t *advertTopics) sampled(nodes int) bool {
	t.beats++
	period := uint64(max(1, nodes/scheduler.MaxTopicNodes))
	return (t.beats+scheduler.HashOf(t.self))%period == 0
}

// listener keeps the subscriptions that plan asks for.
type listener struct {
	gossip mesh.Gossip
	heard  func(mesh.PeerID, []byte)
	subs   map[string]func()
}

// hear subscribes to what is new and ends what is not wanted any more.
func (l *listener) hear(topics []string) error {
	if l.subs == nil {
		l.subs = map[string]func(){}
	}
	for name, cancel := range l.subs {
		if !slices.Contains(topics, name) {
			cancel()
			delete(l.subs, name)
		}
	}
	for _, name := range topics {
		if l.subs[name] != nil {
			continue
		}
		cancel, err := l.gossip.Subscribe(name, l.heard)
		if err != nil {
			return err
		}
		l.subs[name] = cancel
	}
	return nil
}

func (l *listener) close() {
	for name, cancel := range l.subs {
		cancel()
		delete(l.subs, name)
	}
}

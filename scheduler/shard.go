package scheduler

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Adverts travel on topics of a bounded number of nodes, so that what a node
// hears does not grow with the mesh: one topic per GPU class and zone, cut by
// leading bits of the node's hash where that is still too many.
const (
	// MaxTopicNodes is how many nodes a topic may hold: 256 adverts of 512 bytes
	// every 15 s are 9 KiB/s, sevenfold on a gossip mesh.
	MaxTopicNodes = 256
	// topicFill is how many a shard holds on average when it is cut: hashing
	// spreads nodes with a deviation of sqrt(192) = 14, so that MaxTopicNodes is
	// 4.6 deviations away.
	topicFill = 192
	// topicMerge is when two shards become one again: well below topicFill, so that
	// a mesh that breathes does not flap.
	topicMerge = 64
	// OwnTopics bounds the topics of its own zone that an owner listens to.
	OwnTopics = 8
	// FarTopics is how many others it listens to, chosen at random: with two, the
	// better one is rarely full (the power of two choices), and no owner is blind
	// outside its zone.
	FarTopics = 2
	maxDepth  = 16 // twelve million nodes of a class in one zone
)

// Topic is one shard of the adverts of a class in a zone.
type Topic struct {
	Class string // of the first device; "" = no GPU
	Zone  string
	Depth int    // how many bits of the hash choose the shard
	Shard uint32 // these bits
}

// String is the topic's name on the wire.
func (t Topic) String() string {
	return strings.Join([]string{orDash(t.Class), orDash(t.Zone), strconv.Itoa(t.Depth), strconv.FormatUint(uint64(t.Shard), 10)}, "/")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// TopicOf is where a node of this capacity publishes at a depth.
func TopicOf(c *Capacity, id NodeID, depth int) Topic {
	return Topic{Class: c.Class(), Zone: c.Zone, Depth: depth, Shard: shardOf(id, depth)}
}

// shardOf mixes the hash: ids with a common beginning differ least in the first
// bits of FNV.
func shardOf(id NodeID, depth int) uint32 {
	if depth <= 0 {
		return 0
	}
	return uint32(hashStep(3, HashOf(id)) >> (64 - min(depth, maxDepth)))
}

// Depth is how deep the topics of nodes many nodes of one class and zone are
// cut, when they were cut to depth before. Who hears seen nodes on one topic
// takes seen<<depth for nodes.
func Depth(depth, nodes int) int {
	fits := func(depth int) bool {
		if depth == 0 {
			return nodes <= MaxTopicNodes
		}
		return nodes <= topicFill<<depth
	}
	for depth < maxDepth && !fits(depth) {
		depth++
	}
	for depth > 0 && nodes <= topicMerge<<depth && fits(depth-1) {
		depth--
	}
	return depth
}

// Census is what is known of the nodes of a class in a zone.
type Census struct {
	Class string
	Zone  string
	Nodes int
	Depth int // of its topics
}

// Subscriptions are the topics that an owner listens to: all while the mesh is
// small, else OwnTopics at most of its own zone and FarTopics of the others. It
// depends on nothing but its arguments; the order of cs does not matter.
func Subscriptions(self NodeID, zone string, cs []Census) []Topic {
	var own, far []Topic
	total := 0
	for _, c := range cs {
		total += c.Nodes
		for shard := range uint32(1) << min(max(c.Depth, 0), maxDepth) {
			t := Topic{Class: c.Class, Zone: c.Zone, Depth: c.Depth, Shard: shard}
			if c.Zone == zone {
				own = append(own, t)
			} else {
				far = append(far, t)
			}
		}
	}
	if total <= (OwnTopics+FarTopics)*topicFill {
		own, far = append(own, far...), nil
	} else {
		own, far = nearestTopics(self, own, OwnTopics), nearestTopics(self, far, FarTopics)
	}
	all := append(own, far...)
	slices.SortFunc(all, compareTopics)
	return all
}

// nearestTopics are the limit topics that the hash of self and topic chooses
// (rendezvous hashing: when a topic comes or goes, few owners move).
func nearestTopics(self NodeID, ts []Topic, limit int) []Topic {
	if len(ts) <= limit {
		return ts
	}
	weight := func(t Topic) uint64 { return hashStep(HashOf(self), HashOf(NodeID(t.String()))) }
	slices.SortFunc(ts, func(a, b Topic) int {
		return cmp.Or(cmp.Compare(weight(a), weight(b)), compareTopics(a, b))
	})
	return ts[:limit]
}

func compareTopics(a, b Topic) int {
	return cmp.Or(strings.Compare(a.Class, b.Class), strings.Compare(a.Zone, b.Zone),
		cmp.Compare(a.Depth, b.Depth), cmp.Compare(a.Shard, b.Shard))
}

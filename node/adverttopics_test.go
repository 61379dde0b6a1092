package node

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/meshtest"
	"github.com/beammesh/beammesh/scheduler"
)

// crowd is a mesh of n nodes: one in eight with an H100, half of them in zone b.
func crowd(n int) []scheduler.Advert {
	var all []scheduler.Advert
	for i := range n {
		a := scheduler.Advert{Node: scheduler.NodeID(fmt.Sprintf("node-%05d", i)), Boot: "b", Seq: 1}
		a.Capacity.Zone = []string{"a", "b"}[i%2]
		if i%8 == 0 {
			a.Capacity.Devices = []scheduler.Device{{ID: "0", Class: "H100", FreeMilli: 1000}}
		}
		all = append(all, a)
	}
	return all
}

// TestSmallMeshesShareOneTopic: nothing is cut where one topic is enough.
func TestSmallMeshesShareOneTopic(t *testing.T) {
	all := crowd(scheduler.MaxTopicNodes)
	topics := advertTopics{self: all[0].Node}
	say, hear := topics.plan(&all[0], all)
	if say != topicAdverts || !slices.Equal(hear, []string{topicAdverts}) {
		t.Errorf("says on %s, hears %v", say, hear)
	}
}

// TestLargeMeshesAreCut: whatever the size, no topic has more than
// scheduler.MaxTopicNodes speakers, a node hears a bounded number of topics, and
// the sample on the common topic stays as large as one topic.
func TestLargeMeshesAreCut(t *testing.T) {
	for _, n := range []int{300, 1000, 4000, 16000} {
		all := crowd(n)
		topics := advertTopics{self: all[0].Node}
		say, hear := topics.plan(&all[0], all)
		if !slices.Contains(hear, topicAdverts) || !slices.Contains(hear, say) || say == topicAdverts {
			t.Fatalf("%d nodes: says on %s, hears %v", n, say, hear)
		}
		if n >= 4000 && len(hear) > 2+scheduler.OwnTopics+scheduler.FarTopics {
			t.Errorf("%d nodes: one hears %d topics", n, len(hear))
		}
		// All know the same nodes, so all cut alike.
		speakers, samples := map[string]int{}, 0
		for i := range all {
			c := &all[i].Capacity
			speakers[advertTopic(scheduler.TopicOf(c, all[i].Node, topics.depths[census{c.Class(), c.Zone}]))]++
			one := advertTopics{self: all[i].Node}
			for range 100 {
				if one.sampled(n) {
					samples++
				}
			}
		}
		for topic, k := range speakers {
			if k > scheduler.MaxTopicNodes {
				t.Errorf("%d nodes: %d speak on %s", n, k, topic)
			}
		}
		if each := samples / 100; each > 2*scheduler.MaxTopicNodes || each == 0 {
			t.Errorf("%d nodes: %d of them sampled in a period", n, each)
		}
	}
}

// TestOwnersHearTheTopicOfANode: a node of a large mesh speaks where those that
// hear its topic are, and one that changes its topics hears both.
func TestOwnersHearTheTopicOfANode(t *testing.T) {
	w := meshtest.NewNetwork()
	a, b := newView(t, w, "a"), newView(t, w, "b")
	for _, v := range []*view{a, b} { // both know a large mesh
		v.set(says(v.node, "boot", 1))
		v.adverts.mu.Lock()
		for _, ad := range crowd(400) {
			v.known[mesh.PeerID(ad.Node)] = known{advert: ad, heard: time.Now()}
		}
		v.adverts.mu.Unlock()
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{}, 2)
	for _, v := range []*view{a, b} {
		go func() { v.run(ctx); done <- struct{}{} }()
	}
	defer func() { cancel(); <-done; <-done }()
	deadline := time.After(time.Minute)
	for seq := uint64(2); ; seq++ {
		a.set(says(a.node, "boot", seq))
		select {
		case <-b.more:
			if _, ok := b.of(a.node.PeerID()); ok {
				return
			}
		case <-time.After(200 * time.Millisecond): // b may not have subscribed yet: say it again
		case <-deadline:
			t.Fatal("the advert did not get through")
		}
	}
}

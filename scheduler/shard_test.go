package scheduler

import (
	"fmt"
	"slices"
	"testing"
)

// A topic holds 256 nodes at most, whatever the number of nodes of a class.
func TestTopicsAreBounded(t *testing.T) {
	c := box(8, 32, "H100")
	for _, n := range []int{1, 256, 257, 1_000, 10_000, 100_000} {
		depth := Depth(0, n)
		counts := map[Topic]int{}
		for i := range n {
			counts[TopicOf(&c, NodeID(fmt.Sprintf("12D3KooWnode%06d", i)), depth)]++
		}
		most := 0
		for _, k := range counts {
			most = max(most, k)
		}
		if most > MaxTopicNodes || len(counts) > 1<<depth {
			t.Errorf("%d nodes at depth %d: %d topics, %d nodes in one", n, depth, len(counts), most)
		}
		if depth > 0 && n > MaxTopicNodes && n <= topicFill<<(depth-1) {
			t.Errorf("%d nodes are cut to depth %d, deeper than needed", n, depth)
		}
	}
}

// A mesh that breathes around a border does not flap.
func TestDepthHasHysteresis(t *testing.T) {
	for _, c := range []struct{ depth, nodes, want int }{
		{0, 256, 0}, {0, 257, 1}, {1, 250, 1}, {1, 129, 1}, {1, 128, 0}, {3, 0, 0}, {0, 0, 0}, {2, 10_000, 6}, {6, 10_000, 6},
	} {
		if got := Depth(c.depth, c.nodes); got != c.want {
			t.Errorf("Depth(%d, %d) = %d, want %d", c.depth, c.nodes, got, c.want)
		}
	}
}

func TestSubscriptions(t *testing.T) {
	small := []Census{{"", "a", 100, 0}, {"H100", "a", 50, 0}, {"H100", "b", 500, 2}}
	if got := Subscriptions("me", "a", small); len(got) != 6 {
		t.Errorf("a small mesh is heard whole: got %v", got)
	}
	var large []Census
	for zone := range 40 {
		for _, class := range []string{"", "H100", "L4"} {
			large = append(large, Census{class, fmt.Sprint("z", zone), 700, Depth(0, 700)})
		}
	}
	got := Subscriptions("me", "z3", large)
	own := 0
	for _, s := range got {
		if s.Zone == "z3" {
			own++
		}
	}
	if own != OwnTopics || len(got)-own != FarTopics {
		t.Errorf("%d of the own zone and %d others: %v", own, len(got)-own, got)
	}
	slices.Reverse(large)
	if again := Subscriptions("me", "z3", large); !slices.Equal(again, got) {
		t.Errorf("the order of the census matters: %v, %v", again, got)
	}
	// Others listen to others, so that together they hear all.
	heard := map[Topic]bool{}
	for i := range 400 {
		for _, s := range Subscriptions(NodeID(fmt.Sprint("owner", i)), fmt.Sprint("z", i%40), large) {
			heard[s] = true
		}
	}
	if len(heard) != 40*3*4 {
		t.Errorf("%d of %d topics have a listener", len(heard), 40*3*4)
	}
	if s := got[0].String(); s != fmt.Sprintf("%s/%s/%d/%d", orDash(got[0].Class), orDash(got[0].Zone), got[0].Depth, got[0].Shard) {
		t.Errorf("name: %s", s)
	}
}

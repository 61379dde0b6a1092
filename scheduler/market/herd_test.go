package market_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/market/markettest"
)

// herd fills 60 nodes of 8 GPUs from several owners whose views are as old as
// the start: no gossip reaches anyone. It gives how many of the tasks were
// placed by asking, and the asks it took for each.
func herd(t *testing.T, owners int, ignoreReplies bool) (placedPercent int, asksPerTask float64) {
	const nodes, each = 60, 8
	s := markettest.New(markettest.Config{
		Seed: 1, Latency: time.Millisecond, Jitter: time.Millisecond, NoGossip: true, NoDHT: true,
		Owner:  market.OwnerConfig{AskWidth: 8, IgnoreReplies: ignoreReplies, NoHistory: true},
		Worker: market.WorkerConfig{NoHistory: true},
	})
	for i := range nodes {
		s.AddNode(scheduler.NodeID(fmt.Sprintf("box%02d", i)), markettest.Box(64, 256,
			"A100-80", "A100-80", "A100-80", "A100-80", "A100-80", "A100-80", "A100-80", "A100-80"))
	}
	d := scheduler.Demand{CPUMillis: 1000, MemoryMiB: 1024, GPUs: []gpu.Want{{Class: "A100-80", Count: 1}}}
	const tasks = nodes * each * 95 / 100
	for i := range tasks {
		owner := scheduler.NodeID(fmt.Sprintf("box%02d", i%owners))
		s.Submit(owner, market.Offer{ID: market.OfferID(fmt.Sprintf("t%d", i)), Demand: d})
		s.Run(20 * time.Millisecond)
	}
	asked := 0
	for _, p := range s.Placements {
		if !p.Pulled {
			asked++
		}
	}
	if len(s.Violations) > 0 {
		t.Fatalf("broken promises: %v", s.Violations)
	}
	return asked * 100 / tasks, float64(s.Counts["Ask"]) / float64(tasks)
}

// TestStaleViewsDoNotHerd is the regression test of the herd: with views that
// gossip never refreshes, the adverts in the answers alone keep owners from all
// running to nodes that are full. With that refresh taken out the same load
// fails, which proves that the test can see a herd. (With several owners it does
// not collapse any more: those that are refused look further down, each at
// others.)
func TestStaleViewsDoNotHerd(t *testing.T) {
	for _, owners := range []int{1, 16} {
		placed, asks := herd(t, owners, false)
		t.Logf("%d owners, replies refresh the view: %d %% placed by asking, %.1f asks per task", owners, placed, asks)
		if placed < 99 || asks > 9 {
			t.Errorf("%d owners: %d %% placed by asking with %.1f asks per task, want at least 99 %% and at most 9", owners, placed, asks)
		}
		placedOff, asksOff := herd(t, owners, true)
		t.Logf("%d owners, replies ignored: %d %% placed by asking, %.1f asks per task", owners, placedOff, asksOff)
		if placedOff >= 99 && asksOff <= 9 || owners == 1 && placedOff > 70 {
			t.Errorf("%d owners without the refresh: %d %% placed by asking with %.1f asks; the test would not notice a herd", owners, placedOff, asksOff)
		}
	}
}

package market_test

import (
	"fmt"
	"testing"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
)

// TestFewAreAskedFirstMoreAreShown: the first round asks FirstWidth nodes, and
// an explanation ranks as many as a further round would ask.
func TestFewAreAskedFirstMoreAreShown(t *testing.T) {
	o := market.NewOwner(market.OwnerConfig{ID: market.OwnerID{Peer: "me", Epoch: 1}, FirstWidth: 2})
	r := scheduler.Resources{CPUMillis: 4000, MemoryMiB: 4096, DiskMiB: 1 << 16}
	for i := range 6 {
		o.Step(0, market.AdvertSeen{Source: scheduler.SourceGossip, Advert: scheduler.Advert{Node: scheduler.NodeID(fmt.Sprintf("box%d", i)),
			Name: fmt.Sprintf("box%d", i), Boot: "b", Seq: 1, Capacity: scheduler.Capacity{Total: r, Free: r, Arch: "amd64", Isolation: []string{"trusted"}}}})
	}
	var asked []scheduler.NodeID
	for _, a := range o.Step(0, market.Submit{Offer: market.Offer{ID: "x", Demand: scheduler.Demand{CPUMillis: 1000, MemoryMiB: 128}}}) {
		if ask, ok := a.(market.SendAsk); ok {
			asked = append(asked, ask.To)
		}
	}
	e, ok := o.Explain("x")
	if !ok || len(asked) != 2 || len(e.Candidates) != 4 || e.Asked != 2 {
		t.Fatalf("asked %v, explained with %d candidates, %d asked", asked, len(e.Candidates), e.Asked)
	}
	if e.Candidates[0].Node != asked[0] || e.Candidates[1].Node != asked[1] {
		t.Errorf("asked %v, but the best are %s and %s", asked, e.Candidates[0].Node, e.Candidates[1].Node)
	}
}

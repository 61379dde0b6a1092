package market_test

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/market/markettest"
	"pgregory.net/rapid"
)

// TestChaos runs random loads over a network that loses, repeats and delays
// messages, with nodes that die and come back. All along no device, core or MiB
// is granted twice (the harness checks after every step). When the network heals:
// every lease on a worker is one that its owner counts, every offer is placed or
// waits for a stated reason, and when all is withdrawn all capacity is back and
// the owners' views are exact.
func TestChaos(t *testing.T) {
	rapid.Check(t, chaos)
}

func chaos(t *rapid.T) {
	bad := true
	// On a sound network views must become exact without any heartbeat.
	sound := rapid.Bool().Draw(t, "sound network")
	loss, dup := 0, rapid.IntRange(0, 20).Draw(t, "repeated %")
	if !sound {
		loss = rapid.IntRange(1, 30).Draw(t, "loss %")
	}
	n := 0
	cfg := markettest.Config{
		Seed: rapid.Uint64().Draw(t, "seed"), Latency: 2 * time.Millisecond,
		Jitter:   time.Duration(rapid.IntRange(0, 300).Draw(t, "jitter ms")) * time.Millisecond,
		NoGossip: rapid.Bool().Draw(t, "no gossip"), StartTime: 50 * time.Millisecond, StopTime: 20 * time.Millisecond,
		DetectDown: 100 * time.Millisecond, Resubmit: true,
		Owner:  market.OwnerConfig{AskWidth: rapid.IntRange(1, 4).Draw(t, "width")},
		Worker: market.WorkerConfig{OwnerGap: 20 * time.Second},
	}
	if !sound {
		cfg.Heartbeat = 5 * time.Second
	}
	// Fates come from a counter, not from the library's source: messages are
	// too many to draw each.
	cfg.Filter = func(from, to scheduler.NodeID, msg any) markettest.Fate {
		if !bad || from == to {
			return markettest.Deliver
		}
		if _, hello := msg.(markettest.Hello); hello {
			return markettest.Deliver
		}
		n++
		switch x := n * 7919 % 100; {
		case x < loss:
			return markettest.Drop
		case x < loss+dup:
			return markettest.Twice
		}
		return markettest.Deliver
	}
	if file := os.Getenv("CHAOS_TRACE"); file != "" { // of the last run
		f, err := os.Create(file)
		if err != nil {
			t.Fatalf("%v", err)
		}
		defer f.Close()
		cfg.Trace = func(l string) { fmt.Fprintln(f, l) }
	}
	s := markettest.New(cfg)
	boxes := []scheduler.Capacity{
		markettest.Box(2, 8), markettest.Box(4, 16, "H100"), markettest.Box(4, 16, "H100", "RTX4090"), markettest.Box(8, 4),
	}
	count := rapid.IntRange(2, 5).Draw(t, "nodes")
	for i := range count {
		s.AddNode(scheduler.NodeID(fmt.Sprintf("box%d", i)), boxes[i%len(boxes)])
	}
	pick := func() *markettest.Node { return s.Nodes()[rapid.IntRange(0, count-1).Draw(t, "node")] }
	type key struct {
		owner scheduler.NodeID
		offer market.OfferID
	}
	var offers []key
	for range rapid.IntRange(1, 60).Draw(t, "steps") {
		switch rapid.IntRange(0, 9).Draw(t, "op") {
		case 0, 1, 2, 3:
			if o := pick(); o.Up {
				d := scheduler.Demand{CPUMillis: int64(rapid.IntRange(1, 9).Draw(t, "cpu")) * 500, MemoryMiB: 512}
				switch rapid.IntRange(0, 3).Draw(t, "gpu") {
				case 0:
					d.GPUs = []gpu.Want{{Class: "H100", Count: 1}}
				case 1:
					d.GPUs, d.GPUMilli = []gpu.Want{{Class: "RTX4090", Count: 1}, {Class: gpu.Any, Count: 1}}, 400
				}
				id := market.OfferID(fmt.Sprintf("f%d", len(offers)))
				offers = append(offers, key{o.ID, id})
				s.Submit(o.ID, market.Offer{ID: id, Demand: d, Group: "g", Headless: rapid.Bool().Draw(t, "headless")})
			}
		case 4:
			if len(offers) > 0 {
				k := offers[rapid.IntRange(0, len(offers)-1).Draw(t, "which")]
				s.StepOwner(k.owner, market.Withdraw{Offer: k.offer, Reason: "cancelled"})
			}
		case 5:
			if o := pick(); o.Up {
				if ls := o.Worker.Leases(); len(ls) > 0 {
					s.StepWorker(o.ID, market.LeaseDone{Lease: ls[0].Lease, Reason: market.EndExited})
				}
			}
		case 6:
			if o := pick(); o.Up && !sound {
				s.Kill(o.ID)
			}
		case 7:
			s.Restart(pick().ID)
		default:
			s.Run(time.Duration(rapid.IntRange(1, 4000).Draw(t, "ms")) * time.Millisecond)
		}
	}

	// The network heals, everybody is back.
	bad = false
	for _, n := range s.Nodes() {
		s.Restart(n.ID)
	}
	s.Run(2 * time.Minute)
	counted := map[key]market.OfferState{}
	for _, n := range s.Nodes() {
		for _, x := range n.Owner.Offers() {
			counted[key{n.ID, x.Offer}] = x
			if x.State == market.StatePlacing {
				t.Fatalf("%s is still being placed: %+v", x.Offer, x)
			}
		}
	}
	held := map[key]bool{}
	for _, n := range s.Nodes() {
		for _, l := range n.Worker.Leases() {
			k := key{l.Owner.Peer, l.Offer}
			x, ok := counted[k]
			if l.Fence.Epoch < epochOf(s, l.Owner.Peer) {
				continue // an orphan that waits for its owner's word
			}
			if !ok || x.Lease != l.Lease || x.Node != n.ID || x.Fence != l.Fence {
				t.Fatalf("%s runs %s for %s, whose owner says %+v", n.ID, l.Lease, l.Owner, x)
			}
			held[k] = true
		}
	}
	for k, x := range counted {
		if x.State == market.StatePlaced && !held[k] {
			t.Fatalf("%s counts %s on %s, which does not have it", k.owner, x.Lease, x.Node)
		}
	}

	// All is taken back.
	for _, n := range s.Nodes() {
		for _, x := range n.Owner.Offers() {
			s.StepOwner(n.ID, market.Withdraw{Offer: x.Offer, Reason: "end"})
		}
		for _, l := range slices.Clone(n.Worker.Leases()) {
			if l.Fence.Epoch < epochOf(s, l.Owner.Peer) {
				s.StepOwner(l.Owner.Peer, market.Disown{Lease: market.LeaseRef{Offer: l.Offer, Lease: l.Lease, Fence: l.Fence}, Node: n.ID})
			}
		}
	}
	s.Run(time.Minute)
	for _, n := range s.Nodes() {
		c := n.Worker.Capacity()
		if c.Free != c.Total || c.Queue != 0 || len(n.Worker.Leases()) != 0 {
			t.Fatalf("%s did not get all back: %+v of %+v, %d leases", n.ID, c.Free, c.Total, len(n.Worker.Leases()))
		}
		for _, d := range c.Devices {
			if d.FreeMilli != scheduler.GPUExclusive {
				t.Fatalf("%s: device %s has %d free", n.ID, d.ID, d.FreeMilli)
			}
		}
	}
	for _, n := range s.Nodes() {
		for _, m := range s.Nodes() {
			if cfg.NoGossip && n != m {
				continue // nothing told it
			}
			if c, up := n.Owner.View().Effective(m.ID); !up || c.Free != m.Worker.Capacity().Free {
				a, _ := n.Owner.View().Advert(m.ID)
				t.Fatalf("%s sees %+v free on %s (boot %s seq %d, up %v), it has %+v (%s %d): %v", n.ID, c.Free, m.ID, a.Boot, a.Seq, up,
					m.Worker.Capacity().Free, m.Worker.Advert().Boot, m.Worker.Advert().Seq, n.Owner.View().Refusals(&scheduler.Demand{CPUMillis: 1 << 30}, 9))
			}
		}
	}
	if len(s.Violations) > 0 {
		t.Fatalf("broken promises: %v", s.Violations)
	}
}

func epochOf(s *markettest.Sim, id scheduler.NodeID) uint64 { return s.Node(id).Owner.ID().Epoch }

// TestSameSeedSameTrace: a run is a function of its seed.
func TestSameSeedSameTrace(t *testing.T) {
	trace := func(seed uint64) string {
		var out []byte
		s := markettest.New(markettest.Config{
			Seed: seed, Latency: time.Millisecond, Jitter: 20 * time.Millisecond, StartTime: 50 * time.Millisecond,
			RunFor: func(id market.OfferID) time.Duration { return time.Duration(len(id)) * 300 * time.Millisecond },
			Trace:  func(l string) { out = append(append(out, l...), '\n') },
		})
		for i := range 12 {
			s.AddNode(scheduler.NodeID(fmt.Sprintf("box%d", i)), markettest.Box(4, 16, "H100"))
		}
		for i := range 150 {
			d := scheduler.Demand{CPUMillis: 1000, MemoryMiB: 1024}
			if i%3 == 0 {
				d.GPUs = []gpu.Want{{Class: gpu.Any, Count: 1}}
			}
			s.Submit(scheduler.NodeID(fmt.Sprintf("box%d", i%5)), market.Offer{ID: market.OfferID(fmt.Sprintf("f%d", i)), Demand: d})
			s.Run(7 * time.Millisecond)
		}
		s.Kill("box3")
		s.Run(30 * time.Second)
		return string(out)
	}
	a, b, c := trace(1), trace(1), trace(2)
	if a != b {
		t.Error("the same seed gave two traces:\n", firstDifference(a, b))
	}
	if a == c {
		t.Error("another seed gave the same trace: the jitter does nothing")
	}
}

package market_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/market/markettest"
	"pgregory.net/rapid"
)

// These tests send messages that no honest peer would: out of order, for things
// that do not exist, with impossible amounts. Nothing may panic or hang, a worker's
// books must balance, and its tables must stay within their bounds.

type draw struct{ *rapid.T }

func (d draw) n(max int, what string) int { return rapid.IntRange(0, max).Draw(d.T, what) }

func (d draw) node() scheduler.NodeID {
	return scheduler.NodeID(fmt.Sprintf("box%d", d.n(3, "node")))
}

func (d draw) owner() market.OwnerID {
	return market.OwnerID{Peer: d.node(), Epoch: uint64(d.n(2, "epoch"))}
}

func (d draw) offer() market.OfferID {
	return market.OfferID(rapid.SampledFrom([]string{"", "a", "b", "c", "d"}).Draw(d.T, "offer"))
}

func (d draw) lease(o market.OfferID) market.LeaseID {
	return market.LeaseID(fmt.Sprintf("%s-%d", o, d.n(3, "lease")))
}

func (d draw) fence() market.Fence {
	return market.Fence{Epoch: uint64(d.n(2, "fence epoch")), Attempt: uint32(d.n(3, "attempt"))}
}

func (d draw) demand() scheduler.Demand {
	x := scheduler.Demand{
		CPUMillis: rapid.SampledFrom([]int64{0, 500, 1000, 4000, 1 << 40, -1}).Draw(d.T, "cpu"),
		MemoryMiB: rapid.SampledFrom([]int64{0, 512, 1 << 50, -7}).Draw(d.T, "memory"),
		GPUMilli:  rapid.SampledFrom([]int64{0, 300, 1000, 5000}).Draw(d.T, "milli"),
	}
	if d.n(1, "gpu") == 0 {
		x.GPUs = []gpu.Want{{Class: rapid.SampledFrom([]string{"", "H100", gpu.Any}).Draw(d.T, "class"), Count: d.n(3, "count") - 1}}
	}
	return x
}

func (d draw) advert() scheduler.Advert {
	c := markettest.Box(int64(d.n(8, "cores")), 16, "H100", "H100")
	c.Free.CPUMillis = rapid.SampledFrom([]int64{0, 500, c.Total.CPUMillis, 1 << 45, -3}).Draw(d.T, "free")
	c.Devices[0].FreeMilli = rapid.SampledFrom([]int64{0, 1000, 7777}).Draw(d.T, "free milli")
	c.Draining = d.n(5, "draining") == 0
	return scheduler.Advert{Node: d.node(), Boot: fmt.Sprint(d.n(1, "boot")), Seq: uint64(d.n(20, "seq")), Capacity: c}
}

func (d draw) dur() time.Duration {
	return rapid.SampledFrom([]time.Duration{-time.Hour, 0, time.Millisecond, time.Second, 1 << 62}).Draw(d.T, "duration")
}

func TestHostileOwnerInput(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := draw{rt}
		o := market.NewOwner(market.OwnerConfig{ID: market.OwnerID{Peer: "box0", Epoch: 1}, MaxOffers: 4, MaxRecent: 3})
		now := time.Duration(0)
		for range rapid.IntRange(1, 120).Draw(rt, "steps") {
			id := d.offer()
			var ev market.OwnerEvent
			switch d.n(14, "event") {
			case 0, 1:
				ev = market.Submit{Offer: market.Offer{ID: id, Demand: d.demand(), Group: "g", Patient: d.n(1, "patient") == 0}}
			case 2, 3:
				ev = market.AdvertSeen{Advert: d.advert(), Source: scheduler.SourceGossip}
			case 4:
				ev = market.AskReply{Offer: id, Round: d.n(3, "round"), Node: d.node(), Hold: fmt.Sprint(d.n(2, "hold")), HoldFor: d.dur(), Advert: d.advert()}
			case 5:
				ev = market.AskReply{Offer: id, Round: d.n(3, "round"), Node: d.node(), Refusals: []scheduler.Refusal{{Text: "no"}}, Advert: d.advert()}
			case 6:
				ev = market.AwardReply{Offer: id, Lease: d.lease(id), Node: d.node(), OK: d.n(1, "ok") == 0, Advert: d.advert()}
			case 7:
				ev = market.Renew{Owner: d.owner(), Node: d.node(), Leases: []market.LeaseRef{{Offer: id, Lease: d.lease(id), Fence: d.fence()}}}
			case 8:
				ev = market.Ended{Owner: d.owner(), Node: d.node(), Offer: id, Lease: d.lease(id), Fence: d.fence(), Advert: d.advert()}
			case 9:
				x := d.demand()
				ev = market.Pull{Owner: d.owner(), Shape: x.Shape(), Node: d.node(), Hold: fmt.Sprint(d.n(2, "hold")), HoldFor: d.dur(), Advert: d.advert()}
			case 10:
				ev = market.NodeDown{Node: d.node(), Left: d.n(1, "left") == 0}
			case 11:
				ev = market.SendFailed{Node: d.node(), Offer: id, Round: d.n(3, "round"), Lease: rapid.SampledFrom([]market.LeaseID{"", d.lease(id)}).Draw(rt, "award")}
			case 12:
				ev = rapid.SampledFrom([]market.OwnerEvent{
					market.Withdraw{Offer: id}, market.ReleaseLease{Lease: d.lease(id)}, market.DiscoveryDone{Offer: id}, market.NodeUp{Node: d.node()},
					market.Adopt{Offer: market.Offer{ID: id, Demand: d.demand()}, Lease: d.lease(id), Fence: d.fence(), Node: d.node()},
				}).Draw(rt, "other")
			default:
				ev = market.Tick{}
				now += time.Duration(d.n(4000, "ms")) * time.Millisecond
			}
			for _, a := range o.Step(now, ev) {
				if p, ok := a.(market.Placed); ok && p.Fence.Epoch != 1 {
					t.Fatalf("placed under a fence of another epoch: %+v", p)
				}
			}
			if n := len(o.Offers()); n > 5 { // Adopt is the node's own and not bounded by MaxOffers
				rt.Fatalf("%d offers, the limit is 4", n)
			}
			o.Explain(id)
			// Time must go on: after a Tick nothing may be due at the same moment.
			if at, ok := o.NextWake(); ok && at <= now {
				o.Step(now, market.Tick{})
				if at, ok := o.NextWake(); ok && at <= now {
					rt.Fatalf("still due at %v after a tick at %v", at, now)
				}
			}
		}
	})
}

func TestHostileWorkerInput(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := draw{rt}
		w := market.NewWorker(market.WorkerConfig{
			Node: "box1", Boot: "b", Capacity: markettest.Box(8, 16, "H100", "H100"),
			MaxLeases: 4, MaxHolds: 4, MaxOpenOffers: 3, MaxFences: 3,
		})
		now := time.Duration(0)
		running := map[market.LeaseID]bool{}
		for range rapid.IntRange(1, 150).Draw(rt, "steps") {
			id := d.offer()
			var ev market.WorkerEvent
			switch d.n(11, "event") {
			case 0, 1:
				ev = market.Ask{Owner: d.owner(), Offer: id, Round: d.n(3, "round"), Demand: d.demand()}
			case 2, 3, 4:
				ev = market.Award{
					Owner: d.owner(), Offer: id, Lease: d.lease(id), Fence: d.fence(), Hold: fmt.Sprintf("h%d", d.n(20, "hold")),
					Demand: d.demand(), LeaseFor: d.dur(), Shape: "s", More: d.n(3, "more") - 1, Headless: d.n(1, "headless") == 0,
				}
			case 5:
				ev = market.Release{Owner: d.owner(), Offer: id, Lease: d.lease(id), Fence: d.fence(), Hold: fmt.Sprintf("h%d", d.n(20, "hold"))}
			case 6:
				ev = market.OpenOffer{Owner: d.owner(), Shape: fmt.Sprint(d.n(5, "shape")), Demand: d.demand(), Count: d.n(3, "count") - 1, TTL: d.dur(), Direct: d.n(1, "direct") == 0}
			case 7:
				ev = market.LeaseDone{Lease: d.lease(id), Reason: market.EndExited}
			case 8:
				ev = market.RenewAck{Owner: d.owner(), Unknown: []market.LeaseRef{{Offer: id, Lease: d.lease(id), Fence: d.fence()}}}
			case 9:
				ev = rapid.SampledFrom([]market.WorkerEvent{
					market.OwnerDown{Peer: d.node()}, market.OwnerUp{Peer: d.node()}, market.LeaseReady{Lease: d.lease(id)},
					market.EndedAck{Owner: d.owner(), Lease: d.lease(id)}, market.Drain{On: true}, market.Drain{},
				}).Draw(rt, "other")
			default:
				ev = market.Tick{}
				now += time.Duration(d.n(30000, "ms")) * time.Millisecond
			}
			for _, a := range w.Step(now, ev) {
				switch a := a.(type) {
				case market.Start:
					if running[a.Lease] {
						rt.Fatalf("%s was started twice", a.Lease)
					}
					running[a.Lease] = true
				case market.Stop:
					if !running[a.Lease] {
						rt.Fatalf("%s was stopped, but does not run", a.Lease)
					}
				}
			}
			if e, ok := ev.(market.LeaseDone); ok {
				delete(running, e.Lease)
			}
			ls := w.Leases()
			if len(ls) != len(running) || len(ls) > 4 {
				rt.Fatalf("%d leases, %d running, the limit is 4", len(ls), len(running))
			}
			c := w.Capacity()
			used := map[string]int64{}
			var cpu int64
			for _, l := range ls {
				cpu += l.Demand.CPUMillis
				for _, dev := range l.Grant.Devices {
					used[dev] += l.Grant.GPUMilli
				}
			}
			for _, dev := range c.Devices {
				if used[dev.ID]+dev.FreeMilli > scheduler.GPUExclusive || dev.FreeMilli < 0 {
					rt.Fatalf("%s: %d used, %d free", dev.ID, used[dev.ID], dev.FreeMilli)
				}
			}
			if c.Free.CPUMillis < 0 || cpu+c.Free.CPUMillis > c.Total.CPUMillis {
				rt.Fatalf("%d used, %d free of %d", cpu, c.Free.CPUMillis, c.Total.CPUMillis)
			}
			if at, ok := w.NextWake(); ok && at <= now {
				w.Step(now, market.Tick{})
				if at, ok := w.NextWake(); ok && at <= now {
					rt.Fatalf("still due at %v after a tick at %v", at, now)
				}
			}
		}
	})
}

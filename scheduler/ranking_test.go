package scheduler

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// scan is what Rank and Outlook mean, said without an index.
func scan(v *View, d *Demand, limit int, crowd func(NodeID) int, skip func(NodeID) bool) ([]Candidate, Outlook) {
	v.followPacking()
	var all []Candidate
	var o Outlook
	for _, n := range v.order {
		if n.down != "" {
			continue
		}
		fit := FitOf(d, &n.eff)
		o.Best = max(o.Best, fit)
		o.Pending = o.Pending || fit < FitNow && len(n.notes) > 0 && FitOf(d, &n.advert.Capacity) == FitNow
		if fit != FitNow || skip(n.advert.Node) {
			continue
		}
		all = append(all, Candidate{
			Node: n.advert.Node, Name: n.advert.Name, Class: n.class, Source: n.source,
			Score: v.scoreFor(d, &n.eff, crowd(n.advert.Node)),
		})
	}
	slices.SortFunc(all, func(a, b Candidate) int {
		if a.Score.Before(a.Node, b.Score, b.Node) {
			return -1
		}
		return 1
	})
	if o.Best == FitNow {
		o.Pending = false // nobody asks
	}
	return all[:min(limit, len(all))], o
}

// TestRankIsAScan: whatever happens to a view, its index says what looking at
// every node would say.
func TestRankIsAScan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := NewView()
		boxes := []Capacity{box(8, 32), box(16, 64, "H100", "H100"), box(4, 16, "H100"), box(8, 64, "RTX4090", "H100"), box(2, 2)}
		demands := []Demand{
			{CPUMillis: 1000}, {CPUMillis: 4000, MemoryMiB: 8 << 10}, {CPUMillis: 500, GPUs: want("H100")},
			{CPUMillis: 500, GPUs: want("RTX4090,any"), GPUMilli: 300}, {CPUMillis: 100_000}, {GPUs: want("H100:2")},
		}
		if rapid.Bool().Draw(t, "many demands") { // more than there are rankings
			for i := range maxRankings {
				demands = append(demands, Demand{CPUMillis: int64(i)})
			}
		}
		packing := &Packing{}
		if rapid.Bool().Draw(t, "packing") {
			v.SetPacking(packing)
		}
		seq := uint64(0)
		id := func() NodeID { return NodeID(fmt.Sprintf("n%d", rapid.IntRange(0, 30).Draw(t, "node"))) }
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			demand := rapid.SampledFrom(demands).Draw(t, "demand")
			key := fmt.Sprint("k", rapid.IntRange(0, 5).Draw(t, "key"))
			switch rapid.IntRange(0, 10).Draw(t, "op") {
			case 0, 1, 2:
				seq++
				c := rapid.SampledFrom(boxes).Draw(t, "box").Clone()
				c.Free.CPUMillis = rapid.Int64Range(0, c.Total.CPUMillis).Draw(t, "cpu")
				for i := range c.Devices {
					c.Devices[i].FreeMilli = rapid.Int64Range(0, 10).Draw(t, "gpu") * 100
				}
				v.Update(advert(string(id()), seq, c), SourceGossip)
			case 3:
				v.Debit(id(), key, demand)
			case 4:
				v.Credit(id(), key, demand)
			case 5:
				v.Settle(id(), key)
			case 6:
				v.SetDown(id(), "gone", rapid.Bool().Draw(t, "soft"))
			case 7:
				v.SetUp(id())
			case 8:
				v.Forget(id())
			case 9:
				packing.SetMix(NewMix([]Weighted{{demand, 1}, {demands[3], 2}}, 4))
			}
			if rapid.IntRange(0, 3).Draw(t, "look") == 0 {
				continue // so that changes pile up
			}
			ask := rapid.SampledFrom(demands).Draw(t, "ask")
			limit := rapid.IntRange(1, 6).Draw(t, "limit")
			crowds, skipped := id(), id()
			crowd := func(n NodeID) int {
				if n < crowds {
					return int(HashOf(n) % 3)
				}
				return 0
			}
			skip := func(n NodeID) bool { return n == skipped }
			want, outlook := scan(v, &ask, limit, crowd, skip)
			got := v.Rank(&ask, limit, crowd, skip)
			if !slices.Equal(got, want) {
				t.Fatalf("got %v\nwant %v", got, want)
			}
			if o := v.Outlook(&ask); o != outlook {
				t.Fatalf("outlook %+v, want %+v", o, outlook)
			}
		}
	})
}

// BenchmarkRankBusy ranks while nodes change: each question follows the change
// of a node, the usual life of an owner.
func BenchmarkRankBusy(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			v := NewView()
			for i := range n {
				v.Update(advert(fmt.Sprintf("box%d", i), 1, box(64, 256, "A100-80", "A100-80")), SourceGossip)
			}
			demands := []Demand{
				{CPUMillis: 1000, MemoryMiB: 1024, GPUs: want("A100")}, {CPUMillis: 1000}, {GPUs: want("A100"), GPUMilli: 500}, {GPUs: want("A100:2")},
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				d := &demands[i%len(demands)]
				c := v.Rank(d, 1, nil, nil)
				if len(c) > 0 {
					v.Debit(c[0].Node, "k", *d)
				}
				if i%7 == 0 {
					v.Settle(NodeID(fmt.Sprintf("box%d", i%n)), "k")
				}
			}
		})
	}
}

package scheduler

import (
	"slices"
	"testing"
	"time"
)

func packingFor(ds ...Demand) *Packing {
	var ws []Weighted
	for _, d := range ds {
		ws = append(ws, Weighted{d, 1})
	}
	p := &Packing{}
	p.SetMix(NewMix(ws, MaxShapes))
	return p
}

// With a mix a view fills what nothing else can use before it breaks up what can
// be used, and says so.
func TestRankByFragments(t *testing.T) {
	busy := func(c Capacity, milli ...int64) Capacity {
		for i, m := range milli {
			c.Devices[i].FreeMilli = m
		}
		return c
	}
	share := Demand{CPUMillis: 1000, GPUs: want("H100"), GPUMilli: 300}
	whole := Demand{CPUMillis: 1000, GPUs: want("H100")}
	pair := Demand{CPUMillis: 1000, GPUs: want("H100:2")}
	for _, c := range []struct {
		name   string
		demand Demand
		nodes  map[string]Capacity
		first  string
	}{
		{"a share goes where a share is left", share, map[string]Capacity{
			"whole": box(16, 64, "H100", "H100"), "rest": busy(box(16, 64, "H100", "H100"), 0, 400)}, "rest"},
		{"a pair is kept for a pair", whole, map[string]Capacity{
			"pair": box(16, 64, "H100", "H100"), "single": busy(box(16, 64, "H100", "H100"), 0, 1000)}, "single"},
		{"cores stay with idle gpus", Demand{CPUMillis: 15_500}, map[string]Capacity{
			"idle": box(16, 64, "H100", "H100"), "full": busy(box(16, 64, "H100", "H100"), 0, 0)}, "full"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := NewView()
			v.SetPacking(packingFor(share, whole, pair))
			for id, b := range c.nodes {
				v.Update(advert(id, 1, b), SourceGossip)
			}
			got := v.Rank(&c.demand, 5, nil, nil)
			if len(got) != 2 || string(got[0].Node) != c.first {
				t.Fatalf("got %v", got)
			}
			if got[0].Score.Terms[TermFrag] >= got[1].Score.Terms[TermFrag] || got[0].Score.Terms[TermPack] != 0 {
				t.Errorf("scores %s and %s", got[0].Score, got[1].Score)
			}
		})
	}
}

// A new mix scores all nodes anew, and an empty one is like none.
func TestViewFollowsItsMix(t *testing.T) {
	v, p := NewView(), &Packing{}
	v.SetPacking(p)
	a, b := box(16, 64, "H100", "H100"), box(16, 64, "H100", "H100")
	b.Devices[0].FreeMilli = 0
	v.Update(advert("two", 1, a), SourceGossip)
	v.Update(advert("one", 1, b), SourceGossip)
	d := Demand{CPUMillis: 1000, GPUs: want("H100")}
	if got := v.Rank(&d, 2, nil, nil); got[0].Score.Terms[TermFrag] != 0 || got[0].Node != "one" {
		t.Fatalf("without a mix: %v", got)
	}
	var seen Recent
	for range 5 {
		seen.Observe(time.Second, &Demand{CPUMillis: 1000, GPUs: want("H100:2")})
	}
	p.SetMix(seen.Mix())
	got := v.Rank(&d, 2, nil, nil)
	if got[0].Node != "one" || got[1].Score.Total <= got[0].Score.Total || got[0].Score.Terms[TermFrag] == 0 {
		t.Errorf("with pairs in the mix the pair is kept: %v", got)
	}
	p.SetMix(NewMix(nil, 1))
	if got := v.Rank(&d, 2, nil, nil); got[0].Score.Terms[TermFrag] != 0 {
		t.Errorf("an empty mix: %v", got)
	}
}

// The device of a share is the one that leaves the least fragment, which need
// not be the fullest.
func TestPackingAllocates(t *testing.T) {
	c := box(16, 64, "H100", "H100")
	c.Devices[0].FreeMilli = 700 // after 300: 400, of no use to halves
	c.Devices[1].FreeMilli = 800 // after 300: 500
	half := Demand{CPUMillis: 1000, GPUs: want("H100"), GPUMilli: 500}
	share := Demand{CPUMillis: 1000, GPUs: want("H100"), GPUMilli: 300}
	with, without := c.Clone(), c.Clone()
	g, ok := packingFor(half).Allocate(&share, &with)
	if !ok || !slices.Equal(g.Devices, []string{"gpu-1"}) || with.Devices[1].FreeMilli != 500 {
		t.Errorf("got %+v, %+v", g, with.Devices)
	}
	var none *Packing
	if g, ok := none.Allocate(&share, &without); !ok || !slices.Equal(g.Devices, []string{"gpu-0"}) {
		t.Errorf("without a mix the fullest with room: %+v", g)
	}
	if g, ok := packingFor(half).Allocate(&Demand{GPUs: want("H100")}, &c); ok {
		t.Errorf("no device is whole, got %+v", g)
	}
}

package scheduler

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/beammesh/beammesh/scheduler/gpu"
)

// shapes that cover every way a node can fail one.
func mixWorld(rng *rand.Rand) (ws []Weighted, d Demand, c Capacity) {
	classes := [...]string{"A10", "G2", "A100-80", "A100-40"}
	asked := [...]string{"any", "A10", "G2,A10", "A100", "A100-80:2,any", "any:2", "any:4"}
	shape := func() Demand {
		s := Demand{CPUMillis: 1000 * rng.Int64N(9), MemoryMiB: 1024 * rng.Int64N(3)}
		if rng.IntN(5) > 0 {
			s.GPUs, _ = gpu.Parse(asked[rng.IntN(len(asked))], 1)
			s.GPUMilli = 100 * (1 + rng.Int64N(10))
		}
		return s
	}
	for range rng.IntN(12) {
		ws = append(ws, Weighted{shape(), 1 + rng.Int64N(50)})
	}
	c = box(rng.Int64N(16), 16)
	class, mixed := classes[rng.IntN(len(classes))], rng.IntN(4) == 0
	for i := range rng.IntN(9) {
		if mixed {
			class = classes[rng.IntN(len(classes))]
		}
		c.Devices = append(c.Devices, Device{ID: fmt.Sprint(i), Class: class, FreeMilli: 100 * rng.Int64N(11)})
	}
	return ws, shape(), c
}

// fragmentBySentence is the definition, word by word.
func fragmentBySentence(ws []Weighted, c *Capacity) (sum int64) {
	for _, w := range ws {
		var all, most int64
		for _, dev := range c.Devices {
			all += dev.FreeMilli
		}
		fits := w.Demand.CPUMillis <= c.Free.CPUMillis && w.Demand.MemoryMiB <= c.Free.MemoryMiB
		for _, g := range w.Demand.GPUs {
			var enough int
			var free int64
			for _, dev := range c.Devices {
				if gpu.Matches(g.Class, dev.Class) && dev.FreeMilli >= w.Demand.Milli() {
					enough++
					free += dev.FreeMilli
				}
			}
			if fits && enough >= g.Count {
				most = max(most, free)
			}
		}
		sum += w.Weight * (all - most)
	}
	return sum
}

func TestMixProperties(t *testing.T) {
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		ws, d, c := mixWorld(rng)
		m := NewMix(ws, 100)
		before := m.Fragment(&c)
		if want := fragmentBySentence(ws, &c); before != want {
			t.Fatalf("seed %d: fragment %d, want %d", seed, before, want)
		}
		var idle int64
		for i := range c.Devices {
			idle += c.Devices[i].FreeMilli
		}
		if before < 0 || before > idle*m.Weight() {
			t.Fatalf("seed %d: fragment %d of %d idle", seed, before, idle*m.Weight())
		}
		rng.Shuffle(len(ws), func(i, j int) { ws[i], ws[j] = ws[j], ws[i] })
		if again := NewMix(ws, 100).Fragment(&c); again != before {
			t.Fatalf("seed %d: another order gives %d, not %d", seed, again, before)
		}
		if FitOf(&d, &c) != FitNow {
			continue
		}
		delta, picks := m.Delta(&d, &c)
		if delta != m.DeltaOn(&d, &c, picks) {
			t.Fatalf("seed %d: delta %d, on these devices %d", seed, delta, m.DeltaOn(&d, &c, picks))
		}
		after := c.Clone()
		after.Free.CPUMillis -= d.CPUMillis
		after.Free.MemoryMiB -= d.MemoryMiB
		want := 0
		if i := Choice(&d, &c); i >= 0 {
			want = d.GPUs[i].Count
			for j := range after.Devices {
				if picks.Has(j) {
					after.Devices[j].FreeMilli -= d.Milli()
					if after.Devices[j].FreeMilli < 0 || !gpu.Matches(d.GPUs[i].Class, after.Devices[j].Class) {
						t.Fatalf("seed %d: device %d cannot take it", seed, j)
					}
				}
			}
		}
		if picks.Len() != want {
			t.Fatalf("seed %d: %d devices, want %d", seed, picks.Len(), want)
		}
		if got := m.Fragment(&after) - before; got != delta {
			t.Fatalf("seed %d: delta %d, after - before %d", seed, delta, got)
		}
		if want == 1 {
			for j := range c.Devices {
				if c.Devices[j].FreeMilli >= d.Milli() && gpu.Matches(d.GPUs[Choice(&d, &c)].Class, c.Devices[j].Class) &&
					d.Milli() < GPUExclusive && m.DeltaOn(&d, &c, 1<<j) < delta {
					t.Fatalf("seed %d: device %d is better than %b", seed, j, picks)
				}
			}
		}
	}
}

func TestPicksAreThoseOfAllocate(t *testing.T) {
	for seed := range uint64(2000) {
		_, d, c := mixWorld(rand.New(rand.NewPCG(seed, 2)))
		picks := PicksOf(&d, &c)
		var ids []string
		for i := range c.Devices {
			if picks.Has(i) {
				ids = append(ids, c.Devices[i].ID)
			}
		}
		g, ok := Allocate(&d, &c)
		if ok && !slices.Equal(g.Devices, ids) {
			t.Fatalf("seed %d: picked %v, allocated %v", seed, ids, g.Devices)
		}
	}
}

func TestEmptyMix(t *testing.T) {
	c := box(8, 32, "A10", "A10")
	m := NewMix(nil, MaxShapes)
	d := Demand{CPUMillis: 1000, GPUs: want("any"), GPUMilli: 300}
	delta, picks := m.Delta(&d, &c)
	if m.Fragment(&c) != 0 || delta != 0 || picks != 1 || m.Score(0) != 50 {
		t.Errorf("fragment %d, delta %d on %b, score %d", m.Fragment(&c), delta, picks, m.Score(0))
	}
}

// A share goes where it leaves whole devices whole, a task without a GPU where it
// does not strand them.
func TestMixPrefersWhatKeepsRoom(t *testing.T) {
	m := NewMix([]Weighted{
		{Demand{CPUMillis: 4000, GPUs: want("any")}, 3},
		{Demand{CPUMillis: 2000, GPUs: want("any"), GPUMilli: 500}, 2},
		{Demand{CPUMillis: 2000}, 1},
	}, MaxShapes)
	c := box(16, 64, "A10", "A10", "A10")
	c.Devices[1].FreeMilli, c.Devices[2].FreeMilli = 600, 500
	d := Demand{CPUMillis: 2000, GPUs: want("any"), GPUMilli: 500}
	if _, picks := m.Delta(&d, &c); picks != 1<<2 {
		t.Errorf("the share went to %b, want the device it fills", picks)
	}
	roomy, tight := box(16, 64, "A10"), box(5, 64, "A10")
	plain := Demand{CPUMillis: 2000}
	stays, _ := m.Delta(&plain, &roomy)
	strands, _ := m.Delta(&plain, &tight)
	if stays != 0 || strands != 3*GPUExclusive {
		t.Errorf("growth %d and %d, want 0 and all of the device for 3 of 6", stays, strands)
	}
}

func TestMixKeepsTheHeaviest(t *testing.T) {
	var ws []Weighted
	for i := range int64(100) {
		ws = append(ws, Weighted{Demand{CPUMillis: i}, i}, Weighted{Demand{CPUMillis: i}, i})
	}
	m := NewMix(ws, 3)
	got := m.Shapes()
	if len(got) != 3 || got[0].Demand.CPUMillis != 99 || got[0].Weight != 198 || m.Weight() != 198+196+194 {
		t.Errorf("got %v with weight %d", got, m.Weight())
	}
	huge := NewMix([]Weighted{{Demand{CPUMillis: 1}, math.MaxInt64}, {Demand{CPUMillis: 2}, math.MaxInt64 / 2}, {Demand{CPUMillis: 3}, 1}}, 3)
	if huge.Weight() > maxMixWeight || len(huge.Shapes()) != 2 {
		t.Errorf("got %v with weight %d", huge.Shapes(), huge.Weight())
	}
}

func TestScoreIsTheLogisticFunction(t *testing.T) {
	m := NewMix([]Weighted{{Demand{CPUMillis: 1}, 8000}}, 1)
	last := 99
	for delta := int64(-64000 * 8000); delta <= 64000*8000; delta += 9973 {
		got := m.Score(delta)
		exact := 100 / (1 + math.Exp(float64(delta)/8000/1000))
		// Away from a step the two agree; at one, floats may be off by their last bit.
		if d := exact - float64(got); (d < -1e-9 || d >= 1+1e-9) && !(got == 99 && exact > 99) || got > last {
			t.Fatalf("delta %d: score %d after %d, exact %v", delta, got, last, exact)
		}
		last = got
	}
	if m.Score(0) != 50 || m.Score(1) != 49 || m.Score(-1) != 50 {
		t.Errorf("around zero: %d %d %d", m.Score(0), m.Score(1), m.Score(-1))
	}
	if top := NewMix([]Weighted{{Demand{}, 1 << 50}}, 1); top.Score(-MaxDevices*GPUExclusive*top.Weight()) != 99 {
		t.Error("the largest gain overflows")
	}
}

func TestMixAllocatesNothing(t *testing.T) {
	ws, c, d := benchMix()
	m := NewMix(ws, MaxShapes)
	if n := testing.AllocsPerRun(100, func() { m.Delta(&d, &c); m.Fragment(&c) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestRecentForgetsByHalfLife(t *testing.T) {
	var r Recent
	old, young := Demand{CPUMillis: 1000}, Demand{CPUMillis: 2000}
	for range 8 {
		r.Observe(90*time.Second, &old)
	}
	for _, c := range []struct {
		at    time.Duration
		ratio float64 // of old to one new
	}{{30 * time.Minute, 8 / math.Sqrt2}, {time.Hour, 4}, {2 * time.Hour, 2}, {5 * time.Hour, .25}, {40 * time.Hour, 0}, {900 * time.Hour, 0}} {
		s := Recent{shapes: slices.Clone(r.shapes), base: r.base}
		s.Observe(c.at, &young)
		var w [2]float64
		for _, x := range s.shapes {
			w[x.Demand.CPUMillis/2000] = float64(x.Weight)
		}
		if got := w[0] / w[1]; math.Abs(got-c.ratio) > .05*c.ratio+1e-6 {
			t.Errorf("after %s old is worth %.3f of new, want %.3f", c.at, got, c.ratio)
		}
	}
}

func TestRecentIsBoundedAndKeepsWhatIsFrequent(t *testing.T) {
	var r Recent
	frequent := Demand{CPUMillis: 1, GPUs: want("any")}
	for i := range int64(20_000) {
		now := time.Duration(i) * time.Second / 10
		r.Observe(now, &Demand{CPUMillis: 1000 + i})
		if i%50 == 0 {
			r.Observe(now, &frequent)
		}
	}
	if len(r.shapes) > recentShapes || len(r.Mix().Shapes()) != MaxShapes {
		t.Errorf("%d shapes, %d in the mix", len(r.shapes), len(r.Mix().Shapes()))
	}
	if top := r.Mix().Shapes()[0].Demand; len(top.GPUs) == 0 {
		t.Errorf("the frequent shape was pushed out by rare ones; first is %v", top)
	}
}

func TestRecentMergesWhatPeersTell(t *testing.T) {
	var a, b, both Recent
	for i := range int64(300) {
		d := Demand{CPUMillis: i % 7, Workspace: fmt.Sprint(i), GPUs: want("any"), GPUMilli: 500}
		at := time.Duration(i) * time.Second
		both.Observe(at, &d)
		if i%3 == 0 {
			a.Observe(at, &d)
		} else {
			b.Observe(at, &d)
		}
	}
	end := 300 * time.Second
	fromA, fromB := a.Take(), b.Take()
	a.Merge(end, fromB)
	b.Merge(end, fromA)
	if len(a.shapes) != 7 || len(b.shapes) != 7 {
		t.Fatalf("%d and %d shapes, want 7: workspaces are not part of a shape", len(a.shapes), len(b.shapes))
	}
	for i, s := range both.shapes {
		x, y := a.shapes[i].Weight, b.shapes[i].Weight
		if max(x, y, s.Weight)-min(x, y, s.Weight) > s.Weight/10 {
			t.Errorf("%v: %d, %d, all in one %d", s.Demand, x, y, s.Weight)
		}
	}
	if left := a.Take(); len(left) != 0 {
		t.Errorf("a tells what it heard: %v", left)
	}
	before := len(a.shapes)
	a.Merge(end, []Weighted{{Demand{CPUMillis: -1}, 1}, {Demand{CPUMillis: 77}, 0}, {Demand{CPUMillis: 78}, -4}})
	if len(a.shapes) != before {
		t.Error("impossible reports are counted")
	}
	var liar Recent
	liar.Merge(0, []Weighted{{Demand{CPUMillis: 1}, math.MaxInt64}, {Demand{CPUMillis: 2}, 1}})
	if len(liar.shapes) != 1 || liar.shapes[0].Weight != maxTold*recentUnits[0] {
		t.Errorf("one report counted as %v", liar.shapes)
	}
}

func benchMix() ([]Weighted, Capacity, Demand) {
	var ws []Weighted
	for i := range int64(MaxShapes) {
		d := Demand{CPUMillis: 1000 * (i%13 + 1)}
		if i%8 > 0 {
			d.GPUs, d.GPUMilli = want([...]string{"any", "any", "any", "G2", "A10,G2"}[i%5]), 100*(i%10+1)
		}
		ws = append(ws, Weighted{d, i + 1})
	}
	c := box(96, 384, "G2", "G2", "G2", "G2", "G2", "G2", "G2", "G2")
	for i := range c.Devices {
		c.Devices[i].FreeMilli -= int64(i) * 70
	}
	return ws, c, Demand{CPUMillis: 4000, GPUs: want("any"), GPUMilli: 300}
}

func BenchmarkMixDelta(b *testing.B) {
	ws, c, share := benchMix()
	m := NewMix(ws, MaxShapes)
	for name, d := range map[string]Demand{"share": share, "whole": {CPUMillis: 4000, GPUs: want("any")}, "cpu": {CPUMillis: 4000}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m.Delta(&d, &c)
			}
		})
	}
}

func BenchmarkMixFragment(b *testing.B) {
	ws, c, _ := benchMix()
	m := NewMix(ws, MaxShapes)
	for b.Loop() {
		m.Fragment(&c)
	}
}

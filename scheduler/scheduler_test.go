package scheduler

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/scheduler/gpu"
)

func box(cores, gib int64, classes ...string) Capacity {
	r := Resources{CPUMillis: cores * 1000, MemoryMiB: gib << 10, DiskMiB: 100 << 10}
	c := Capacity{Total: r, Free: r, Arch: "amd64", Isolation: []string{"trusted"}, DiskFloorMiB: 5 << 10, Features: []string{"python/3.11"}}
	for i, class := range classes {
		c.Devices = append(c.Devices, Device{ID: fmt.Sprintf("gpu-%d", i), Class: class, MemoryMiB: 24 << 10, FreeMilli: GPUExclusive})
	}
	return c
}

func want(s string) []gpu.Want {
	w, err := gpu.Parse(s, 1)
	if err != nil {
		panic(err)
	}
	return w
}

func advert(id string, seq uint64, c Capacity) Advert {
	return Advert{Node: NodeID(id), Name: id, Boot: "b1", Seq: seq, Capacity: c}
}

func TestFeasibleSaysWhy(t *testing.T) {
	for _, c := range []struct {
		name   string
		demand Demand
		change func(*Capacity)
		code   Code
		never  bool
		text   string
	}{
		{"class", Demand{GPUs: want("H100")}, nil, GPUClass, true, "has 2x RTX4090, asked for H100"},
		{"two alternatives", Demand{GPUs: want("H100,A100:2")}, nil, GPUClass, true, "has 2x RTX4090, asked for H100 or 2x A100"},
		{"count", Demand{GPUs: want("RTX4090:4")}, nil, GPUCount, true, "has 2x RTX4090, asked for 4x RTX4090"},
		{"busy", Demand{GPUs: want("RTX4090:2")}, func(c *Capacity) { c.Devices[0].FreeMilli = 0 }, GPUBusy, false, "needs 2x RTX4090, 1 of 2 free"},
		{"busy beats never", Demand{GPUs: want("H100,any")}, func(c *Capacity) { c.Devices[0].FreeMilli, c.Devices[1].FreeMilli = 0, 400 }, GPUBusy, false, "needs any GPU, 0 of 2 free"},
		{"simulated is said", Demand{GPUs: want("H100")}, func(c *Capacity) { c.Devices[1].Simulated = true }, GPUClass, true, "has RTX4090, RTX4090 (simulated), asked for H100"},
		{"no gpu", Demand{GPUs: want("any")}, func(c *Capacity) { c.Devices = nil }, NoGPU, true, "has no GPU, asked for any GPU"},
		{"cores", Demand{CPUMillis: 16000}, nil, CPU, true, "needs 16 cores, has 8 cores"},
		{"free cores", Demand{CPUMillis: 4500}, func(c *Capacity) { c.Free.CPUMillis = 500 }, CPU, false, "needs 4.5 cores, 0.5 cores free"},
		{"memory", Demand{MemoryMiB: 64 << 10}, nil, Memory, true, "needs 64 GiB, has 32 GiB"},
		{"free memory", Demand{MemoryMiB: 16 << 10}, func(c *Capacity) { c.Free.MemoryMiB = 12 << 10 }, Memory, false, "needs 16 GiB, 12 GiB free"},
		{"disk", Demand{DiskMiB: 98 << 10}, nil, Disk, true, "needs 98 GiB of disk, has 95 GiB above its floor"},
		{"disk floor", Demand{}, func(c *Capacity) { c.Free.DiskMiB = 1 << 10 }, DiskFloor, false, "disk below its floor: 1 GiB free, 5 GiB are kept"},
		{"disk room", Demand{DiskMiB: 10 << 10}, func(c *Capacity) { c.Free.DiskMiB = 10 << 10 }, DiskFloor, false, "needs 10 GiB of disk, 5 GiB free above its floor"},
		{"draining", Demand{}, func(c *Capacity) { c.Draining = true }, Draining, false, "draining"},
		{"isolation", Demand{Isolation: "sandboxed"}, nil, Isolation, true, `cannot run "sandboxed" containers`},
		{"arch", Demand{Arch: "arm64"}, nil, Arch, true, "is amd64, needs arm64"},
		{"feature", Demand{Features: []string{"python/3.12"}}, nil, Feature, true, "lacks python/3.12"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := box(8, 32, "RTX4090", "RTX4090")
			if c.change != nil {
				c.change(&b)
			}
			rs := Feasible(&c.demand, &b)
			if len(rs) != 1 || rs[0].Code != c.code || rs[0].Never != c.never || rs[0].Text != c.text {
				t.Fatalf("got %+v\nwant %s, never %v, %q", rs, c.code, c.never, c.text)
			}
			fit := FitNotNow
			if c.never {
				fit = FitNever
			}
			if got := FitOf(&c.demand, &b); got != fit {
				t.Fatalf("FitOf = %v, Feasible said %v", got, fit)
			}
			before := b.Clone()
			if _, ok := Allocate(&c.demand, &b); ok || b.Free != before.Free || !slices.Equal(b.Devices, before.Devices) {
				t.Fatal("Allocate took something of a node that does not fit")
			}
		})
	}
}

func TestAllocate(t *testing.T) {
	b := box(8, 32, "H100", "RTX4090", "RTX4090")
	b.Devices[2].FreeMilli = 600
	share := Demand{CPUMillis: 1000, GPUs: want("RTX4090"), GPUMilli: 300}
	if g, ok := Allocate(&share, &b); !ok || !slices.Equal(g.Devices, []string{"gpu-2"}) || b.Devices[2].FreeMilli != 300 {
		t.Fatalf("a share goes to the fullest device with room: %+v", g)
	}
	if g, ok := Allocate(&Demand{GPUs: want("RTX4090:2,H100")}, &b); !ok || !slices.Equal(g.Devices, []string{"gpu-0"}) {
		t.Fatalf("the first alternative that fits is taken: %+v %v", g, ok)
	}
	if g, ok := Allocate(&Demand{GPUs: want("any")}, &b); !ok || !slices.Equal(g.Devices, []string{"gpu-1"}) {
		t.Fatalf("an exclusive device is a whole one: %+v %v", g, ok)
	}
	if _, ok := Allocate(&Demand{GPUs: want("any")}, &b); ok {
		t.Fatal("granted a device twice")
	}
	if b.Free.CPUMillis != 7000 {
		t.Fatalf("free cores: %d", b.Free.CPUMillis)
	}
}

func rankIDs(v *View, d Demand) []string {
	var ids []string
	for _, c := range v.Rank(&d, 10, nil, nil) {
		ids = append(ids, string(c.Node))
	}
	return ids
}

func TestRank(t *testing.T) {
	root := Root{Name: "img", Bytes: 1 << 30}
	hot := func(c Capacity) Capacity { c.HotRoots = []string{"img"}; return c }
	zone := func(c Capacity, z string) Capacity { c.Zone = z; return c }
	busy := func(c Capacity, milli ...int64) Capacity {
		for i, m := range milli {
			c.Devices[i].FreeMilli = m
		}
		return c
	}
	loaded := func(c Capacity, free int64) Capacity { c.Free.CPUMillis = free; return c }
	for _, c := range []struct {
		name   string
		demand Demand
		nodes  map[string]Capacity
		order  string
	}{
		{"warm image first", Demand{CPUMillis: 1000, Roots: []Root{root}},
			map[string]Capacity{"cold": box(64, 64), "warm": hot(box(4, 16))}, "warm cold"},
		{"least loaded first", Demand{CPUMillis: 1000},
			map[string]Capacity{"a": loaded(box(8, 32), 2000), "b": box(8, 32), "c": loaded(box(8, 32), 5000)}, "b c a"},
		{"cpu work stays off free gpus", Demand{CPUMillis: 1000},
			map[string]Capacity{"gpu": box(64, 256, "H100"), "full": busy(box(32, 256, "H100"), 0), "cpu": box(8, 32)}, "full cpu gpu"},
		{"the user's order of gpus is strict", Demand{GPUs: want("H100,RTX4090"), Roots: []Root{root}},
			map[string]Capacity{"second": hot(box(64, 256, "RTX4090")), "first": box(4, 16, "H100")}, "first second"},
		{"keep whole machines whole", Demand{GPUs: want("H100")},
			map[string]Capacity{"whole": box(64, 256, "H100", "H100", "H100", "H100"), "rest": busy(box(64, 256, "H100", "H100", "H100", "H100"), 0, 0, 0)}, "rest whole"},
		{"preferred zone", Demand{CPUMillis: 1000, Zone: "b"},
			map[string]Capacity{"far": zone(box(8, 32), "a"), "near": zone(box(8, 32), "b")}, "near far"},
		{"A100 is either size", Demand{GPUs: want("A100")},
			map[string]Capacity{"no": box(8, 32, "H100"), "a40": box(8, 32, "A100-40"), "a80": box(8, 32, "A100-80")}, "a80 a40"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := NewView()
			for id, b := range c.nodes {
				v.Update(advert(id, 1, b), SourceGossip)
			}
			if got := strings.Join(rankIDs(v, c.demand), " "); got != c.order {
				for _, x := range v.Rank(&c.demand, 10, nil, nil) {
					t.Logf("%s: %s", x.Node, x.Score)
				}
				t.Errorf("got %q, want %q", got, c.order)
			}
		})
	}
}

// The order must not depend on the order in which the nodes came.
func TestRankIsCanonical(t *testing.T) {
	var first []string
	for shift := range 7 {
		v := NewView()
		for i := range 7 {
			v.Update(advert(fmt.Sprintf("box%d", (i*3+shift)%7), 1, box(8, 32)), SourceGossip)
		}
		ids := rankIDs(v, Demand{CPUMillis: 1000})
		if first == nil {
			first = ids
		}
		if len(ids) != 7 || !slices.Equal(ids, first) {
			t.Fatalf("got %v, before %v", ids, first)
		}
	}
}

func TestViewUpdates(t *testing.T) {
	v := NewView()
	d := Demand{CPUMillis: 4000}
	if !v.Update(advert("a", 5, box(8, 32)), SourceHello) || v.Update(advert("a", 5, box(1, 1)), SourceGossip) || v.Update(advert("a", 4, box(1, 1)), SourceGossip) {
		t.Fatal("only a higher sequence is news")
	}
	v.Debit("a", "f1", d)
	v.Debit("a", "f1", d) // once per key
	if c, _ := v.Effective("a"); c.Free.CPUMillis != 4000 {
		t.Fatalf("after the debit %d are free", c.Free.CPUMillis)
	}
	if look := v.Outlook(&Demand{CPUMillis: 6000}); look.Best != FitNotNow || !look.Pending {
		t.Fatalf("only our own ask stands in the way: %+v", look)
	}
	v.Update(advert("a", 6, box(8, 32)), SourceGossip)
	if c, _ := v.Effective("a"); c.Free.CPUMillis != 4000 {
		t.Fatal("gossip must not undo a debit: it may be older than the ask")
	}
	if !v.Settle("a", "f1") || v.Settle("a", "f1") {
		t.Fatal("settled once")
	}
	if c, _ := v.Effective("a"); c.Free.CPUMillis != 8000 {
		t.Fatal("settled, but not free")
	}
	half := box(8, 32)
	half.Free.CPUMillis = 2000
	v.Update(advert("a", 7, half), SourceReply)
	v.Credit("a", "f1", d)
	if c, _ := v.Effective("a"); c.Free.CPUMillis != 6000 {
		t.Fatal("a credit counts at once")
	}
	v.Update(advert("a", 8, half), SourceReply)
	if c, _ := v.Effective("a"); c.Free.CPUMillis != 2000 {
		t.Fatal("the next advert ends a credit")
	}
	// A new life of the node: what the old one says late does not count.
	next := advert("a", 1, box(2, 8))
	next.Boot = "b2"
	if !v.Update(next, SourceHello) || v.Update(advert("a", 99, box(8, 32)), SourceGossip) {
		t.Fatal("boot ids")
	}
	third := advert("a", 1, box(2, 8))
	third.Boot = "b3"
	if !v.Update(third, SourceHello) || v.Update(advert("a", 99, box(8, 32)), SourceReply) {
		t.Fatal("a life before the last must not come back")
	}
	if !v.Update(next, SourceHello) {
		t.Fatal("a handshake is always with the present life")
	}
	if v.SourceOf("a") != SourceHello {
		t.Fatal("the first source counts")
	}
}

func TestViewDown(t *testing.T) {
	v := NewView()
	v.Update(advert("a", 5, box(8, 32)), SourceHello)
	d := Demand{CPUMillis: 1000}
	v.SetDown("a", "pings went unanswered", false)
	if len(rankIDs(v, d)) != 0 {
		t.Fatal("a node that is down was ranked")
	}
	if rs := v.Refusals(&d, 5); len(rs) != 1 || rs[0].Reasons[0].Code != Unreachable || rs[0].Reasons[0].Text != "pings went unanswered" {
		t.Fatalf("got %+v", rs)
	}
	if v.Update(advert("a", 5, box(8, 32)), SourceGossip); len(rankIDs(v, d)) != 0 {
		t.Fatal("an old advert on its way brought a dead node back")
	}
	if !v.SetUp("a") || len(rankIDs(v, d)) != 1 {
		t.Fatal("not back after SetUp")
	}
	v.SetDown("a", "stream failed", true)
	if !v.Update(advert("a", 5, box(8, 32)), SourceGossip) || len(rankIDs(v, d)) != 1 {
		t.Fatal("a heartbeat must end a soft down")
	}
	v.Forget("a")
	if v.Len() != 0 || len(v.Nodes()) != 0 || len(v.Classes()) != 0 {
		t.Fatal("not forgotten")
	}
}

func TestClassesFollowDevices(t *testing.T) {
	v := NewView()
	v.Update(advert("a", 1, box(8, 32, "H100", "RTX4090")), SourceHello)
	if got := rankIDs(v, Demand{GPUs: want("RTX4090,H100")}); !slices.Equal(got, []string{"a"}) {
		t.Fatalf("a mixed node is ranked once: %v", got)
	}
	v.Update(advert("a", 2, box(8, 32, "RTX4090")), SourceHello)
	if got := v.Classes(); !slices.Equal(got, []string{"RTX4090"}) {
		t.Fatalf("classes %v", got)
	}
	if got := rankIDs(v, Demand{GPUs: want("H100")}); len(got) != 0 {
		t.Fatalf("ranked %v for a device that is gone", got)
	}
}

func TestClamp(t *testing.T) {
	v := NewView()
	v.Update(advert("small", 1, box(2, 64)), SourceHello)
	v.Update(advert("large", 1, box(16, 8)), SourceHello)
	for _, c := range []struct {
		demand Demand
		cpu    int64
		note   string
	}{
		{Demand{CPUMillis: 16000}, 16000, ""},
		{Demand{CPUMillis: 32000}, 16000, "asked for 32 cores, the largest node that fits has 16"},
		{Demand{CPUMillis: 8000, MemoryMiB: 32 << 10}, 2000, "asked for 8 cores, the largest node that fits has 2"},
		{Demand{CPUMillis: 8000, MemoryMiB: 32 << 10, StrictCPU: true}, 8000, ""},
		{Demand{CPUMillis: 8000, MemoryMiB: 320 << 10}, 8000, ""}, // nobody could: say that, not this
	} {
		d, note := v.Clamp(c.demand)
		if d.CPUMillis != c.cpu || note != c.note {
			t.Errorf("%v: got %d, %q", c.demand, d.CPUMillis, note)
		}
	}
}

func TestHint(t *testing.T) {
	v := NewView()
	d := Demand{GPUs: want("H100")}
	for _, c := range []struct {
		add    string
		class  []string
		demand Demand
		want   string
	}{
		{"", nil, d, "no node takes work yet"},
		{"cpu", nil, d, "no node has a GPU"},
		{"gpu", []string{"RTX4090"}, d, "nodes have RTX4090: use gpu='any'"},
		{"", nil, Demand{GPUs: want("RTX4900")}, "did you mean RTX4090"},
		{"", nil, Demand{GPUs: want("RTX4090:9")}, "ask for less"},
		{"", nil, Demand{MemoryMiB: 1 << 30}, "ask for less"},
	} {
		if c.add != "" {
			v.Update(advert(c.add, 1, box(8, 32, c.class...)), SourceHello)
		}
		if got := v.Hint(&c.demand); !strings.Contains(got, c.want) {
			t.Errorf("%v: hint %q, want %q in it", c.demand, got, c.want)
		}
	}
}

func TestShapes(t *testing.T) {
	base := Demand{CPUMillis: 1000, MemoryMiB: 1024, GPUs: want("H100"), Roots: []Root{{Name: "r", Bytes: 5}}}
	same := base
	same.GPUMilli = GPUExclusive
	same.Roots = []Root{{Name: "r", Bytes: 9}} // an estimate does not make another shape
	if base.Shape() != same.Shape() {
		t.Error("equal demands have different shapes")
	}
	seen := map[string]bool{base.Shape(): true}
	for _, change := range []func(*Demand){
		func(d *Demand) { d.CPUMillis++ }, func(d *Demand) { d.MemoryMiB++ }, func(d *Demand) { d.DiskMiB++ },
		func(d *Demand) { d.GPUs = want("H100:2") }, func(d *Demand) { d.GPUs = want("H100,A100") }, func(d *Demand) { d.GPUMilli = 500 },
		func(d *Demand) { d.StrictCPU = true }, func(d *Demand) { d.Roots = nil }, func(d *Demand) { d.Isolation = "sandboxed" },
		func(d *Demand) { d.Zone = "z" }, func(d *Demand) { d.Arch = "arm64" }, func(d *Demand) { d.Features = []string{"x"} },
		func(d *Demand) { d.Priority = 2 }, func(d *Demand) { d.Workspace = "w" },
	} {
		d := base
		change(&d)
		if s := d.Shape(); seen[s] {
			t.Errorf("%+v has the shape of another", d)
		} else {
			seen[s] = true
		}
	}
}

func TestValidate(t *testing.T) {
	long := strings.Repeat("x", 200)
	for i, d := range []Demand{
		{CPUMillis: -1}, {MemoryMiB: 1 << 40}, {DiskMiB: -5}, {GPUMilli: 1001}, {GPUs: []gpu.Want{{Class: "H100"}}},
		{GPUs: []gpu.Want{{Count: 1}}}, {GPUs: make([]gpu.Want, 17)}, {Roots: []Root{{Bytes: -1}}}, {Zone: long}, {Features: []string{long}},
	} {
		if d.Validate() == nil {
			t.Errorf("demand %d passed: %+v", i, d)
		}
	}
	ok := advert("a", 1, box(8, 32, "H100"))
	if err := ok.Validate(); err != nil {
		t.Fatal(err)
	}
	for i, change := range []func(*Advert){
		func(a *Advert) { a.Node = "" }, func(a *Advert) { a.Name = long }, func(a *Advert) { a.Capacity.Free.CPUMillis = 9000 },
		func(a *Advert) { a.Capacity.Free.MemoryMiB = -1 }, func(a *Advert) { a.Capacity.Devices[0].FreeMilli = 1001 },
		func(a *Advert) { a.Capacity.Devices = append(a.Capacity.Devices, a.Capacity.Devices[0]) },
		func(a *Advert) { a.Capacity.HotRoots = make([]string, 33) }, func(a *Advert) { a.Capacity.Queue = -1 },
	} {
		a := ok
		a.Capacity = ok.Capacity.Clone()
		change(&a)
		if a.Validate() == nil {
			t.Errorf("advert %d passed", i)
		}
	}
}

func TestTexts(t *testing.T) {
	d := Demand{CPUMillis: 2500, MemoryMiB: 1536, DiskMiB: 512, GPUs: want("H100,A100:2"), GPUMilli: 250, Isolation: "sandboxed"}
	if got := d.String(); got != "2.5 cores, 1.5 GiB, 512 MiB disk, H100 or 2x A100 (250/1000), sandboxed" {
		t.Errorf("got %q", got)
	}
	s := Score{Total: 2300}
	s.Terms[TermLoad], s.Terms[TermFetch] = 400, 1900
	if got := s.String(); got != "2.3s: fetch 1.9s, load 400ms" {
		t.Errorf("got %q", got)
	}
	for _, r := range termNames {
		if r == "" {
			t.Error("a term has no name")
		}
	}
}

func BenchmarkRank(b *testing.B) {
	for _, n := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			v := NewView()
			for i := range n {
				v.Update(advert(fmt.Sprintf("box%d", i), 1, box(64, 256, "A100-80", "A100-80")), SourceGossip)
			}
			d := Demand{CPUMillis: 1000, MemoryMiB: 1024, GPUs: want("A100")}
			b.ReportAllocs()
			for b.Loop() {
				v.Rank(&d, 4, nil, nil)
			}
		})
	}
}

// The first containers of a stub spread over equal nodes although only one of
// them has the image: it takes seconds to fetch, and the others stay.
func TestAnImageOnOneNodeDoesNotCrowdIt(t *testing.T) {
	d := Demand{CPUMillis: 500, MemoryMiB: 128, Roots: []Root{{Name: "base", Bytes: 241 << 20}}}
	nodes := []Capacity{box(8, 32), box(8, 32, "H100", "H100"), box(8, 32, "RTX4090")}
	nodes[0].HotRoots = []string{"base"}
	crowd := make([]int, len(nodes))
	for range 6 {
		best := 0
		for i := range nodes {
			if ScoreOf(&d, &nodes[i], crowd[i]).Total < ScoreOf(&d, &nodes[best], crowd[best]).Total {
				best = i
			}
		}
		crowd[best]++
	}
	if !slices.Equal(crowd, []int{2, 2, 2}) {
		t.Errorf("six containers went %v, want two to each node", crowd)
	}
}

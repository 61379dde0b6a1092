package replay_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/record"
	"github.com/beammesh/beammesh/scheduler/replicas"
	"github.com/beammesh/beammesh/simulations/engine"
	"github.com/beammesh/beammesh/simulations/replay"
)

// load is a mesh of n nodes of 4 cores, the last two with a GPU, one busy
// function without and one with.
func load(seed uint64, n, calls int) replay.Load {
	var l replay.Load
	for i := range n {
		name := fmt.Sprintf("box%d", i)
		r := scheduler.Resources{CPUMillis: 4000, MemoryMiB: 1 << 14, DiskMiB: 1 << 16}
		c := scheduler.Capacity{Total: r, Free: r, Arch: "amd64", Isolation: []string{"trusted"}}
		if i >= n-2 {
			c.Devices = []scheduler.Device{{ID: "sim-0", Class: "H100", MemoryMiB: 80 << 10, FreeMilli: 1000, Simulated: true}}
		}
		l.Nodes = append(l.Nodes, replay.Node{ID: scheduler.NodeID(name), Name: name,
			Owner:  market.OwnerConfig{ID: market.OwnerID{Peer: scheduler.NodeID(name), Epoch: 1}},
			Worker: market.WorkerConfig{Node: scheduler.NodeID(name), Name: name, Boot: "b", Capacity: c}})
	}
	roots := []scheduler.Root{{Name: "image", Bytes: 100 << 20}}
	cfg := replicas.Config{Max: 32, KeepWarm: 2 * time.Second, Window: 2}
	l.Stubs = []replay.Stub{
		{Owner: "box0", Key: "ws/cpu", Name: "cpu", Config: cfg, Demand: scheduler.Demand{CPUMillis: 1000, MemoryMiB: 256, Roots: roots}},
		{Owner: "box1", Key: "ws/gpu", Name: "gpu", Config: cfg, Demand: scheduler.Demand{CPUMillis: 1000, MemoryMiB: 256, Roots: roots, GPUs: []gpu.Want{{Class: "H100", Count: 1}}}},
	}
	rng := engine.Stream(seed, "calls", 0)
	at := time.Duration(0)
	for i := range calls {
		at += rng.Exp(60 * time.Millisecond)
		c := replay.Call{Stub: 0, At: at, Lasts: rng.Exp(400 * time.Millisecond), ID: replicas.CallID(fmt.Sprintf("call-%04d", i))}
		if rng.IntN(10) == 0 {
			c.Stub = 1
		}
		l.Calls = append(l.Calls, c)
	}
	return l
}

func simulate(t *testing.T, l replay.Load, m replay.Models) []replay.Journal {
	t.Helper()
	js, open, err := replay.Simulate(context.Background(), l, m, replay.Options{})
	if err != nil || open != 0 {
		t.Fatalf("%d calls never ended, %v", open, err)
	}
	return js
}

// TestEveryDecisionIsMadeAgain: what the simulated mesh wrote is what its
// machines, fed again, decide.
func TestEveryDecisionIsMadeAgain(t *testing.T) {
	js := simulate(t, load(1, 4, 600), replay.Defaults)
	s := replay.Verify(js)
	if s.Equal != s.Steps || s.Steps < 2000 || s.Awards < 4 || s.EqualAwards != s.Awards || s.Dispatches < 600 || s.EqualDispatches != s.Dispatches {
		t.Errorf("%+v", s)
	}
}

// TestTheLoadComesBack: reading the load out of a run gives the load of the run.
func TestTheLoadComesBack(t *testing.T) {
	want := load(2, 4, 300)
	got := replay.LoadOf(simulate(t, want, replay.Defaults))
	if !reflect.DeepEqual(got.Calls, want.Calls) {
		t.Errorf("calls differ: %d and %d", len(got.Calls), len(want.Calls))
	}
	if len(got.Nodes) != 4 || got.Nodes[3].Worker.Capacity.Devices[0].Class != "H100" || len(got.Stubs) != 2 || got.Unfinished != 0 {
		t.Errorf("got %d nodes, %d stubs, %d unfinished", len(got.Nodes), len(got.Stubs), got.Unfinished)
	}
}

// TestFitFindsTheModels of the world that wrote the journals, whether its nodes
// are busy parts of one machine or machines that are never full.
func TestFitFindsTheModels(t *testing.T) {
	for name, c := range map[string]struct {
		processors int
		hostOf     func(string) string
	}{
		"one machine":   {2, func(string) string { return "machine" }},
		"many machines": {64, func(n string) string { return n }},
	} {
		t.Run(name, func(t *testing.T) {
			want := replay.Models{Link: replay.Always(2 * time.Millisecond), Award: replay.Always(4 * time.Millisecond), Local: replay.Always(100 * time.Microsecond),
				StartWarm: replay.Always(150 * time.Millisecond), StartCold: replay.Always(900 * time.Millisecond),
				Dispatch: replay.Always(3 * time.Millisecond), Stop: replay.Always(30 * time.Millisecond), Crowd: replay.Crowd{Processors: c.processors, StartLoad: 3, Power: 2}}
			l := load(3, 5, 600)
			for i := range l.Stubs {
				l.Stubs[i].Config.KeepWarm = 50 * time.Millisecond // many starts
			}
			js, open, err := replay.Simulate(context.Background(), l, want, replay.Options{HostOf: c.hostOf})
			if err != nil || open != 0 {
				t.Fatalf("%d calls never ended, %v", open, err)
			}
			got := replay.Fit(js, want.Crowd, c.hostOf)
			near := func(what string, got, want replay.Delay) {
				t.Helper()
				g, w := got.Median(), want.Median()
				if d := g - w; d < -w/20 || d > w/20 {
					t.Errorf("%s: got %v, want %v", what, g, w)
				}
			}
			near("link", got.Link, want.Link)
			near("award", got.Award, want.Award)
			near("local", got.Local, want.Local)
			near("warm start", got.StartWarm, want.StartWarm)
			near("cold start", got.StartCold, want.StartCold)
			near("dispatch", got.Dispatch, want.Dispatch)
			s := got.Samples
			if s.Link < 20 || s.Award < 20 || s.Local < 1 || s.StartWarm < 20 || s.StartCold < 1 || s.Dispatch < 20 || s.Stop < 20 {
				t.Errorf("few samples: %+v", s)
			}
		})
	}
}

// TestCalibrateFindsTheCrowd: of a machine that slows down in a way that its
// journals do not show, the models predict the placements of another load.
func TestCalibrateFindsTheCrowd(t *testing.T) {
	machine := func(string) string { return "machine" }
	truth := replay.Models{Link: replay.Delay{500 * time.Microsecond, time.Millisecond, 6 * time.Millisecond}, Award: replay.Delay{time.Millisecond, 4 * time.Millisecond},
		Local: replay.Always(100 * time.Microsecond), StartWarm: replay.Always(200 * time.Millisecond), StartCold: replay.Always(200 * time.Millisecond),
		Dispatch: replay.Always(time.Millisecond), Stop: replay.Always(30 * time.Millisecond), Alike: 500_000,
		Crowd: replay.Crowd{Processors: 2, StartLoad: 8, Power: 3}}
	record := func(seed uint64, m replay.Models, burst int) []replay.Journal {
		l := load(seed, 6, 500)
		for i := range l.Stubs {
			l.Stubs[i].Config.KeepWarm = 50 * time.Millisecond
		}
		for i := range l.Calls {
			l.Calls[i].At = l.Calls[i-i%burst].At * 3
		}
		js, _, err := replay.Simulate(context.Background(), l, m, replay.Options{Seed: seed, HostOf: machine})
		if err != nil {
			t.Fatal(err)
		}
		return js
	}
	got, err := replay.Calibrate(context.Background(), record(1, truth, 4), 2, machine)
	if err != nil {
		t.Fatal(err)
	}
	median := func(m replay.Models) float64 {
		var all []time.Duration
		for seed := range uint64(3) {
			all = append(all, replay.Measure(record(10+seed, m, 9)).Places...)
		}
		slices.Sort(all)
		return float64(all[len(all)/2])
	}
	want, predicted := median(truth), median(got)
	if r := predicted / want; r < 0.7 || r > 1.4 {
		t.Errorf("larger bursts: predicted %.1f ms, want %.1f ms (%+v)", predicted/1e6, want/1e6, got.Crowd)
	}
	plain := replay.Fit(record(1, truth, 4), replay.Crowd{Processors: 64, StartLoad: 1, Power: 2}, machine)
	if r := median(plain) / want; r > 0.6 {
		t.Errorf("without any slowing down the prediction is %.2f of the truth: this test shows nothing", r)
	}
}

func TestCalibrateEndsWithItsContext(t *testing.T) {
	js := simulate(t, load(1, 4, 600), replay.Defaults)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := replay.Calibrate(ctx, js, 2, func(n string) string { return n }); err == nil {
		t.Error("it goes on")
	}
}

// TestSinceLeavesOutTheWarmUp: with a moment given only what came after counts.
func TestSinceLeavesOutTheWarmUp(t *testing.T) {
	l := load(8, 4, 300)
	for i := range l.Calls {
		if i >= 100 {
			l.Calls[i].At += time.Minute // the mesh rests
		}
	}
	js := simulate(t, l, replay.Defaults)
	replay.Since(js, js[0].Zero.Add(l.Calls[100].At-time.Millisecond))
	got := replay.LoadOf(js)
	if len(got.Calls) != 200 || !reflect.DeepEqual(got.Calls, l.Calls[100:]) {
		t.Errorf("%d calls are left", len(got.Calls))
	}
	for _, n := range got.Nodes {
		if n.Name == "box0" && len(n.Hot) == 0 {
			t.Error("the images that the warm-up brought are forgotten")
		}
	}
	m := replay.Measure(js)
	if m.Calls != 200 || len(m.Waits) != 200 {
		t.Errorf("%d calls and %d waits are measured", m.Calls, len(m.Waits))
	}
	if s := replay.Verify(js); s.Dispatches < 300 {
		t.Errorf("only %d dispatches are checked", s.Dispatches)
	}
}

// TestLeasesThatExpire: where messages take too long for renewals, calls are run
// again.
func TestLeasesThatExpire(t *testing.T) {
	m := replay.Defaults
	m.Link = replay.Delay{time.Millisecond, time.Millisecond, time.Minute}
	l := load(9, 4, 60)
	for i := range l.Calls {
		l.Calls[i].Lasts += 20 * time.Second // several renewals
	}
	js, open, err := replay.Simulate(context.Background(), l, m, replay.Options{})
	if err != nil || open != 0 {
		t.Fatalf("%d calls never ended, %v", open, err)
	}
	lost := 0
	for _, j := range js {
		for i := range j.Records {
			if _, ok := j.Records[i].Event.(replicas.ReplicaLost); ok {
				lost++
			}
		}
	}
	if lost == 0 {
		t.Error("no lease expired: this test shows nothing")
	}
}

// TestLessMachineMoreWaiting: taking a node out of a loaded mesh makes calls
// wait, putting GPUs in makes those that need one wait less.
func TestLessMachineMoreWaiting(t *testing.T) {
	l := load(4, 4, 800)
	before := replay.Measure(simulate(t, l, replay.Defaults))
	less := l
	if !less.Remove("box2") || less.Remove("nobody") {
		t.Fatal("Remove does not know its nodes")
	}
	after := replay.Measure(simulate(t, less, replay.Defaults))
	if sum(after.Waits) <= sum(before.Waits) || after.Calls != 800 {
		t.Errorf("waits %v before, %v after, %d calls", sum(before.Waits), sum(after.Waits), after.Calls)
	}
	more := less
	more.Add("new", []scheduler.Device{{ID: "0", Class: "H100", FreeMilli: 1000}, {ID: "1", Class: "H100", FreeMilli: 1000}})
	again := replay.Measure(simulate(t, more, replay.Defaults))
	if sum(again.Waits) >= sum(after.Waits) {
		t.Errorf("two GPUs more: waits %v, before %v", sum(again.Waits), sum(after.Waits))
	}
}

func sum(ds []time.Duration) (s time.Duration) {
	for _, d := range ds {
		s += d
	}
	return s
}

func TestSameSeedSameJournal(t *testing.T) {
	text := func() string {
		var b []byte
		for _, j := range simulate(t, load(5, 6, 400), replay.Defaults) {
			for i := range j.Records {
				b, _ = record.Append(b, &j.Records[i])
			}
		}
		return string(b)
	}
	first := text()
	for range 3 {
		if text() != first {
			t.Fatal("two runs of one load differ")
		}
	}
}

func TestCallsThatCanNeverRunAreCounted(t *testing.T) {
	l := load(6, 4, 50)
	l.Remove("box2")
	l.Remove("box3")
	_, open, err := replay.Simulate(context.Background(), l, replay.Defaults, replay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	gpuCalls := 0
	for _, c := range l.Calls {
		gpuCalls += c.Stub
	}
	if open != 0 {
		t.Errorf("%d calls are neither run nor refused, %d need a GPU", open, gpuCalls)
	}
	l.Nodes = nil
	if _, _, err := replay.Simulate(context.Background(), l, replay.Defaults, replay.Options{}); err == nil {
		t.Error("a mesh without nodes runs")
	}
}

func TestReadFindsAndRefuses(t *testing.T) {
	js := simulate(t, load(7, 3, 40), replay.Defaults)
	var b []byte
	var err error
	for i := range js[0].Records {
		if b, err = record.Append(b, &js[0].Records[i]); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	half := len(b) / 2
	for b[half-1] != '\n' {
		half++
	}
	write("data/market/market-1-000001.jsonl", b[:half])
	write("data/market/market-1-000002.jsonl", append(b[half:len(b):len(b)], `{"at":5,"m":"own`...)) // torn by a kill
	got, err := replay.Read([]string{filepath.Join(dir, "data")})
	if err != nil || len(got) != 1 || len(got[0].Records) != len(js[0].Records) || got[0].Name != "box0" {
		t.Fatalf("%v, %d journals", err, len(got))
	}
	for name, c := range map[string]struct{ path, want string }{
		"no such folder":    {filepath.Join(dir, "none"), "no such file"},
		"no journal in it":  {t.TempDir(), "holds no market journal"},
		"not a journal":     {write("bad/market-1-000001.jsonl", []byte("hello\n")), "line 1"},
		"without its start": {write("tail/market-1-000009.jsonl", b[half:]), "does not have the start"},
		"given twice":       {filepath.Join(dir, "data", "market"), "given twice"},
	} {
		if _, err := replay.Read([]string{filepath.Join(dir, "data"), c.path}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q in it", name, err, c.want)
		}
	}
}

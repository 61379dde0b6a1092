package mesh_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/mesh"
	"github.com/beammesh/beammesh/simulations/trace/tracetest"
)

// full says whether to run at the size of the goals: minutes instead of seconds.
func full() bool { return os.Getenv("BEAM_MESH_FULL") != "" }

func run(t *testing.T, threads int, s simulations.Settings) *simulations.Result {
	t.Helper()
	start := time.Now()
	r, err := mesh.Experiment{Threads: threads}.Run(context.Background(), s)
	if err != nil {
		t.Fatalf("%v: %v", s.Values, err)
	}
	t.Logf("%s %v: %.1fs", s.Policy, s.Values, time.Since(start).Seconds())
	return r
}

func value(t *testing.T, r *simulations.Result, name string) float64 {
	t.Helper()
	m, ok := r.Metric(name)
	if !ok {
		t.Fatalf("no metric %q", name)
	}
	return m.Value
}

// TestDecentralisedPacksLikeCentral: 16 owners with views up to a minute old,
// that know nothing of the work to come, place the openb tasks as well as one
// scheduler that sees and knows all (FGD as published), with seven asks a task at
// most. With the refresh of the views from answers taken out they herd, which
// shows that the test can see it.
func TestDecentralisedPacksLikeCentral(t *testing.T) {
	dir := tracetest.Dir(t)
	seeds := []uint64{42}
	if full() {
		seeds = []uint64{42, 43, 44, 45, 46, 47, 48, 49, 50, 51}
	}
	var ours, central float64
	for _, seed := range seeds {
		s := simulations.Settings{Seed: seed, Traces: dir, Policy: mesh.FGD, Values: map[string]string{
			"list": "default", "run": "0s", "gossip": "60s", "keep": "false", "first": "8", "width": "8", "rounds": "3", "renew": "60s",
		}}
		best := value(t, run(t, 1, s), "unallocated_at_100")
		s.Policy = mesh.Ours
		r := run(t, 2, s)
		got, asks := value(t, r, "unallocated_at_100"), value(t, r, "asks")
		t.Logf("seed %d: %.2f %% unallocated, central %.2f %%, %.2f asks a task", seed, got, best, asks)
		if got > best+0.2 || asks > 7 {
			t.Errorf("seed %d: want at most %.2f %% and 7 asks", seed, best+0.2)
		}
		ours, central = ours+got, central+best
	}
	t.Logf("mean of %d seeds: %.2f %%, central %.2f %%", len(seeds), ours/float64(len(seeds)), central/float64(len(seeds)))

	herd := run(t, 2, simulations.Settings{Seed: 42, Traces: dir, Policy: mesh.NoRefresh, Values: map[string]string{
		"list": "default", "run": "0s", "gossip": "60s", "keep": "false", "first": "8", "width": "8", "rounds": "3", "renew": "60s", "percent": "101",
	}})
	if v := value(t, herd, "unallocated_at_100"); v < 10 {
		t.Errorf("without the refresh only %.1f %% are unallocated: the test would not notice a herd", v)
	}
}

// TestDeparturesAndOldViews: tasks come and go in a mesh that is asked for more
// than it has. Views that are a minute old cost at most one GPU of a hundred.
func TestDeparturesAndOldViews(t *testing.T) {
	dir := tracetest.Dir(t)
	// Twenty tasks a second that run for 500 seconds want 120 % of the mesh; a
	// shorter run has more of both, and adverts as often as in a node (100 ms) take
	// minutes.
	every, length, percent, fresh, patience := "10ms", "100s", "200", "3s", "0s"
	if full() {
		every, length, percent, fresh, patience = "50ms", "500s", "300", "100ms", "1s"
	}
	s := func(policy, gossip, first, width, rounds, patience string) simulations.Settings {
		return simulations.Settings{Seed: 42, Traces: dir, Policy: policy, Values: map[string]string{
			"list": "default", "run": length, "every": every, "percent": percent, "gossip": gossip, "keep": "false", "patience": patience,
			"first": first, "width": width, "rounds": rounds, "renew": "60s", "takeover": "1s",
		}}
	}
	best := value(t, run(t, 1, s(mesh.FGD, "1s", "2", "6", "8", "0s")), "allocated_late")
	r := run(t, 2, s(mesh.Ours, fresh, "2", "6", "8", "0s"))
	now, asks := value(t, r, "allocated_late"), value(t, r, "asks")
	// What nobody seems to have room for is offered to all for a second, since old
	// views do not know. It brings nothing to those who see all.
	r = run(t, 2, s(mesh.Ours, "60s", "8", "8", "3", patience))
	old, oldAsks := value(t, r, "allocated_late"), value(t, r, "asks")
	t.Logf("allocated: central %.2f %%, with a second of patience %.2f %%; ours %.2f %% with %.2f asks, with views 60 s old %.2f %% with %.2f asks", best,
		value(t, run(t, 1, s(mesh.FGD, "1s", "2", "6", "8", patience)), "allocated_late"), now, asks, old, oldAsks)
	if now < best-0.2 || asks > 7 {
		t.Errorf("want at least %.2f %% with at most 7 asks", best-0.2)
	}
	if old < now-1 {
		t.Errorf("want at least %.2f %% with old views", now-1)
	}
}

// TestCostsDoNotGrow: what a task costs in messages, and what an owner hears of
// adverts, is the same in a mesh of a hundred times the nodes.
func TestCostsDoNotGrow(t *testing.T) {
	sizes, tasks := []int{1_000, 3_000}, 12
	if full() {
		sizes = []int{1_000, 10_000, 100_000}
	}
	var messages, heard []float64
	for _, n := range sizes {
		r := run(t, 2, simulations.Settings{Seed: 7, Values: map[string]string{
			"nodes": fmt.Sprint(n), "owners": fmt.Sprint(n / 250), "tasks": fmt.Sprint(n * tasks), "gossip": "5s",
		}})
		messages, heard = append(messages, value(t, r, "messages")), append(heard, value(t, r, "adverts_heard"))
		t.Logf("%d nodes: %.2f messages a task, %.1f adverts an owner and second, %.0f nodes known to an owner", n,
			value(t, r, "messages"), value(t, r, "adverts_heard"), value(t, r, "known_nodes"))
		if known := value(t, r, "known_nodes"); known > (scheduler.OwnTopics+scheduler.FarTopics)*scheduler.MaxTopicNodes {
			t.Errorf("an owner listens to %.0f of %d nodes", known, n)
		}
		if done := value(t, r, "lost_tasks") + value(t, r, "given_up"); done != 0 {
			t.Errorf("%.0f tasks were not done", done)
		}
	}
	if lo, hi := slices.Min(messages), slices.Max(messages); hi > 10 || hi-lo > 0.1*(hi+lo)/2 {
		t.Errorf("messages a task: %.2f, want at most 10 and within 5 %% of each other", messages)
	}
	// A small mesh is heard whole, so it is what larger ones are measured by.
	if hi := slices.Max(heard); hi > 1.6*heard[0] {
		t.Errorf("adverts heard: %.1f grow with the mesh", heard)
	}
}

// TestDeathsLoseNothing: a tenth of the nodes dies at once, or owners do, one
// after the other. Every task is done, none is accepted twice, and what ran on a
// dead node is placed again within the lease and two seconds.
func TestDeathsLoseNothing(t *testing.T) {
	nodes := "300"
	if full() {
		nodes = "10000"
	}
	for _, c := range []struct {
		name   string
		values map[string]string
		within time.Duration
	}{
		{"nodes, connections break", map[string]string{"kill_nodes": "10"}, 3 * time.Second},
		{"nodes, packets vanish", map[string]string{"kill_nodes": "10", "detect": "0s"}, 17 * time.Second},
		{"nodes that come back", map[string]string{"kill_nodes": "10", "back": "4s", "detect": "0s"}, 17 * time.Second},
		{"owners", map[string]string{"kill_owners": "3"}, 0},
		{"both, and messages are lost", map[string]string{"kill_owners": "3", "kill_nodes": "10", "loss": "20000"}, 20 * time.Second}, // its owner may be 3 s away too
	} {
		t.Run(c.name, func(t *testing.T) {
			s := simulations.Settings{Seed: 11, Values: map[string]string{
				"nodes": nodes, "owners": "8", "tasks": "6000", "gossip": "2s", "fault_at": "6s", "zone": "100", "load": "50", "far": "5ms",
			}}
			if full() {
				s.Values["tasks"], s.Values["owners"] = "100000", "40"
			}
			for k, v := range c.values {
				s.Values[k] = v
			}
			r := run(t, 2, s)
			again := time.Duration(value(t, r, "replace_p99") * float64(time.Millisecond))
			t.Logf("%.0f leases lost, placed again within %v (p99)", value(t, r, "lost_leases"), again)
			if lost, twice, up := value(t, r, "lost_tasks"), value(t, r, "accepted_twice"), value(t, r, "given_up"); lost+twice+up != 0 {
				t.Errorf("%.0f tasks lost, %.0f accepted twice, %.0f given up", lost, twice, up)
			}
			if c.within > 0 && (again > c.within || value(t, r, "lost_leases") == 0) {
				t.Errorf("placed again within %v (p99) after %.0f losses, want %v", again, value(t, r, "lost_leases"), c.within)
			}
		})
	}
}

// TestSameBytes: a run is a function of its seed, whatever the number of cores.
func TestSameBytes(t *testing.T) {
	of := func(seed uint64, threads int) string {
		r := run(t, threads, simulations.Settings{Seed: seed, Values: map[string]string{
			"nodes": "200", "owners": "5", "tasks": "3000", "zone": "50", "gossip": "1s", "kill_nodes": "10", "kill_owners": "2",
			"fault_at": "3s", "back": "5s", "loss": "10000", "load": "90",
		}})
		return fmt.Sprint(r.Metrics)
	}
	want := of(1, 1)
	for _, threads := range []int{1, 2, 3, 8} {
		if got := of(1, threads); got != want {
			t.Errorf("with %d threads:\n%s\nwith one:\n%s", threads, got, want)
		}
	}
	if of(2, 2) == want {
		t.Error("another seed gives the same run")
	}
}

func TestBadSettingsSaySo(t *testing.T) {
	for want, values := range map[string]map[string]string{
		"0 nodes":                   {"nodes": "0"},
		"0 owners":                  {"owners": "0"},
		`not "many"`:                {"nodes": "many"},
		"needs the openb trace":     {"list": "default"},
		"far not below it":          {"far": "1us"},
		"want learned":              {"mix": "guessed"},
		"at most 100 %":             {"kill_nodes": "101"},
		"unknown parameter":         {"noodles": "3"},
		"run 0s, load 60 %: each m": {"run": "0s"},
	} {
		_, err := mesh.Experiment{}.Run(context.Background(), simulations.Settings{Values: values})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want %q in it", values, err, want)
		}
	}
	if _, err := mesh.New(mesh.Config{Tasks: make([][]mesh.Task, 1), Latency: time.Millisecond}); err == nil {
		t.Error("a mesh without nodes is made")
	}
}

func smallConfig(t *testing.T) mesh.Config {
	t.Helper()
	cfg := mesh.Config{Seed: 3, Latency: time.Millisecond, Discovery: 50 * time.Millisecond, GossipEvery: time.Second, Keep: true, Check: true}
	if err := (mesh.Synthetic{Seed: 3, Nodes: 20, Owners: 2, Tasks: 40, Run: time.Second, LoadPercent: 50}).Fill(&cfg); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestImpossibleDemandIsToldAtOnce: as soon as the directory has been asked.
func TestImpossibleDemandIsToldAtOnce(t *testing.T) {
	cfg := smallConfig(t)
	cfg.Kinds = append(cfg.Kinds, scheduler.Demand{CPUMillis: 1000, GPUs: []gpu.Want{{Class: "B200", Count: 64}}})
	cfg.Tasks[0][5].Kind = int32(len(cfg.Kinds) - 1)
	w, err := mesh.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Run(context.Background(), time.Minute); err != nil {
		t.Fatal(err)
	}
	task, s := &cfg.Tasks[0][5], w.Stats()
	if task.State != mesh.Refused || s.Told.N() != 1 || s.Told.Quantile(1000) > 100*time.Millisecond {
		t.Errorf("state %d, told %d times, after %v", task.State, s.Told.N(), s.Told.Quantile(1000))
	}
	if o := w.Outcome(); o.Done != 39 || o.Refused != 1 {
		t.Errorf("the other tasks: %+v", o)
	}
}

// TestPanicLeadsBack: a policy or machine that panics stops the run with the
// seed, the event and its time, the same with any number of cores.
// TestPatience: a task that comes half a second too early waits for room as long
// as it may, at owners and in the central scheduler alike.
func TestPatience(t *testing.T) {
	for _, c := range []struct {
		patience time.Duration
		want     mesh.TaskState
	}{{0, mesh.GivenUp}, {200 * time.Millisecond, mesh.GivenUp}, {3 * time.Second, mesh.Done}} {
		for _, policy := range []string{mesh.Ours, mesh.FGD} {
			cfg := smallConfig(t)
			cfg.Keep, cfg.Patience = false, c.patience
			cfg.Kinds = []scheduler.Demand{{CPUMillis: 1000, MemoryMiB: 1, GPUs: []gpu.Want{{Class: "H100", Count: 1}}}}
			r := scheduler.Resources{CPUMillis: 8000, MemoryMiB: 1 << 14, DiskMiB: 1 << 16}
			cfg.Nodes = []scheduler.Capacity{{Total: r, Free: r, Devices: []scheduler.Device{{ID: "0", Class: "H100", MemoryMiB: 80 << 10, FreeMilli: 1000}}}}
			cfg.Tasks = [][]mesh.Task{{{At: 10 * time.Millisecond, Run: 700 * time.Millisecond}, {At: 200 * time.Millisecond, Run: 100 * time.Millisecond}}}
			if policy == mesh.FGD {
				if err := mesh.Central(context.Background(), &cfg); err != nil {
					t.Fatal(err)
				}
			} else {
				w, err := mesh.New(cfg)
				if err != nil {
					t.Fatal(err)
				}
				if err := w.Run(context.Background(), time.Minute); err != nil {
					t.Fatal(err)
				}
			}
			if a, b := cfg.Tasks[0][0].State, cfg.Tasks[0][1].State; a != mesh.Done || b != c.want {
				t.Errorf("%s, patience %v: states %d and %d, want %d and %d", policy, c.patience, a, b, mesh.Done, c.want)
			}
		}
	}
}

func TestPanicLeadsBack(t *testing.T) {
	var first *simulations.BrokenError
	for threads := 1; threads <= 3; threads++ {
		cfg := smallConfig(t)
		cfg.Threads = threads
		cfg.Tasks[1][7].Kind = 99 // there is no such kind
		w, err := mesh.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var broken *simulations.BrokenError
		if err := w.Run(context.Background(), time.Minute); !errors.As(err, &broken) || broken.Seed != 3 || broken.Event == 0 ||
			broken.At != cfg.Tasks[1][7].At.String() || !strings.Contains(broken.What, "out of range") {
			t.Fatalf("got %v", err)
		}
		if first == nil {
			first = broken
		}
		if *first != *broken {
			t.Errorf("with %d threads %v, with one %v", threads, broken, first)
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := mesh.Experiment{}.Run(ctx, simulations.Settings{Values: map[string]string{"nodes": "50", "owners": "2", "tasks": "20000"}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

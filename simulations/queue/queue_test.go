package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"

	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/engine"
)

// set makes settings of "name=value" words.
func set(seed uint64, policy, values string) simulations.Settings {
	s := simulations.Settings{Seed: seed, Policy: policy, Values: map[string]string{}}
	for _, word := range strings.Fields(values) {
		name, value, _ := strings.Cut(word, "=")
		s.Values[name] = value
	}
	return s
}

func measure(t testing.TB, s simulations.Settings) *simulations.Result {
	t.Helper()
	r, err := Experiment{}.Run(t.Context(), s)
	if err != nil {
		t.Fatalf("%s, seed %d, %v: %v", s.Policy, s.Seed, s.Values, err)
	}
	return r
}

func metric(t testing.TB, r *simulations.Result, name string) float64 {
	t.Helper()
	m, ok := r.Metric(name)
	if !ok {
		t.Fatalf("no metric %s", name)
	}
	return m.Value
}

// The published order (Sparrow, SOSP 2013, and its folklore): each step of
// knowing more is a step faster.
func TestPublishedOrder(t *testing.T) {
	order := []string{"ideal", "ours", "late-4", "late-2", "two-choices-steal", "two-choices", "random-steal", "random"}
	for _, load := range []string{"0.8", "0.9"} {
		last := 0.0
		for i, policy := range order {
			p50 := metric(t, measure(t, set(42, policy, "workers=1000 jobs=1000 load="+load)), "job_p50")
			if i > 0 && p50 <= last*1.01 {
				t.Errorf("load %s: job p50 of %s is %.1f ms, of %s %.1f ms", load, policy, p50, order[i-1], last)
			}
			last = p50
		}
	}
}

func TestOursIsNearTheIdeal(t *testing.T) {
	for load, most := range map[string]float64{"0.8": 1.05, "0.9": 1.15} {
		values := "workers=10000 jobs=2000 load=" + load
		ideal := metric(t, measure(t, set(42, "ideal", values)), "job_p50")
		ours := measure(t, set(42, "ours", values))
		if p50 := metric(t, ours, "job_p50"); p50 > most*ideal {
			t.Errorf("load %s: job p50 is %.1f ms, ideal %.1f ms", load, p50, ideal)
		}
		if n := metric(t, ours, "messages"); n > 8 {
			t.Errorf("load %s: %.2f messages per task", load, n)
		}
	}
}

// An owner per 625 workers, so that the mesh grows and not the share of each.
func TestMessagesPerTaskAreFlat(t *testing.T) {
	for _, policy := range []string{"ours", "late-2", "two-choices"} {
		least, most := 1e9, 0.0
		for _, values := range []string{
			"workers=1000 owners=2 jobs=2000", "workers=10000 owners=16 jobs=2000", "workers=100000 owners=160 jobs=5000",
		} {
			n := metric(t, measure(t, set(42, policy, values)), "messages")
			least, most = min(least, n), max(most, n)
		}
		if middle := (least + most) / 2; most > 1.05*middle {
			t.Errorf("%s: between %.2f and %.2f messages per task, more than 5 %% around the middle", policy, least, most)
		}
	}
}

// A run is a function of its settings, however many cores there are and whatever
// else runs.
func TestSameSeedSameBytes(t *testing.T) {
	bytes := func(policy string) string {
		r := measure(t, set(7, policy, "workers=200 slots=2 jobs=200 tasks=20 kill=20 kill_at=300ms distribution=lognormal load=0.7"))
		b, err := json.Marshal(r)
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	defer goruntime.GOMAXPROCS(goruntime.GOMAXPROCS(1))
	alone := map[string]string{}
	for _, policy := range (Experiment{}).Policies() {
		alone[policy] = bytes(policy)
	}
	goruntime.GOMAXPROCS(4)
	var wg sync.WaitGroup
	for _, policy := range (Experiment{}).Policies() {
		for range 2 {
			wg.Go(func() {
				if got := bytes(policy); got != alone[policy] {
					t.Errorf("%s: another result beside other runs:\n%s\n%s", policy, got, alone[policy])
				}
			})
		}
	}
	wg.Wait()
	if other := measure(t, set(8, "ours", "workers=200 jobs=200")); metric(t, other, "events") == metric(t, measure(t, set(9, "ours", "workers=200 jobs=200")), "events") {
		t.Error("two seeds gave as many events; does the seed matter?")
	}
}

// The same bytes on every kind of machine: run on arm64, this finds what fuses
// or rounds otherwise. A change of a policy changes its line, on purpose.
func TestResultsHaveTheSameBytesEverywhere(t *testing.T) {
	golden := map[string]uint32{
		"ours":              0x4f6ce947,
		"ideal":             0xfb9290ac,
		"late-4":            0x3f7783c0,
		"late-2":            0xf4cd4d91,
		"two-choices-steal": 0x1789eb17,
		"two-choices":       0x33cce4d0,
		"random-steal":      0xbe59addf,
		"random":            0xb9d5ad50,
	}
	for _, policy := range (Experiment{}).Policies() {
		h := fnv.New32a()
		for _, distribution := range []string{"fixed", "exponential", "lognormal"} {
			r := measure(t, set(7, policy, "workers=200 slots=2 jobs=200 tasks=20 kill=20 kill_at=300ms load=0.7 distribution="+distribution))
			if err := json.NewEncoder(h).Encode(r); err != nil {
				t.Fatal(err)
			}
		}
		if got := h.Sum32(); got != golden[policy] {
			t.Errorf("%s: %#x, want %#x", policy, got, golden[policy])
		}
	}
}

// Any world that can work does work: the World itself checks that no task is
// lost or runs twice.
func TestNothingIsLost(t *testing.T) {
	for _, e := range policies {
		t.Run(e.name, func(t *testing.T) {
			replaced := 0.0
			for seed := range uint64(150) {
				r := engine.Stream(seed, "settings", 0)
				pick := func(values ...string) string { return values[r.IntN(len(values))] }
				values := fmt.Sprintf("workers=%s slots=%s owners=%s tasks=%s jobs=%s delay=%s distribution=%s load=%s kill=%s kill_at=%s detect=%s",
					pick("2", "3", "20", "100"), pick("1", "2", "7"), pick("1", "2", "16", "40"), pick("1", "3", "30"), pick("1", "10", "100"),
					pick("0s", "500us", "30ms"), pick("fixed", "exponential", "lognormal"), pick("0.3", "0.9", "1.3"),
					pick("0", "30", "50"), pick("0s", "100ms", "400ms"), pick("0s", "1ms", "50ms", "1s"))
				replaced += metric(t, measure(t, set(seed, e.name, values)), "replaced_tasks")
			}
			if replaced == 0 {
				t.Error("no task was ever lost at a worker; the test tests nothing")
			}
		})
	}
}

// When all is done, every slot of our policy belongs to exactly one owner.
func TestOurSlotsAreConserved(t *testing.T) {
	for seed := range uint64(30) {
		w, err := run(t.Context(), set(seed, "", "workers=50 slots=2 owners=9 jobs=300 tasks=7 load=0.95"), newOurs)
		if err != nil {
			t.Fatal(err)
		}
		known := map[int32]int{}
		for i := range w.policy.(*ours).owners {
			o := &w.policy.(*ours).owners[i]
			for _, worker := range o.slots {
				known[worker]++
			}
			if o.running != 0 || o.backlog.len() != 0 || len(o.orders) != 0 {
				t.Errorf("seed %d: owner %d has %d tasks out, %d waiting, orders %v", seed, i, o.running, o.backlog.len(), o.orders)
			}
		}
		for worker := range int32(50) {
			if known[worker] != 2 {
				t.Errorf("seed %d: %d slots of worker %d are known", seed, known[worker], worker)
			}
		}
	}
}

func TestBadSettings(t *testing.T) {
	cases := []struct{ policy, values, want string }{
		{"", "workers=0", "workers is 0; it must be between 1 and"},
		{"", "workers=0 slots=-1", "slots is -1"},
		{"", "owners=0", "owners is 0"},
		{"", "owners=99999999", "it must be between 1 and 5000"},
		{"", "tasks=0", "tasks is 0"},
		{"", "jobs=0", "jobs is 0"},
		{"", "jobs=1000000 tasks=1000", "too many"},
		{"", "load=0", "load is 0"},
		{"", "load=2.1", "load is 2.1"},
		{"", "load=NaN", "load is NaN"},
		{"", "duration=-1s", "duration is -1s"},
		{"", "delay=-1ms", "delay is -1ms"},
		{"", "kill=100", "at least one of the 1000 workers must live"},
		{"", "workers=1 kill=60", "must live"},
		{"", "kill=NaN", "kill is NaN"},
		{"", "distribution=normal", `distribution is "normal"; it must be fixed`},
		{"", "duration=24h tasks=1000000 jobs=100 workers=1 load=0.000001", "years; take fewer jobs"},
		{"", "wrokers=3", `unknown parameter "wrokers"`},
		{"magic", "", `unknown policy "magic"; there are ours, ideal, `},
	}
	for _, c := range cases {
		_, err := Experiment{}.Run(t.Context(), set(1, c.policy, c.values))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: got %v, want %q in it", c.policy, c.values, err, c.want)
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := set(1, "random", "jobs=1000000")
	s.Progress = func(done, total int64) {
		if done <= 0 || done >= total || total != 100_000_000 {
			t.Errorf("progress %d of %d", done, total)
		}
		cancel()
	}
	if _, err := (Experiment{}).Run(ctx, s); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// BenchmarkTable is the full size of the published experiment; -benchtime 1x
// runs each once.
func BenchmarkTable(b *testing.B) {
	for _, load := range []string{"0.8", "0.9"} {
		for _, e := range policies {
			b.Run(e.name+"/load="+load, func(b *testing.B) {
				var r *simulations.Result
				events := 0.0
				for b.Loop() {
					r = measure(b, set(42, e.name, "workers=10000 jobs=20000 load="+load))
					events += metric(b, r, "events")
				}
				for _, name := range []string{"job_p50", "job_p95", "job_p99", "task_wait_p50", "task_wait_p99"} {
					b.ReportMetric(metric(b, r, name), name+"_ms")
				}
				b.ReportMetric(metric(b, r, "messages"), "messages/task")
				b.ReportMetric(events/b.Elapsed().Seconds(), "events/s")
			})
		}
	}
}

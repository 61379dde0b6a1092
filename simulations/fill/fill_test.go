package fill

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/simulations"
)

func made(seed uint64, policy string, more ...string) simulations.Settings {
	v := map[string]string{"list": Synthetic, "nodes": "60"}
	for _, m := range more {
		name, value, _ := strings.Cut(m, "=")
		v[name] = value
	}
	return simulations.Settings{Seed: seed, Policy: policy, Values: v}
}

func mustRun(t testing.TB, s simulations.Settings) *simulations.Result {
	t.Helper()
	r, err := Experiment{}.Run(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func metric(t testing.TB, r *simulations.Result, name string) float64 {
	t.Helper()
	m, ok := r.Metric(name)
	if !ok {
		t.Fatalf("no metric %s in %v", name, r.Metrics)
	}
	return m.Value
}

func TestPoliciesAreInTheirOrderOnMadeUpWork(t *testing.T) {
	got := map[string]float64{}
	for _, name := range (Experiment{}).Policies() {
		r := mustRun(t, made(1, name))
		got[name] = metric(t, r, "unallocated_at_130")
		for i, x := range r.Series[0].X {
			if a, f := r.Series[0].Y[i], r.Series[1].Y[i]; a < 0 || a > x+.51 || f < 0 || f > 100-a+.01 {
				t.Errorf("%s: at %v %% arrived %v %% are allocated and %v %% fragmented", name, x, a, f)
			}
		}
	}
	if !(got["fgd"] < got["random"] && got["bestfit"] < got["random"]) {
		t.Errorf("unallocated at 130 %%: %v", got)
	}
}

// A seed gives the same bits, whatever runs at the same time. The hash is of what
// amd64 gives; another architecture must give the same.
func TestSameSeedSameResult(t *testing.T) {
	type key struct {
		policy, tie string
		seed        uint64
	}
	results := make(chan struct {
		key
		r *simulations.Result
	})
	n := 0
	for range 2 {
		for _, policy := range (Experiment{}).Policies() {
			for _, tie := range []string{TieShuffled, TieRandom} {
				for seed := range uint64(2) {
					n++
					go func() {
						r, err := Experiment{}.Run(context.Background(), made(seed, policy, "tie="+tie, "nodes=20"))
						if err != nil {
							t.Error(err)
						}
						results <- struct {
							key
							r *simulations.Result
						}{key{policy, tie, seed}, r}
					}()
				}
			}
		}
	}
	first := map[key]*simulations.Result{}
	for range n {
		x := <-results
		if before, ok := first[x.key]; ok && !reflect.DeepEqual(before, x.r) {
			t.Errorf("%v gave two results", x.key)
		}
		first[x.key] = x.r
	}
	if reflect.DeepEqual(first[key{"fgd", TieShuffled, 0}], first[key{"fgd", TieShuffled, 1}]) {
		t.Error("two seeds gave the same result")
	}
	h := fnv.New64a()
	for _, m := range first[key{"fgd", TieRandom, 1}].Metrics {
		fmt.Fprintf(h, "%s %x\n", m.Name, math.Float64bits(m.Value))
	}
	if got, want := fmt.Sprintf("%016x", h.Sum64()), "f47cdf362e65045e"; got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
}

func TestMistakesAreSaid(t *testing.T) {
	for _, c := range []struct{ policy, value, want string }{
		{"fdg", "", `fill has no policy "fdg": use one of [fgd random`},
		{"fgd", "list=defualt", `there is no list "defualt": use synthetic or default, cpu050`},
		{"fgd", "list=default", "no directory of traces is set: set BEAM_TRACES, or use list=synthetic"},
		{"fgd", "tie=coin", `tie is shuffled, canonical or random, not "coin"`},
		{"fgd", "arrive=0", "arrive is 1 to 1000 percent, not 0"},
		{"fgd", "nodes=0", "nodes is 1 to"},
		{"fgd", "quantise=true", `unknown parameter "quantise"`},
	} {
		_, err := Experiment{}.Run(t.Context(), made(1, c.policy, strings.Fields(c.value)...))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: got %v, want %q", c.policy, c.value, err, c.want)
		}
	}
	s := made(1, "fgd", "list=default")
	s.Traces = t.TempDir()
	if _, err := (Experiment{}).Run(t.Context(), s); err == nil || !strings.Contains(err.Error(), "openb_node_list_gpu_node.csv") {
		t.Errorf("an empty directory of traces: %v", err)
	}
}

func TestEndOfTheContextStopsARun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := made(1, "bestfit", "nodes=2000")
	s.Progress = func(done, total int64) {
		if done > 0 {
			cancel()
		}
		if done == total {
			t.Error("it ran to the end")
		}
	}
	if _, err := (Experiment{}).Run(ctx, s); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// broken is a policy that goes wrong at its hundredth pick.
type broken struct {
	fullest
	picks int
	how   string
}

func (b *broken) Score(*scheduler.Demand, *Node) int64 { return 0 }

func (b *broken) Pick(d *scheduler.Demand, n *Node) scheduler.Picks {
	if b.picks++; b.picks == 100 {
		switch b.how {
		case "panics":
			panic("index out of range")
		case "picks too many":
			return b.fullest.Pick(d, n) | 1<<63
		}
	}
	return b.fullest.Pick(d, n)
}

func TestABrokenPolicyIsStoppedWithSeedAndEvent(t *testing.T) {
	for how, want := range map[string]string{"panics": "the policy panicked: index out of range", "picks too many": "the policy picked"} {
		p := Policy{Name: "broken", New: func(*Run) Scorer { return &broken{how: how} }}
		_, err := RunPolicy(t.Context(), made(9, ""), p)
		var b *simulations.BrokenError
		if !errors.As(err, &b) || b.Seed != 9 || b.Event != 100 || !strings.Contains(b.What, want) {
			t.Errorf("%s: got %v", how, err)
		}
	}
}

func TestArrivals(t *testing.T) {
	_, tasks, err := workload("", Synthetic, 60)
	if err != nil {
		t.Fatal(err)
	}
	for _, percent := range []string{"10", "100", "130", "500"} {
		r := mustRun(t, made(3, "bestfit", "arrive="+percent))
		x := r.Series[0].X
		if last := fmt.Sprint(x[len(x)-1]); last != percent {
			t.Errorf("%s %% were to arrive, %s did, of %d tasks", percent, last, len(tasks))
		}
	}
}

func BenchmarkFGD(b *testing.B) {
	s := made(1, "fgd", "nodes=1000")
	for b.Loop() {
		r := mustRun(b, s)
		b.ReportMetric(metric(b, r, "arrived")/b.Elapsed().Seconds()*float64(b.N), "tasks/s")
	}
}

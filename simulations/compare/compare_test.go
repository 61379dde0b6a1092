package compare

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/simulations/results"
)

// Values of the usual printed tables, and exact ones for 1 and 2 degrees.
func TestTQuantile(t *testing.T) {
	for _, c := range []struct{ p, df, want float64 }{
		{0.975, 1, math.Tan(math.Pi * 0.475)}, {0.95, 1, math.Tan(math.Pi * 0.45)}, {0.975, 2, 0.95 * math.Sqrt2 / math.Sqrt(1-0.95*0.95)},
		{0.975, 5, 2.570582}, {0.975, 9, 2.262157}, {0.995, 9, 3.249836}, {0.95, 20, 1.724718}, {0.975, 30, 2.042272},
		{0.975, 100, 1.983972}, {0.975, 1e6, 1.959966}, {0.025, 9, -2.262157}, {0.5, 3, 0},
	} {
		if got := TQuantile(c.p, c.df); math.Abs(got-c.want) > 1e-6*(1+math.Abs(c.want)) {
			t.Errorf("TQuantile(%v, %v) = %.9g, want %.9g", c.p, c.df, got, c.want)
		}
	}
}

func record(policy, load string, seed uint64, wait float64) results.Record {
	return results.Record{Experiment: "mmc", Policy: policy, Seed: seed, Params: map[string]string{"load": load},
		Metrics: []results.Metric{{Name: "wait", Unit: "s", Value: wait, Better: -1}, {Name: "served", Value: 5, Better: 1}, {Name: "size", Value: wait}}}
}

// The worked example is small enough to check by hand: differences -1, -2, -3
// have mean -2 and deviation 1, so the interval is -2 ± 4.302653/sqrt(3).
func TestPaired(t *testing.T) {
	var r []results.Record
	for seed, base := range []float64{100, 10, 1000} {
		r = append(r, record("a", "0.5", uint64(seed), base), record("b", "0.5", uint64(seed), base-float64(seed+1)))
	}
	c, err := Policies(r, "a", "b")
	if err != nil || len(c.Rows) != 3 || c.A != "policy=a" || c.B != "policy=b" {
		t.Fatalf("%+v, %v", c, err)
	}
	w := c.Rows[0]
	half := 4.302652730 / math.Sqrt(3)
	if !w.Paired || math.Abs(w.Difference+2) > 1e-12 || math.Abs(w.Low+2+half) > 1e-6 || math.Abs(w.High+2-half) > 1e-6 || w.Verdict != NoneSeen {
		t.Errorf("got %+v", w)
	}
	if c.Rows[1].Verdict != NoneSeen || c.Rows[1].Low != 0 || c.Rows[1].High != 0 {
		t.Errorf("equal values: %+v", c.Rows[1])
	}
	// The same means without common seeds: the spread between seeds hides all.
	for i := range r {
		if r[i].Policy == "b" {
			r[i].Seed += 100
		}
	}
	if c, err = Policies(r, "a", "b"); err != nil || c.Rows[0].Paired || c.Rows[0].High-c.Rows[0].Low < 100 {
		t.Errorf("without common seeds: %+v, %v", c.Rows[0], err)
	}
}

// Welch's interval by hand: A = 1, 2, 3 and B = 11, 13: variances 1/3 and 1,
// df = (4/3)^2 / ((1/3)^2/2 + 1) = 1.684.
func TestWelch(t *testing.T) {
	r := []results.Record{record("a", "0.5", 1, 1), record("a", "0.5", 2, 2), record("a", "0.5", 3, 3),
		record("b", "0.5", 11, 11), record("b", "0.5", 12, 13)}
	c, err := Policies(r, "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	w := c.Rows[0]
	half := TQuantile(0.975, 16.0/9/(1.0/18+1)) * math.Sqrt(4.0/3)
	if w.Paired || w.Difference != 10 || math.Abs(w.High-10-half) > 1e-9 || w.Verdict != Worse || math.Abs(w.Percent()-500) > 1e-9 {
		t.Errorf("got %+v, want ± %v", w, half)
	}
	if c.Rows[2].Verdict != Differs {
		t.Errorf("a metric without a good side: %s", c.Rows[2].Verdict)
	}
}

// A 95 % interval holds the truth in 95 % of the cases.
func TestIntervalsHoldTheTruth(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const trials = 4000
	for _, shift := range []uint64{0, 100} { // paired, then not
		held := 0
		for range trials {
			var a, b []results.Record
			for seed := range uint64(5) {
				base := rng.NormFloat64()
				a = append(a, record("a", "1", seed, base))
				b = append(b, record("b", "1", seed+shift, 3+rng.NormFloat64()+base*float64(100-shift)/100))
			}
			c, err := Sets(a, b)
			if err != nil || c.Rows[0].Paired != (shift == 0) {
				t.Fatal(c, err)
			}
			if c.Rows[0].Low <= 3 && 3 <= c.Rows[0].High {
				held++
			}
		}
		// Three deviations of a binomial are 1 %.
		if share := float64(held) / trials; share < 0.935 || share > 0.97 {
			t.Errorf("shift %d: %.3f of the intervals hold the truth, want 0.95", shift, share)
		}
	}
}

func TestSetsMatchWhatIsEqual(t *testing.T) {
	a := []results.Record{record("fgd", "0.5", 1, 4), record("fgd", "0.5", 2, 5), record("fgd", "0.9", 1, 9), record("best", "0.5", 1, 6)}
	b := []results.Record{record("fgd", "0.5", 1, 3), record("fgd", "0.5", 2, 3.9), record("fgd", "0.9", 1, 9), record("mine", "0.5", 1, 6)}
	c, err := Sets(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Rows) != 6 || c.Rows[0].Group != "policy=fgd load=0.5" || c.Rows[3].Group != "policy=fgd load=0.9" || len(c.Alone) != 2 {
		t.Fatalf("got %+v, alone %q", c.Rows, c.Alone)
	}
	if c.Rows[0].Verdict != Better || c.Rows[3].Verdict != TooFew {
		t.Errorf("verdicts %s, %s", c.Rows[0].Verdict, c.Rows[3].Verdict)
	}
	// One parameter that differs is what is compared.
	c, err = Sets([]results.Record{record("fgd", "0.5", 1, 4)}, []results.Record{record("fgd", "0.9", 1, 4)})
	if err != nil || c.A != "load=0.5" || c.B != "load=0.9" || len(c.Rows) != 3 {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestNothingToCompare(t *testing.T) {
	r := []results.Record{record("a", "0.5", 1, 4)}
	if _, err := Policies(r, "a", "c"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("unknown policy: %v", err)
	}
	failed := record("b", "0.5", 1, 4)
	failed.Failed, failed.Metrics = &results.Failure{What: "panic"}, nil
	if _, err := Sets(r, []results.Record{failed}); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("only failed runs: %v", err)
	}
	if _, err := Sets(nil, nil); err == nil {
		t.Error("nothing at all is comparable")
	}
}

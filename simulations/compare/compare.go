package compare

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/simulations/results"
)

// Level is the confidence of all intervals.
const Level = 0.95

// Verdict is what a difference means.
type Verdict string

// The verdicts, about B seen from A.
const (
	Better   Verdict = "better"
	Worse    Verdict = "worse"
	Differs  Verdict = "differs" // neither side of this metric is the good one
	NoneSeen Verdict = "no difference"
	TooFew   Verdict = "one seed" // nothing can be said of its spread
)

// Comparison is B against A.
type Comparison struct {
	// A and B are what is compared, by what tells the two apart: "policy=fgd".
	A, B string
	Rows []Row
	// Alone are groups that only one of the two has, by their titles.
	Alone []string
}

// Row is one metric at one point of the parameters.
type Row struct {
	Group        string // "load=0.8"; "" when there is only one
	Metric, Unit string
	A, B         results.Stat
	Difference   float64 // mean of B - mean of A
	// Low and High are the ends of the interval; NaN with the verdict TooFew.
	Low, High float64
	Paired    bool
	Verdict   Verdict
}

// Percent is the difference in percent of A's mean; NaN where that is 0.
func (r *Row) Percent() float64 {
	if r.A.Mean == 0 {
		return math.NaN()
	}
	return 100 * r.Difference / math.Abs(r.A.Mean)
}

// Policies compares two policies of one set of results.
func Policies(records []results.Record, a, b string) (*Comparison, error) {
	pick := func(name string) ([]results.Record, error) {
		var names []string
		var out []results.Record
		for _, r := range records {
			if r.Policy == name {
				out = append(out, r)
			}
			if !slices.Contains(names, r.Policy) {
				names = append(names, r.Policy)
			}
		}
		if out == nil {
			return nil, fault.New(fault.NotFound, fmt.Sprintf("no run of policy %q in these results", name), "there is "+strings.Join(names, ", "))
		}
		return out, nil
	}
	x, err := pick(a)
	if err != nil {
		return nil, err
	}
	y, err := pick(b)
	if err != nil {
		return nil, err
	}
	return Sets(x, y)
}

// Sets compares two sets of results. Runs are matched by experiment, policy,
// trace and parameters; what has one value in A and one in B is what is
// compared, and not matched.
func Sets(a, b []results.Record) (*Comparison, error) {
	dims := dimensions(a, b)
	var c Comparison
	var match []dimension
	for _, d := range dims {
		x, y := values(a, d), values(b, d)
		switch {
		case len(x) == 1 && len(y) == 1 && x[0] != y[0]:
			c.A, c.B = join(c.A, d.name, x[0]), join(c.B, d.name, y[0])
		case len(x) > 1 || len(y) > 1:
			match = append(match, d)
		}
	}
	groupsA, groupsB := split(a, match), split(b, match)
	for _, g := range groupsA {
		if i := slices.IndexFunc(groupsB, func(o group) bool { return o.title == g.title }); i >= 0 {
			c.Rows = append(c.Rows, rows(g, groupsB[i])...)
		} else {
			c.Alone = append(c.Alone, g.title)
		}
	}
	for _, g := range groupsB {
		if !slices.ContainsFunc(groupsA, func(o group) bool { return o.title == g.title }) {
			c.Alone = append(c.Alone, g.title)
		}
	}
	if len(c.Rows) == 0 {
		return nil, fault.New(fault.Invalid, "the two have no runs that can be compared",
			"same experiment, same parameters (one may differ), and runs that did not fail")
	}
	return &c, nil
}

// dimension is something that runs are told apart by, but for the seed.
type dimension struct {
	name string
	of   func(r *results.Record) string
}

func dimensions(sets ...[]results.Record) []dimension {
	dims := []dimension{
		{"experiment", func(r *results.Record) string { return r.Experiment }},
		{"policy", func(r *results.Record) string { return r.Policy }},
	}
	var params []string
	for _, set := range sets {
		for _, r := range set {
			for name := range r.Params {
				if !slices.Contains(params, name) {
					params = append(params, name)
				}
			}
		}
	}
	slices.Sort(params)
	for _, name := range params {
		dims = append(dims, dimension{name, func(r *results.Record) string { return r.Params[name] }})
	}
	return append(dims, dimension{"trace", func(r *results.Record) string { return r.Trace[:min(8, len(r.Trace))] }})
}

// values are the different ones, in order of the records.
func values(set []results.Record, d dimension) []string {
	var out []string
	for i := range set {
		if v := d.of(&set[i]); !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

func join(text, name, value string) string {
	if value == "" {
		value = "none"
	}
	return strings.TrimSpace(text + " " + name + "=" + value)
}

type group struct {
	title   string
	records []*results.Record // without failed ones, by seed
}

func split(set []results.Record, match []dimension) []group {
	var out []group
	set = slices.Clone(set)
	slices.SortStableFunc(set, func(a, b results.Record) int { return results.Compare(&a, &b) })
	for i := range set {
		r := &set[i]
		if r.Failed != nil {
			continue
		}
		title := ""
		for _, d := range match {
			title = join(title, d.name, d.of(r))
		}
		j := slices.IndexFunc(out, func(g group) bool { return g.title == title })
		if j < 0 {
			j, out = len(out), append(out, group{title: title})
		}
		out[j].records = append(out[j].records, r)
	}
	return out
}

// rows compares all metrics that both groups have, as A orders them.
func rows(a, b group) []Row {
	var out []Row
	for _, m := range a.records[0].Metrics {
		if r, ok := Metric(a.records, b.records, m.Name); ok {
			r.Group = a.title
			out = append(out, r)
		}
	}
	return out
}

// Metric compares one metric of two lists of records; false when one of them
// lacks it.
func Metric(a, b []*results.Record, name string) (Row, bool) {
	x, m := seeds(a, name)
	y, _ := seeds(b, name)
	if len(x) == 0 || len(y) == 0 {
		return Row{}, false
	}
	r := Row{Metric: name, Unit: m.Unit, A: stat(m, x), B: stat(m, y)}
	r.interval(x, y)
	r.Verdict = verdict(&r, m.Better)
	return r, true
}

// sample is a metric's value at one seed.
type sample struct {
	seed  uint64
	value float64
}

func seeds(records []*results.Record, metric string) (out []sample, last results.Metric) {
	for _, r := range records {
		for _, m := range r.Metrics {
			if m.Name == metric {
				out, last = append(out, sample{r.Seed, m.Value}), m
			}
		}
	}
	return out, last
}

func stat(m results.Metric, samples []sample) results.Stat {
	s := results.Stat{Name: m.Name, Unit: m.Unit, Better: m.Better}
	for _, x := range samples {
		s.Values = append(s.Values, x.value)
	}
	s.Mean, s.SD = results.MeanSD(s.Values)
	return s
}

// interval sets the difference and its ends.
func (r *Row) interval(a, b []sample) {
	if d := pairs(a, b); d != nil {
		mean, sd := results.MeanSD(d)
		half := TQuantile(1-(1-Level)/2, float64(len(d)-1)) * sd / math.Sqrt(float64(len(d)))
		r.Paired, r.Difference, r.Low, r.High = true, mean, mean-half, mean+half
		return
	}
	r.Difference = difference(r.A.Mean, r.B.Mean)
	if len(a) < 2 || len(b) < 2 {
		r.Low, r.High = math.NaN(), math.NaN()
		return
	}
	half := welch(&r.A, &r.B)
	r.Low, r.High = r.Difference-half, r.Difference+half
}

// pairs are the differences seed by seed, nil when pairing would leave out more
// than half of a side or leave less than two.
func pairs(a, b []sample) []float64 {
	var d []float64
	for _, x := range a {
		if i := slices.IndexFunc(b, func(y sample) bool { return y.seed == x.seed }); i >= 0 {
			d = append(d, difference(x.value, b[i].value))
		}
	}
	if len(d) < 2 || 2*len(d) < max(len(a), len(b)) {
		return nil
	}
	return d
}

// difference is b - a without what sums in another order leave behind.
func difference(a, b float64) float64 {
	if d := b - a; math.Abs(d) > 1e-12*math.Max(math.Abs(a), math.Abs(b)) {
		return d
	}
	return 0
}

// welch is half the width of Welch's interval, with the degrees of freedom of
// Welch and Satterthwaite (Biometrika 34, 1947).
func welch(a, b *results.Stat) float64 {
	na, nb := float64(len(a.Values)), float64(len(b.Values))
	va, vb := a.SD*a.SD/na, b.SD*b.SD/nb
	if va+vb == 0 {
		return 0
	}
	df := (va + vb) * (va + vb) / (va*va/(na-1) + vb*vb/(nb-1))
	return TQuantile(1-(1-Level)/2, df) * math.Sqrt(va+vb)
}

func verdict(r *Row, better int) Verdict {
	switch {
	case math.IsNaN(r.Low):
		return TooFew
	case r.Low <= 0 && r.High >= 0:
		return NoneSeen
	case better == 0:
		return Differs
	case (r.Difference > 0) == (better > 0):
		return Better
	}
	return Worse
}

package results

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/beammesh/beammesh/simulations"
)

// Record is one run and what came of it. A record has metrics or a failure.
type Record struct {
	Experiment string            `json:"experiment"`
	Policy     string            `json:"policy"`
	Seed       uint64            `json:"seed"`
	Params     map[string]string `json:"params"`
	// Trace is the SHA-256 of the traces that the run read, "" without any.
	Trace   string   `json:"trace,omitempty"`
	Failed  *Failure `json:"failed,omitempty"`
	Metrics []Metric `json:"metrics,omitempty"`
	Series  []Series `json:"series,omitempty"`
}

// Failure is why a run has no metrics.
type Failure struct {
	What  string `json:"what"`
	Event uint64 `json:"event,omitempty"` // the number of the event, 0 = not known
	At    string `json:"at,omitempty"`    // its virtual time
}

// Metric is simulations.Metric as it is stored.
type Metric struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit,omitempty"`
	Value  float64 `json:"value"`
	Better int     `json:"better,omitempty"`
}

// Series is simulations.Series as it is stored.
type Series struct {
	Plot   string    `json:"plot"`
	Label  string    `json:"label,omitempty"`
	XLabel string    `json:"x_label,omitempty"`
	YLabel string    `json:"y_label,omitempty"`
	X      []float64 `json:"x"`
	Y      []float64 `json:"y"`
}

// SetResult takes over what a run found. It refuses what cannot be stored or
// drawn: numbers that are not finite, series whose halves differ in length.
func (r *Record) SetResult(res *simulations.Result) error {
	for _, m := range res.Metrics {
		if !finite(m.Value) {
			return fmt.Errorf("the metric %s is %v", m.Name, m.Value)
		}
		r.Metrics = append(r.Metrics, Metric(m))
	}
	for _, s := range res.Series {
		if len(s.X) != len(s.Y) {
			return fmt.Errorf("the series %q has %d x and %d y", s.Plot, len(s.X), len(s.Y))
		}
		if i := slices.IndexFunc(slices.Concat(s.X, s.Y), func(v float64) bool { return !finite(v) }); i >= 0 {
			return fmt.Errorf("the series %q has a point that is not finite", s.Plot)
		}
		r.Series = append(r.Series, Series(s))
	}
	return nil
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// Key tells runs apart: equal keys are the same run. It is short and made of
// everything that a run depends on but the code.
func (r *Record) Key() string {
	id := Record{Experiment: r.Experiment, Policy: r.Policy, Seed: r.Seed, Params: r.Params, Trace: r.Trace}
	b, err := json.Marshal(id) // the keys of a map come sorted
	if err != nil {
		panic(err) // strings and numbers only
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:10])
}

// Line is the record as it stands in a file, with the line break.
func (r *Record) Line() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		return nil, fmt.Errorf("store the run of %s: %w", r.Policy, err)
	}
	return b.Bytes(), nil
}

// Compare is the order of records in a finished file and in reports: by
// experiment, parameters, trace, policy and seed.
func Compare(a, b *Record) int {
	return cmp.Or(cmp.Compare(a.Experiment, b.Experiment), compareParams(a.Params, b.Params), cmp.Compare(a.Trace, b.Trace),
		cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Seed, b.Seed))
}

func compareParams(a, b map[string]string) int {
	for _, name := range paramNames(a, b) {
		if c := CompareValues(a[name], b[name]); c != 0 {
			return c
		}
	}
	return 0
}

// CompareValues orders values of a parameter: numbers by size, then words.
func CompareValues(a, b string) int {
	x, errX := strconv.ParseFloat(a, 64)
	y, errY := strconv.ParseFloat(b, 64)
	switch {
	case errX == nil && errY == nil:
		return cmp.Or(cmp.Compare(x, y), cmp.Compare(a, b))
	case errX == nil:
		return -1
	case errY == nil:
		return 1
	}
	return cmp.Compare(a, b)
}

// paramNames are the names that any of the maps has, sorted.
func paramNames(maps ...map[string]string) []string {
	have := map[string]bool{}
	var names []string
	for _, m := range maps {
		for name := range m {
			if !have[name] {
				have[name] = true
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

package scenario

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/simulations"
)

// MaxRuns is the most runs of one scenario: the plan of a sweep is held in
// memory, and this many runs of a second each take a day.
const MaxRuns = 100_000

// All stands for all policies of the experiment.
const All = "all"

// Scenario is a checked plan. Values are in one spelling each ("0.80" is kept
// as "0.8"), so that equal runs look equal.
type Scenario struct {
	Name       string // of the file without its ending, of the bundled one, or of the experiment
	Doc        string // the first comment
	Experiment simulations.Experiment
	Policies   []string
	Seeds      []uint64
	Set        map[string]string
	Sweep      []Axis
}

// Axis is a parameter with the values that it takes in turn.
type Axis struct {
	Name   string
	Values []string
}

// Run is one combination.
type Run struct {
	Policy string
	Seed   uint64
	// Params has every parameter of the experiment with the value that is used,
	// those at their defaults too: a result says what it was made of even after a
	// default changed.
	Params map[string]string
}

// Of is the scenario of an experiment alone: its first policy, seed 1, the
// defaults of its parameters.
func Of(e simulations.Experiment) *Scenario {
	return &Scenario{Name: e.Name(), Doc: e.Doc(), Experiment: e, Policies: e.Policies()[:1], Seeds: []uint64{1}, Set: map[string]string{}}
}

// Count is how many runs there are.
func (s *Scenario) Count() int {
	n := len(s.Policies) * len(s.Seeds)
	for _, a := range s.Sweep {
		n *= len(a.Values)
	}
	return n
}

// Runs lists all combinations. Seeds are the outermost loop: a sweep that was
// stopped half-way has every policy at every point, with fewer seeds.
func (s *Scenario) Runs() []Run {
	points := []map[string]string{s.base()}
	for _, a := range s.Sweep {
		var next []map[string]string
		for _, p := range points {
			for _, v := range a.Values {
				q := maps.Clone(p)
				q[a.Name] = v
				next = append(next, q)
			}
		}
		points = next
	}
	runs := make([]Run, 0, s.Count())
	for _, seed := range s.Seeds {
		for _, p := range points {
			for _, policy := range s.Policies {
				runs = append(runs, Run{Policy: policy, Seed: seed, Params: p})
			}
		}
	}
	return runs
}

// base has the parameters that all runs share.
func (s *Scenario) base() map[string]string {
	base := map[string]string{}
	for _, p := range s.Experiment.Params() {
		base[p.Name] = canonical(p.Kind, p.Default)
		if v, ok := s.Set[p.Name]; ok {
			base[p.Name] = v
		}
	}
	return base
}

// Settings is r as the experiment takes it.
func (r Run) Settings(e simulations.Experiment) simulations.Settings {
	values := map[string]string{}
	for _, p := range e.Params() {
		if v, ok := r.Params[p.Name]; ok && v != canonical(p.Kind, p.Default) {
			values[p.Name] = v
		}
	}
	return simulations.Settings{Seed: r.Seed, Policy: r.Policy, Values: values}
}

// SetPolicies replaces the policies; All alone stands for all there are.
func (s *Scenario) SetPolicies(names []string) error {
	known := s.Experiment.Policies()
	if len(names) == 1 && names[0] == All {
		s.Policies = known
		return nil
	}
	for i, name := range names {
		if !slices.Contains(known, name) {
			return fault.New(fault.Invalid, fmt.Sprintf("%s has no policy %q", s.Experiment.Name(), name), Suggest(name, known))
		}
		if slices.Contains(names[:i], name) {
			return fault.New(fault.Invalid, fmt.Sprintf("policy %q is listed twice", name), "name each once")
		}
	}
	s.Policies = names
	return s.checkCount()
}

// SetSeeds replaces the seeds: numbers and ranges such as "42..51".
func (s *Scenario) SetSeeds(words []string) error {
	var seeds []uint64
	have := map[uint64]bool{}
	for _, w := range words {
		from, to, ok := strings.Cut(w, "..")
		if !ok {
			to = from
		}
		a, errA := strconv.ParseUint(from, 10, 64)
		b, errB := strconv.ParseUint(to, 10, 64)
		if errA != nil || errB != nil || a > b {
			return fault.New(fault.Invalid, fmt.Sprintf("%q is no seed", w), "a whole number, or a range such as 42..51")
		}
		if b-a >= MaxRuns {
			return fault.New(fault.Invalid, fmt.Sprintf("%q has more than %d seeds", w, MaxRuns), "a smaller range")
		}
		for i := range b - a + 1 {
			if have[a+i] {
				return fault.New(fault.Invalid, fmt.Sprintf("seed %d is listed twice", a+i), "name each once")
			}
			have[a+i] = true
			seeds = append(seeds, a+i)
		}
	}
	s.Seeds = seeds
	return s.checkCount()
}

// SetValues gives a parameter one value for all runs, or several to sweep over.
// It replaces what was said of that parameter before.
func (s *Scenario) SetValues(name string, values []string) error {
	p, err := s.param(name)
	if err != nil {
		return err
	}
	clean := make([]string, len(values))
	for i, v := range values {
		if err := p.Check(v); err != nil {
			return fault.New(fault.Invalid, err.Error(), fmt.Sprintf("such as %s; it is: %s", p.Default, p.Doc))
		}
		if f, err := strconv.ParseFloat(v, 64); p.Kind == simulations.Float && (err != nil || math.IsNaN(f) || math.IsInf(f, 0)) {
			return fault.New(fault.Invalid, fmt.Sprintf("%s wants a finite number, not %q", name, v), "it is: "+p.Doc)
		}
		if strings.ContainsAny(v, " \t\r\n#") {
			return fault.New(fault.Invalid, fmt.Sprintf("the value %q of %s has a space or a # in it", v, name), "a scenario's values are single words")
		}
		clean[i] = canonical(p.Kind, v)
		if slices.Contains(clean[:i], clean[i]) {
			return fault.New(fault.Invalid, fmt.Sprintf("%s has the value %s twice", name, clean[i]), "name each once")
		}
	}
	delete(s.Set, name)
	s.Sweep = slices.DeleteFunc(s.Sweep, func(a Axis) bool { return a.Name == name })
	if len(clean) == 1 {
		s.Set[name] = clean[0]
	} else {
		s.Sweep = append(s.Sweep, Axis{Name: name, Values: clean})
	}
	return s.checkCount()
}

func (s *Scenario) param(name string) (simulations.Param, error) {
	params := s.Experiment.Params()
	names := make([]string, len(params))
	for i, p := range params {
		if p.Name == name {
			return p, nil
		}
		names[i] = p.Name
	}
	return simulations.Param{}, fault.New(fault.Invalid, fmt.Sprintf("%s has no parameter %q", s.Experiment.Name(), name), Suggest(name, names))
}

func (s *Scenario) checkCount() error {
	n := int64(len(s.Policies) * len(s.Seeds))
	for _, a := range s.Sweep {
		if n *= int64(len(a.Values)); n > MaxRuns {
			break
		}
	}
	if n > MaxRuns {
		return fault.New(fault.Invalid, fmt.Sprintf("that is more than %d runs", MaxRuns), "fewer seeds or values, or several scenarios")
	}
	return nil
}

// canonical is the one spelling of a value that Param.Check has accepted.
func canonical(kind simulations.Kind, value string) string {
	v := strings.TrimSpace(value)
	switch kind {
	case simulations.Int:
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			return strconv.FormatInt(n, 10)
		}
	case simulations.Float:
		if f, err := strconv.ParseFloat(v, 64); err == nil {
			return strconv.FormatFloat(f, 'g', -1, 64)
		}
	case simulations.Duration:
		if d, err := time.ParseDuration(v); err == nil {
			return d.String()
		}
	case simulations.Bool:
		if b, err := strconv.ParseBool(v); err == nil {
			return strconv.FormatBool(b)
		}
	case simulations.Text:
	}
	return v
}

package simulations

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Experiment is one kind of simulated world. Implementations hold no state
// between runs: Run may be called from several goroutines at once.
type Experiment interface {
	// Name is what a scenario calls it: "fill", "queue", "mesh".
	Name() string
	// Doc is one sentence for people.
	Doc() string
	// Policies are the names that Settings.Policy may have, the default first.
	Policies() []string
	// Params are what a scenario may set.
	Params() []Param
	// Run is a function of its Settings: the same ones give the same Result, bit
	// for bit, on every machine. It returns ctx's error soon after ctx ends.
	Run(ctx context.Context, s Settings) (*Result, error)
}

// Kind is the type of a parameter's value.
type Kind string

// The kinds, with how their values look.
const (
	Int      Kind = "int"      // 1000
	Float    Kind = "float"    // 0.8
	Duration Kind = "duration" // 100ms
	Text     Kind = "text"     // default
	Bool     Kind = "bool"     // true
)

// Param is one thing that a scenario may set.
type Param struct {
	Name    string
	Kind    Kind
	Default string
	Doc     string // with the unit
}

// Check says whether value is one of p's kind.
func (p Param) Check(value string) error {
	var err error
	switch p.Kind {
	case Int:
		_, err = strconv.ParseInt(value, 10, 64)
	case Float:
		_, err = strconv.ParseFloat(value, 64)
	case Duration:
		_, err = time.ParseDuration(value)
	case Bool:
		_, err = strconv.ParseBool(value)
	case Text:
	}
	if err != nil {
		return fmt.Errorf("%s wants a value of kind %s, not %q", p.Name, p.Kind, value)
	}
	return nil
}

// Settings is everything a run depends on.
type Settings struct {
	Seed   uint64
	Policy string
	// Values has the parameters that differ from their defaults.
	Values map[string]string
	// Traces is the directory of the trace files; "" where there is none.
	Traces string
	// Progress is told how far the run is, in tasks; nil = nobody asks. It is
	// called from the goroutine of Run, a few times a second at most.
	Progress func(done, total int64)
}

// Reader gives typed access to the values of s, with the defaults of params.
// The first bad value, or a name that params does not have, is in Err.
func (s Settings) Reader(params []Param) *Reader {
	r := &Reader{settings: s, params: params}
	names := make([]string, 0, len(s.Values))
	for name := range s.Values {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		i := slices.IndexFunc(params, func(p Param) bool { return p.Name == name })
		if i < 0 {
			r.fail(fmt.Errorf("unknown parameter %q", name))
		} else {
			r.fail(params[i].Check(s.Values[name]))
		}
	}
	return r
}

// Reader reads parameters. A name that was never declared is a mistake in the
// experiment and panics.
type Reader struct {
	settings Settings
	params   []Param
	err      error
}

// Err is the first thing that was wrong with the values.
func (r *Reader) Err() error { return r.err }

func (r *Reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *Reader) value(name string, kind Kind) string {
	for _, p := range r.params {
		if p.Name != name || p.Kind != kind {
			continue
		}
		if v, ok := r.settings.Values[name]; ok && p.Check(v) == nil {
			return strings.TrimSpace(v)
		}
		return p.Default
	}
	panic("simulations: parameter " + name + " of kind " + string(kind) + " is not declared")
}

// Int reads a whole number.
func (r *Reader) Int(name string) int {
	n, _ := strconv.ParseInt(r.value(name, Int), 10, 64)
	return int(n)
}

// Float reads a number.
func (r *Reader) Float(name string) float64 {
	f, _ := strconv.ParseFloat(r.value(name, Float), 64)
	return f
}

// Duration reads a length of time.
func (r *Reader) Duration(name string) time.Duration {
	d, _ := time.ParseDuration(r.value(name, Duration))
	return d
}

// Text reads a word.
func (r *Reader) Text(name string) string { return r.value(name, Text) }

// Bool reads a switch.
func (r *Reader) Bool(name string) bool {
	b, _ := strconv.ParseBool(r.value(name, Bool))
	return b
}

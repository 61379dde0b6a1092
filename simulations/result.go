package simulations

import "fmt"

// Result is what a run found out. Metrics and series keep the order in which
// they were added.
type Result struct {
	Metrics []Metric
	Series  []Series
}

// Metric is one number of a run.
type Metric struct {
	Name  string  // "unallocated_at_100", snake case, stable between versions
	Unit  string  // "%", "ms", "messages/task"; "" = a count
	Value float64 // finite
	// Better says which way is good: -1 lower, +1 higher, 0 neither.
	Better int
}

// Series is one curve of a run. Runs whose series have the same Plot are drawn
// into one picture, a line for each.
type Series struct {
	Plot   string // "allocation over arrival"
	Label  string // of the line, "" = the policy
	XLabel string // with its unit
	YLabel string
	X, Y   []float64 // equally long
}

// Add appends a metric.
func (r *Result) Add(name, unit string, better int, value float64) {
	r.Metrics = append(r.Metrics, Metric{Name: name, Unit: unit, Value: value, Better: better})
}

// Metric finds a metric by name.
func (r *Result) Metric(name string) (Metric, bool) {
	for _, m := range r.Metrics {
		if m.Name == name {
			return m, true
		}
	}
	return Metric{}, false
}

// BrokenError is a run that was stopped since the policy panicked or broke an
// invariant of the world. Seed and Event lead back to it.
type BrokenError struct {
	Seed  uint64
	Event uint64 // the number of the event, from 1
	At    string // its virtual time
	What  string
}

func (e *BrokenError) Error() string {
	return fmt.Sprintf("stopped at event %d (%s, seed %d): %s", e.Event, e.At, e.Seed, e.What)
}

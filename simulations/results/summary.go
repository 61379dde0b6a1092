package results

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Group is the runs of one experiment with one set of parameters; they differ in
// policy and seed.
type Group struct {
	Experiment string
	Params     map[string]string
	Trace      string
	// Differs are those of Params that differ between the groups of the same
	// experiment: the title of the group.
	Differs  []Setting
	Policies []Policy // in alphabetical order
}

// Setting is a parameter and its value.
type Setting struct{ Name, Value string }

// Title names a group: "load=0.8", "" when the experiment has only one.
func (g *Group) Title() string {
	words := make([]string, len(g.Differs))
	for i, d := range g.Differs {
		words[i] = d.Name + "=" + d.Value
	}
	return strings.Join(words, "  ")
}

// Policy is what the runs of one policy found.
type Policy struct {
	Name    string
	Records []*Record // that did not fail, by seed
	Failed  []*Record
	Metrics []Stat // as the experiment orders them
}

// Stat is a metric over seeds.
type Stat struct {
	Name, Unit string
	Better     int
	Values     []float64 // one for each record that has the metric, by seed
	Mean       float64
	// SD is the standard deviation of the values, with n-1; 0 for one value.
	SD float64
	// Best tells that no policy of the group has a better mean, where there are
	// several to choose from.
	Best bool
}

// Stat finds a metric of a policy.
func (p *Policy) Stat(name string) (*Stat, bool) {
	for i := range p.Metrics {
		if p.Metrics[i].Name == name {
			return &p.Metrics[i], true
		}
	}
	return nil, false
}

// MetricNames are the metrics that any policy of the group has, as the
// experiment orders them.
func (g *Group) MetricNames() []string {
	var names []string
	for _, p := range g.Policies {
		for _, m := range p.Metrics {
			if !slices.Contains(names, m.Name) {
				names = append(names, m.Name)
			}
		}
	}
	return names
}

// Summarize groups records. It reorders the slice.
func Summarize(records []Record) []Group {
	slices.SortStableFunc(records, func(a, b Record) int { return Compare(&a, &b) })
	var groups []Group
	for i := range records {
		r := &records[i]
		if n := len(groups); n == 0 || groups[n-1].Experiment != r.Experiment || groups[n-1].Trace != r.Trace ||
			compareParams(groups[n-1].Params, r.Params) != 0 {
			groups = append(groups, Group{Experiment: r.Experiment, Params: r.Params, Trace: r.Trace})
		}
		groups[len(groups)-1].add(r)
	}
	for i := range groups {
		groups[i].Differs = differing(groups, &groups[i])
		groups[i].finish()
	}
	return groups
}

func (g *Group) add(r *Record) {
	if n := len(g.Policies); n == 0 || g.Policies[n-1].Name != r.Policy {
		g.Policies = append(g.Policies, Policy{Name: r.Policy})
	}
	p := &g.Policies[len(g.Policies)-1]
	if r.Failed != nil {
		p.Failed = append(p.Failed, r)
		return
	}
	p.Records = append(p.Records, r)
	for _, m := range r.Metrics {
		s, ok := p.Stat(m.Name)
		if !ok {
			p.Metrics = append(p.Metrics, Stat{Name: m.Name, Unit: m.Unit, Better: m.Better})
			s = &p.Metrics[len(p.Metrics)-1]
		}
		s.Values = append(s.Values, m.Value)
	}
}

// differing are the parameters of g that another group of the experiment has
// with another value.
func differing(groups []Group, g *Group) []Setting {
	var out []Setting
	for _, name := range paramNames(g.Params) {
		if slices.ContainsFunc(groups, func(o Group) bool { return o.Experiment == g.Experiment && o.Params[name] != g.Params[name] }) {
			out = append(out, Setting{Name: name, Value: g.Params[name]})
		}
	}
	// The same parameters with other traces: the files were exchanged between.
	if slices.ContainsFunc(groups, func(o Group) bool {
		return o.Experiment == g.Experiment && o.Trace != g.Trace && compareParams(o.Params, g.Params) == 0
	}) {
		out = append(out, Setting{Name: "trace", Value: g.Trace[:min(8, len(g.Trace))]})
	}
	return out
}

func (g *Group) finish() {
	best, have := map[string]float64{}, map[string]int{}
	for i := range g.Policies {
		for j := range g.Policies[i].Metrics {
			s := &g.Policies[i].Metrics[j]
			s.Mean, s.SD = MeanSD(s.Values)
			have[s.Name]++
			if b, ok := best[s.Name]; !ok || float64(s.Better)*s.Mean > float64(s.Better)*b {
				best[s.Name] = s.Mean
			}
		}
	}
	for i := range g.Policies {
		for j := range g.Policies[i].Metrics {
			s := &g.Policies[i].Metrics[j]
			s.Best = s.Better != 0 && have[s.Name] > 1 &&
				math.Abs(s.Mean-best[s.Name]) <= 1e-12*math.Abs(s.Mean) // sums in another order are not worse
		}
	}
}

// MeanSD gives the mean and the standard deviation with n-1; 0 without values.
func MeanSD(values []float64) (mean, sd float64) {
	if len(values) == 0 {
		return 0, 0
	}
	for _, v := range values {
		mean += v / float64(len(values))
	}
	if len(values) == 1 {
		return values[0], 0
	}
	var sum float64
	for _, v := range values {
		sum += (v - mean) * (v - mean)
	}
	sd = math.Sqrt(sum / float64(len(values)-1))
	if sd <= 1e-12*math.Abs(mean) {
		sd = 0 // equal values, but for the rounding of their sum
	}
	return mean, sd
}

// Number prints a value with four digits that matter, or all of a whole number.
func Number(v float64) string {
	a := math.Abs(v)
	switch {
	case a == math.Trunc(a) && a < 1e7:
		return fmt.Sprintf("%.0f", v)
	case a >= 1e7 || a < 1e-3:
		return fmt.Sprintf("%.3g", v)
	case a >= 1000:
		return fmt.Sprintf("%.0f", v)
	case a >= 100:
		return fmt.Sprintf("%.1f", v)
	case a >= 10:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// MeanText is "4.770 ± 0.102", or the value alone where there is one.
func (s *Stat) MeanText() string {
	if len(s.Values) < 2 {
		return Number(s.Mean)
	}
	return Number(s.Mean) + " ± " + spread(s.Mean, s.SD)
}

// spread prints a deviation with as many decimals as its mean.
func spread(mean, sd float64) string {
	if sd == 0 {
		return "0"
	}
	if _, decimals, ok := strings.Cut(Number(mean), "."); ok && !strings.Contains(decimals, "e") {
		if s := fmt.Sprintf("%.*f", len(decimals), sd); strings.Trim(s, "0.") != "" {
			return s
		}
	}
	if sd >= 10 {
		return fmt.Sprintf("%.0f", sd)
	}
	return fmt.Sprintf("%.2g", sd)
}

package report

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/results"
)

// again says how to make the results once more, and what every parameter was.
func (d *drawing) again(groups []results.Group) {
	name := groups[0].Experiment
	text, runs := Scenario(groups)
	have := 0
	for _, g := range groups {
		for _, p := range g.Policies {
			have += len(p.Records) + len(p.Failed)
		}
	}
	d.b.WriteString("<h3>Run it again</h3>\n")
	if runs != have {
		fmt.Fprintf(d.b, "<p class=\"soft\">The scenario has %d runs, these results have %d of them.</p>\n", runs, have)
	}
	fmt.Fprintf(d.b, "<pre>")
	if v := d.page.Versions; len(v) == 1 && v[0] != "dev" {
		fmt.Fprintf(d.b, "# commit %s\n", esc(v[0]))
	}
	if groups[0].Trace != "" {
		d.b.WriteString("# BEAM_TRACES names the folder of the traces\n")
	}
	fmt.Fprintf(d.b, "cat &gt; again.sim &lt;&lt;'END'\n%sEND\nbeam sim sweep again.sim --results again-%s.jsonl\nbeam sim report again-%s.jsonl -o again-%s.html</pre>\n",
		esc(text), esc(name), esc(name), esc(name))
}

// Scenario is the text of a scenario that has all runs of the groups, which are
// of one experiment, and the number of its runs.
func Scenario(groups []results.Group) (text string, runs int) {
	var seeds []uint64
	values := map[string][]string{}
	for _, g := range groups {
		for _, p := range g.Policies {
			for _, r := range slices.Concat(p.Records, p.Failed) {
				seeds = append(seeds, r.Seed)
			}
		}
		for name, v := range g.Params {
			if !slices.Contains(values[name], v) {
				values[name] = append(values[name], v)
			}
		}
	}
	policies := policiesOf(groups)
	var b strings.Builder
	fmt.Fprintf(&b, "experiment %s\npolicy %s\nseeds %s\n", groups[0].Experiment, strings.Join(policies, " "), Seeds(seeds))
	runs = len(policies) * len(slices.Compact(slices.Sorted(slices.Values(seeds))))
	for _, name := range slices.Sorted(maps.Keys(values)) {
		// No value can be given by saying nothing only: it is the default.
		values[name] = slices.DeleteFunc(values[name], func(v string) bool { return v == "" })
		if len(values[name]) == 0 {
			continue
		}
		word := "set"
		if len(values[name]) > 1 {
			word = "sweep"
		}
		fmt.Fprintf(&b, "%s %s %s\n", word, name, strings.Join(values[name], " "))
		runs *= len(values[name])
	}
	return b.String(), runs
}

// Rerun is the command that does one run again. With the experiment known it
// leaves out parameters at their defaults.
func Rerun(r *results.Record, e simulations.Experiment) string {
	defaults := map[string]string{}
	if e != nil {
		for _, p := range e.Params() {
			defaults[p.Name] = p.Default
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "beam sim run %s --policy %s --seed %d", r.Experiment, r.Policy, r.Seed)
	for _, name := range slices.Sorted(maps.Keys(r.Params)) {
		if r.Params[name] != "" && r.Params[name] != defaults[name] {
			fmt.Fprintf(&b, " --set %s=%s", name, quoted(r.Params[name]))
		}
	}
	return b.String()
}

// quoted protects a word from the shell.
func quoted(word string) string {
	if strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:/,+-") == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

package sim

import (
	"fmt"
	"slices"
	"strings"

	"github.com/beammesh/beammesh/cli/output"
	"github.com/beammesh/beammesh/simulations/results"
)

// summaryPage is the tables for a terminal: for each group of runs a row for
// each metric, a column for each policy; "*" marks the best. Of one metric in
// several groups it is one table, a row for each group.
func summaryPage(p *output.Printer, groups []results.Group) string {
	var b strings.Builder
	for i := 0; i < len(groups); {
		j := i + 1
		for j < len(groups) && groups[j].Experiment == groups[i].Experiment {
			j++
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		if metric := single(groups[i:j]); metric != "" {
			metricTable(&b, p, groups[i:j], metric)
		} else {
			for n := range groups[i:j] {
				if n > 0 {
					b.WriteByte('\n')
				}
				groupTable(&b, p, &groups[i+n])
			}
		}
		i = j
	}
	return b.String()
}

// single is the metric of several groups that have no other.
func single(groups []results.Group) string {
	metric := ""
	for _, g := range groups {
		names := g.MetricNames()
		if len(groups) == 1 || len(names) > 1 || len(names) == 1 && metric != "" && names[0] != metric {
			return ""
		}
		if len(names) == 1 {
			metric = names[0]
		}
	}
	return metric
}

func metricTable(b *strings.Builder, p *output.Printer, groups []results.Group, metric string) {
	t := output.Table{Columns: []output.Column{{Title: "Runs"}}}
	var policies []string
	u := ""
	for _, g := range groups {
		for _, x := range g.Policies {
			if !slices.Contains(policies, x.Name) {
				policies = append(policies, x.Name)
			}
			if s, ok := x.Stat(metric); ok {
				u = s.Unit
			}
		}
	}
	for _, name := range policies {
		t.Columns = append(t.Columns, output.Column{Title: name, Right: true, Paint: paintBest})
	}
	for _, g := range groups {
		row := []string{g.Title()}
		for _, name := range policies {
			text := " "
			if i := slices.IndexFunc(g.Policies, func(x results.Policy) bool { return x.Name == name }); i >= 0 {
				text = statCell(&g, i, metric)
			}
			row = append(row, text)
		}
		t.Rows = append(t.Rows, row)
	}
	head := metric
	if u != "" {
		head += " (" + u + ")"
	}
	fmt.Fprintf(b, "%s  %s\n", p.Style.Bold(groups[0].Experiment), head)
	grid(b, p, t)
}

func groupTable(b *strings.Builder, p *output.Printer, g *results.Group) {
	head := p.Style.Bold(g.Experiment)
	if title := g.Title(); title != "" {
		head += "  " + title
	}
	t := output.Table{Columns: []output.Column{{Title: "Metric"}, {Title: "Unit"}}}
	least, most := -1, 0
	for _, x := range g.Policies {
		title := x.Name
		if n := len(x.Failed); n > 0 {
			title += fmt.Sprintf(" (%d failed)", n)
		}
		t.Columns = append(t.Columns, output.Column{Title: title, Right: true, Paint: paintBest})
		if n := len(x.Records); n > 0 && (least < 0 || n < least) {
			least = n
		}
		most = max(most, len(x.Records))
	}
	for _, m := range g.MetricNames() {
		row := []string{m, " "}
		for j := range g.Policies {
			if s, ok := g.Policies[j].Stat(m); ok {
				row[1] = unit(s.Unit)
			}
			row = append(row, statCell(g, j, m))
		}
		t.Rows = append(t.Rows, row)
	}
	seeds := plural(most, "seed")
	if least != most && least >= 0 {
		seeds = fmt.Sprintf("%d to %d seeds", least, most)
	}
	fmt.Fprintf(b, "%s  %s\n", head, p.Style.Dim(seeds))
	grid(b, p, t)
}

// grid writes a table without the room that marks take at the ends of lines.
func grid(b *strings.Builder, p *output.Printer, t output.Table) {
	for line := range strings.Lines(p.Grid(t, "  ")) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
}

// statCell is a policy's metric, with a mark or the room for one.
func statCell(g *results.Group, policy int, metric string) string {
	s, ok := g.Policies[policy].Stat(metric)
	switch {
	case !ok:
		return " "
	case s.Best:
		return s.MeanText() + " *"
	case len(g.Policies) > 1 && s.Better != 0:
		return s.MeanText() + "  "
	}
	return s.MeanText()
}

func paintBest(s output.Style, text string) string {
	if strings.HasSuffix(text, " *") {
		return s.Green(text)
	}
	return text
}

package report

import (
	"fmt"
	"slices"

	"github.com/beammesh/beammesh/simulations/compare"
	"github.com/beammesh/beammesh/simulations/results"
)

// series draws the curves of the runs: a picture for each plot of each group, a
// line for each policy, its mean over seeds with a band of one deviation.
func (d *drawing) series(groups []results.Group) {
	with := slices.DeleteFunc(slices.Clone(groups), func(g results.Group) bool { return len(plotsOf(&g)) == 0 })
	if len(with) == 0 {
		return
	}
	d.b.WriteString("<h3>Curves</h3>\n<p class=\"soft\">Lines are means over seeds; bands are one standard deviation to both sides.</p>\n")
	for i := range with {
		g := &with[i]
		if i == open {
			fmt.Fprintf(d.b, "<details><summary>%d more</summary>\n", len(with)-open)
		}
		if t := g.Title(); t != "" {
			fmt.Fprintf(d.b, "<h4>%s</h4>\n", esc(t))
		}
		d.b.WriteString("<div class=\"charts\">\n")
		for _, name := range plotsOf(g) {
			d.chart(d.plot(g, name))
		}
		d.b.WriteString("</div>\n")
	}
	if len(with) > open {
		d.b.WriteString("</details>\n")
	}
	if d.left > 0 {
		fmt.Fprintf(d.b, "<p class=\"bad\">%d pictures are left out; report fewer results at a time to see them.</p>\n", d.left)
		d.left = 0
	}
}

func plotsOf(g *results.Group) []string {
	var names []string
	for _, p := range g.Policies {
		for _, r := range p.Records {
			for _, s := range r.Series {
				if !slices.Contains(names, s.Plot) && len(s.X) > 0 {
					names = append(names, s.Plot)
				}
			}
		}
	}
	return names
}

// plot joins the series of one plot. Colours are policies and dashes are labels,
// or colours are labels when there is only one policy.
func (d *drawing) plot(g *results.Group, name string) *Plot {
	plot := &Plot{Title: name}
	var labels []string
	for _, p := range g.Policies {
		for _, r := range p.Records {
			for _, s := range r.Series {
				if label := labelOf(&p, &s); s.Plot == name && !slices.Contains(labels, label) {
					labels = append(labels, label)
				}
			}
		}
	}
	for _, p := range g.Policies {
		for i, label := range labels {
			var curves []curve
			for _, r := range p.Records {
				for _, s := range r.Series {
					if s.Plot == name && labelOf(&p, &s) == label && len(s.X) > 0 {
						curves = append(curves, curve{s.X, s.Y})
						plot.XLabel, plot.YLabel = s.XLabel, s.YLabel
					}
				}
			}
			x, mean, sd := meanCurve(curves)
			if len(x) == 0 {
				continue
			}
			l := Line{Name: lineName(p.Name, label, len(labels)), Color: d.color(p.Name), Dash: i}
			if len(g.Policies) == 1 && len(labels) > 1 {
				l.Name, l.Color, l.Dash = label, i, 0
			}
			for j := range x {
				l.add(x[j], mean[j], sd[j])
			}
			switch {
			case len(curves) == 1:
				l.Low, l.High = nil, nil
			case rising(curves): // a share is never above all
				l.clamp(curves)
			}
			plot.Lines = append(plot.Lines, l)
		}
	}
	return plot
}

// labelOf is a series' label, "" where it only repeats the policy.
func labelOf(p *results.Policy, s *results.Series) string {
	if s.Label == p.Name {
		return ""
	}
	return s.Label
}

func lineName(policy, label string, labels int) string {
	if label == "" || labels == 1 {
		return policy
	}
	return policy + ", " + label
}

// tiesBest tells whether a policy's metric cannot be told from the best one's.
func tiesBest(g *results.Group, p *results.Policy, metric string) bool {
	for i := range g.Policies {
		best := &g.Policies[i]
		if s, ok := best.Stat(metric); ok && s.Best {
			row, ok := compare.Metric(best.Records, p.Records, metric)
			return ok && row.Verdict == compare.NoneSeen
		}
	}
	return false
}

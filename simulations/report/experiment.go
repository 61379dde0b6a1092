package report

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/beammesh/beammesh/simulations/results"
)

// experiment is the part of the page about one experiment.
func (d *drawing) experiment(groups []results.Group) {
	name := groups[0].Experiment
	fmt.Fprintf(d.b, "<h2>%s</h2>\n", esc(name))
	if e := d.explained(name); e != nil {
		fmt.Fprintf(d.b, "<p>%s</p>\n", esc(e.Doc()))
	}
	d.failures(groups)
	d.tables(groups)
	axis := numericAxis(groups)
	if axis != "" {
		d.overAxis(groups, axis)
	}
	d.series(groups)
	if len(groups) == 1 {
		d.bars(&groups[0])
	}
	d.again(groups)
}

// failures lists runs that broke, with what leads back to them.
func (d *drawing) failures(groups []results.Group) {
	var failed []*results.Record
	for _, g := range groups {
		for _, p := range g.Policies {
			failed = append(failed, p.Failed...)
		}
	}
	if len(failed) == 0 {
		return
	}
	fmt.Fprintf(d.b, "<h3 class=\"bad\">%d runs failed</h3>\n<div class=\"wide\"><table>\n<thead><tr><th>Policy</th><th>Seed</th><th>Event</th><th>At</th><th class=\"text\">What</th><th class=\"text\">Run it again</th></tr></thead>\n<tbody>\n", len(failed))
	for i, r := range failed {
		if i == maxFailed {
			fmt.Fprintf(d.b, "<tr><td class=\"text\" colspan=\"6\">and %d more</td></tr>\n", len(failed)-i)
			break
		}
		event := "–"
		if r.Failed.Event > 0 {
			event = fmt.Sprint(r.Failed.Event)
		}
		fmt.Fprintf(d.b, "<tr><th>%s</th><td>%d</td><td>%s</td><td>%s</td><td class=\"text bad\">%s</td><td class=\"text\"><code>%s</code></td></tr>\n",
			esc(r.Policy), r.Seed, event, esc(r.Failed.At), esc(r.Failed.What), esc(Rerun(r, d.explained(r.Experiment))))
	}
	d.b.WriteString("</tbody></table></div>\n")
}

// open is how many tables and groups of pictures are seen at once; the others
// are folded in.
const open = 3

// tables are the numbers: metrics by policies where there is one group of runs,
// else for each metric the groups by policies.
func (d *drawing) tables(groups []results.Group) {
	n, least, most := 0, math.MaxInt, 0
	var policies, metrics []string
	for _, g := range groups {
		for _, p := range g.Policies {
			if k := len(p.Records); k > 0 {
				n, least, most = n+k, min(least, k), max(most, k)
				policies = append(policies, p.Name)
			}
		}
		for _, m := range g.MetricNames() {
			if !slices.Contains(metrics, m) {
				metrics = append(metrics, m)
			}
		}
	}
	if n == 0 {
		return
	}
	policies = unique(policies)
	over := fmt.Sprintf("%d seeds", most)
	if least != most {
		over = fmt.Sprintf("%d to %d seeds", least, most)
	}
	note := "Mean ± standard deviation over " + over + "."
	if most == 1 {
		note = "One seed: nothing is known about the spread."
	}
	if len(policies) > 1 {
		note += " Marked: the best of each row"
		if most > 1 {
			note += "; lightly: those that do not differ from it at 95 % confidence"
		}
		note += "."
	}
	fmt.Fprintf(d.b, "<h3>Summary</h3>\n<p class=\"soft\">%s</p>\n", note)
	if len(groups) == 1 {
		d.table(policies, "", len(metrics), func(i int) (*results.Group, string, string) {
			return &groups[0], metrics[i], metricTitle(groups, metrics[i])
		})
		return
	}
	// What has a good side is what policies are chosen by.
	slices.SortStableFunc(metrics, func(a, b string) int { return judged(groups, b) - judged(groups, a) })
	for i, m := range metrics {
		if i == open {
			fmt.Fprintf(d.b, "<details><summary>%d more metrics</summary>\n", len(metrics)-open)
		}
		d.table(policies, "<b>"+metricTitle(groups, m)+"</b>", len(groups), func(j int) (*results.Group, string, string) {
			return &groups[j], m, esc(groups[j].Title())
		})
	}
	if len(metrics) > open {
		d.b.WriteString("</details>\n")
	}
}

// judged is 1 for metrics that have a good side.
func judged(groups []results.Group, metric string) int {
	if s := anyStat(groups, metric); s != nil && s.Better != 0 {
		return 1
	}
	return 0
}

func anyStat(groups []results.Group, metric string) *results.Stat {
	for _, g := range groups {
		for i := range g.Policies {
			if s, ok := g.Policies[i].Stat(metric); ok {
				return s
			}
		}
	}
	return nil
}

// metricTitle is HTML: name, unit, which way is good.
func metricTitle(groups []results.Group, metric string) string {
	s := anyStat(groups, metric)
	title := esc(plain(metric))
	var small []string
	if s.Unit != "" {
		small = append(small, esc(s.Unit))
	}
	if s.Better != 0 {
		small = append(small, map[int]string{-1: "lower is better", 1: "higher is better"}[s.Better])
	}
	if len(small) > 0 {
		title += " <small>" + strings.Join(small, ", ") + "</small>"
	}
	return title
}

// plain makes words of a metric's name.
func plain(metric string) string { return strings.ReplaceAll(metric, "_", " ") }

// table has policies as columns and what row says as rows.
func (d *drawing) table(policies []string, caption string, rows int, row func(i int) (g *results.Group, metric, title string)) {
	d.b.WriteString("<div class=\"wide\"><table>\n")
	if caption != "" {
		fmt.Fprintf(d.b, "<caption>%s</caption>\n", caption)
	}
	d.b.WriteString("<thead><tr><th></th>")
	for _, p := range policies {
		fmt.Fprintf(d.b, `<th><i class="key c%d"></i>%s</th>`, d.color(p)%colors, esc(p))
	}
	d.b.WriteString("</tr></thead>\n<tbody>\n")
	for i := range rows {
		g, metric, title := row(i)
		fmt.Fprintf(d.b, "<tr><th>%s</th>", title)
		for _, p := range policies {
			d.cell(g, p, metric)
		}
		d.b.WriteString("</tr>\n")
	}
	d.b.WriteString("</tbody></table></div>\n")
}

func (d *drawing) cell(g *results.Group, policy, metric string) {
	i := slices.IndexFunc(g.Policies, func(p results.Policy) bool { return p.Name == policy })
	if i < 0 {
		d.b.WriteString("<td>–</td>")
		return
	}
	s, ok := g.Policies[i].Stat(metric)
	if !ok {
		d.b.WriteString("<td>–</td>")
		return
	}
	class, title := "", ""
	switch {
	case s.Best:
		class, title = ` class="best"`, ` title="the best"`
	case s.Better != 0 && tiesBest(g, &g.Policies[i], metric):
		class, title = ` class="tie"`, ` title="does not differ from the best"`
	}
	text := s.MeanText()
	if mean, sd, ok := strings.Cut(text, " ± "); ok {
		text = mean + ` <span class="sd">± ` + sd + "</span>"
	}
	fmt.Fprintf(d.b, "<td%s%s>%s</td>", class, title, text)
}

// numericAxis is the parameter that is swept over numbers: the only one that
// differs between the groups, with three values or more. "" = none.
func numericAxis(groups []results.Group) string {
	if len(groups) < 3 || len(groups[0].Differs) != 1 {
		return ""
	}
	for _, g := range groups {
		if _, ok := number(g.Differs[0].Value); !ok || len(g.Differs) != 1 {
			return ""
		}
	}
	return groups[0].Differs[0].Name
}

func number(value string) (float64, bool) {
	f, err := strconv.ParseFloat(value, 64)
	return f, err == nil && !math.IsNaN(f) && !math.IsInf(f, 0)
}

// overAxis draws each metric over the swept parameter.
func (d *drawing) overAxis(groups []results.Group, axis string) {
	label := axis
	if e := d.explained(groups[0].Experiment); e != nil {
		for _, p := range e.Params() {
			if p.Name == axis && p.Doc != "" {
				label = axis + ": " + p.Doc
			}
		}
	}
	var names []string
	for _, g := range groups {
		for _, m := range g.MetricNames() {
			if !slices.Contains(names, m) && judged(groups, m) == 1 {
				names = append(names, m)
			}
		}
	}
	if len(names) == 0 {
		return
	}
	fmt.Fprintf(d.b, "<h3>Over %s</h3>\n<div class=\"charts\">\n", esc(axis))
	for _, m := range names {
		p := Plot{Title: plain(m), XLabel: label, YLabel: withUnit(plain(m), anyStat(groups, m).Unit)}
		for _, policy := range policiesOf(groups) {
			l := Line{Name: policy, Color: d.color(policy)}
			for _, g := range groups {
				for i := range g.Policies {
					if s, ok := g.Policies[i].Stat(m); ok && g.Policies[i].Name == policy {
						x, _ := number(g.Differs[0].Value)
						l.add(x, s.Mean, s.SD)
					}
				}
			}
			if len(l.X) > 0 {
				p.Lines = append(p.Lines, l)
			}
		}
		d.chart(&p)
	}
	d.b.WriteString("</div>\n")
}

func withUnit(name, unit string) string {
	if unit == "" {
		return name
	}
	return name + " (" + unit + ")"
}

func (l *Line) add(x, mean, sd float64) {
	l.X, l.Y = append(l.X, x), append(l.Y, mean)
	l.Low, l.High = append(l.Low, mean-sd), append(l.High, mean+sd)
}

func policiesOf(groups []results.Group) []string {
	var names []string
	for _, g := range groups {
		for _, p := range g.Policies {
			names = append(names, p.Name)
		}
	}
	return unique(names)
}

// openBars is up to how many pictures of bars are seen at once.
const openBars = 6

// bars draws each metric that has a good side, policies below each other.
func (d *drawing) bars(g *results.Group) {
	if len(g.Policies) < 2 {
		return
	}
	var all []*Bars
	for _, m := range g.MetricNames() {
		c := &Bars{Title: plain(m)}
		judged := false
		for i := range g.Policies {
			p := &g.Policies[i]
			if s, ok := p.Stat(m); ok {
				c.Unit, judged = s.Unit, judged || s.Better != 0
				c.Bars = append(c.Bars, Bar{Name: p.Name, Color: d.color(p.Name), Value: s.Mean, Spread: s.SD, Text: s.MeanText(), Best: s.Best})
			}
		}
		if judged {
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return
	}
	d.b.WriteString("<h3>Side by side</h3>\n")
	if len(all) > openBars {
		fmt.Fprintf(d.b, "<details><summary>%d metrics as bars</summary>\n", len(all))
	}
	d.b.WriteString("<div class=\"charts\">\n")
	for _, c := range all {
		d.chart(c)
	}
	d.b.WriteString("</div>\n")
	if len(all) > openBars {
		d.b.WriteString("</details>\n")
	}
}

// chart draws a picture, or counts it when the page is full.
func (d *drawing) chart(c interface{ SVG(*strings.Builder) }) {
	if d.charts == maxCharts {
		d.left++
		return
	}
	d.charts++
	c.SVG(d.b)
}

package report

import (
	_ "embed"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/results"
)

//go:embed style.css
var style string

// Page is what a report is made of.
type Page struct {
	Records  []results.Record
	Versions []string           // of the program that made them, as far as known
	Log      []results.LogEntry // how the runs went; may be empty
	// Experiments explain what the records name; those that are not there stay
	// unexplained.
	Experiments []simulations.Experiment
	// Torn are files that ended in half a line.
	Torn []string
}

// Bounds of a page: beyond them it says what it leaves out. A browser shows a
// few hundred pictures well.
const (
	maxCharts = 240
	maxFailed = 50
	maxTraces = 3
)

// Write draws the page.
func Write(w io.Writer, p Page) error {
	groups := results.Summarize(slices.Clone(p.Records))
	b := &strings.Builder{}
	d := &drawing{page: p, b: b, colors: map[string]int{}}
	title := d.title(groups)
	fmt.Fprintf(b, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"+
		"<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>%s</title>\n<style>\n%s</style>\n</head>\n<body>\n<main>\n", esc(title), style)
	fmt.Fprintf(b, "<h1>%s</h1>\n", esc(title))
	d.facts(groups)
	for len(groups) > 0 {
		n := 1
		for n < len(groups) && groups[n].Experiment == groups[0].Experiment {
			n++
		}
		d.experiment(groups[:n])
		groups = groups[n:]
	}
	b.WriteString("</main>\n</body>\n</html>\n")
	_, err := io.WriteString(w, b.String())
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// drawing is a page while it is drawn.
type drawing struct {
	page   Page
	b      *strings.Builder
	colors map[string]int // of policies: one colour on the whole page
	charts int
	left   int // charts that were left out
}

func (d *drawing) color(policy string) int {
	c, ok := d.colors[policy]
	if !ok {
		c = len(d.colors)
		d.colors[policy] = c
	}
	return c
}

func (d *drawing) title(groups []results.Group) string {
	var names []string
	for _, g := range groups {
		if !slices.Contains(names, g.Experiment) {
			names = append(names, g.Experiment)
		}
		for _, p := range g.Policies {
			d.color(p.Name)
		}
	}
	if len(names) == 0 {
		return "Simulation: no runs"
	}
	return "Simulation: " + strings.Join(names, ", ")
}

// facts say what the page is about and how to trust it.
func (d *drawing) facts(groups []results.Group) {
	var seeds []uint64
	var traces, policies []string
	failed := 0
	for _, r := range d.page.Records {
		seeds = append(seeds, r.Seed)
		if r.Trace != "" {
			traces = append(traces, r.Trace[:min(16, len(r.Trace))])
		}
		policies = append(policies, r.Policy)
		if r.Failed != nil {
			failed++
		}
	}
	runs := fmt.Sprintf("%d", len(d.page.Records))
	if failed > 0 {
		runs += fmt.Sprintf(`, <b class="bad">%d failed</b>`, failed)
	}
	for _, t := range d.page.Torn {
		runs += fmt.Sprintf(`; <span class="bad">%s ends in half a line: its sweep was killed, or goes on</span>`, esc(t))
	}
	version := "not known: the log beside the results is missing"
	switch len(d.page.Versions) {
	case 0:
	case 1:
		version = esc(d.page.Versions[0])
	default:
		version = `<span class="bad">several</span>: ` + esc(strings.Join(d.page.Versions, ", "))
	}
	d.b.WriteString("<dl class=\"facts\">\n")
	fact := func(name, value string) { fmt.Fprintf(d.b, "<dt>%s</dt><dd>%s</dd>\n", name, value) }
	fact("Runs", runs)
	fact("Seeds", esc(Seeds(seeds)))
	fact("Policies", esc(strings.Join(unique(policies), ", ")))
	fact("Commit", version)
	if traces = unique(traces); len(traces) > maxTraces {
		fact("Traces", fmt.Sprintf("%d different ones, their SHA-256 are in the results", len(traces)))
	} else if len(traces) > 0 {
		fact("Traces", "SHA-256 "+esc(strings.Join(traces, ", ")))
	}
	if cost := d.cost(); cost != "" {
		fact("Took", esc(cost))
	}
	d.b.WriteString("</dl>\n")
}

// cost is what the runs cost the machine that made them.
func (d *drawing) cost() string {
	if len(d.page.Log) == 0 {
		return ""
	}
	var wall, slowest time.Duration
	var rss int64
	var events float64
	for _, e := range d.page.Log {
		wall += e.Wall
		slowest = max(slowest, e.Wall)
		rss = max(rss, e.PeakRSS)
		events = max(events, e.EventsPerSecond)
	}
	s := fmt.Sprintf("%s of runs, the slowest %s, at most %d MiB of memory", wall.Round(time.Millisecond), slowest.Round(time.Millisecond), rss>>20)
	if events > 0 {
		s += fmt.Sprintf(", up to %s events a second", tickText(float64(int64(events/1000))*1000))
	}
	return s
}

// Seeds writes seeds in ranges: "42..51 60".
func Seeds(seeds []uint64) string {
	seeds = slices.Compact(slices.Sorted(slices.Values(seeds)))
	var words []string
	for i := 0; i < len(seeds); {
		j := i
		for j+1 < len(seeds) && seeds[j+1] == seeds[j]+1 {
			j++
		}
		if j == i {
			words = append(words, fmt.Sprint(seeds[i]))
		} else {
			words = append(words, fmt.Sprintf("%d..%d", seeds[i], seeds[j]))
		}
		i = j + 1
	}
	return strings.Join(words, " ")
}

func unique(words []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(words)))
}

func (d *drawing) explained(name string) simulations.Experiment {
	for _, e := range d.page.Experiments {
		if e.Name() == name {
			return e
		}
	}
	return nil
}

package report

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/results"
	"github.com/beammesh/beammesh/simulations/scenario"
	"github.com/beammesh/beammesh/simulations/simtest"
	"github.com/beammesh/beammesh/simulations/sweep"
)

func records(t *testing.T, text string) []results.Record {
	t.Helper()
	s, err := scenario.Parse("x.sim", text, []simulations.Experiment{simtest.Queue{}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "r.jsonl")
	if _, err := sweep.Run(context.Background(), s, path, sweep.Options{}); err != nil {
		t.Fatal(err)
	}
	f, err := results.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	return f.Records
}

func page(t *testing.T, p Page) string {
	t.Helper()
	var b strings.Builder
	if err := Write(&b, p); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

const grid = "experiment mmc\npolicy fifo lifo random\nseeds 3..6\nset customers 200\nsweep load 0.5 0.7 0.9\n"

func TestPageShowsWhatThereIs(t *testing.T) {
	r := records(t, grid)
	got := page(t, Page{Records: r, Versions: []string{"v1-abc"}, Experiments: []simulations.Experiment{simtest.Queue{}}})
	for what, want := range map[string]int{
		"<dd>36</dd>": 1, "<dd>3..6</dd>": 1, "<dd>v1-abc</dd>": 1, "# commit v1-abc": 1, "customers at several counters": 1,
		"<h3>Over load</h3>": 1, "load: share of the counters that is busy": 4, // label and description of two plots
		`<path class="band c0"`: 2 + 3, `<ul class="legend">`: 5, "wait mean <small>s, lower is better</small>": 1,
	} {
		if n := strings.Count(got, what); n != want {
			t.Errorf("%q is there %d times, want %d", what, n, want)
		}
	}
	if strings.Count(got, `class="best"`) < 6 {
		t.Error("the best of each row is not marked")
	}
	// The input is left as it was, and the same input gives the same page.
	if again := page(t, Page{Records: r, Versions: []string{"v1-abc"}, Experiments: []simulations.Experiment{simtest.Queue{}}}); again != got {
		t.Error("two pages of the same results differ")
	}
}

// One file: nothing is fetched, nothing runs.
func TestPageNeedsNothingElse(t *testing.T) {
	got := page(t, Page{Records: records(t, grid)})
	if m := regexp.MustCompile(`(?i)<script|<link|<img|<iframe|@import|url\(|https?:|src=`).FindString(got); m != "" {
		t.Errorf("the page has %q", m)
	}
}

// All pictures are well formed, and no number in them is NaN.
func TestPicturesAreWellFormed(t *testing.T) {
	got := page(t, Page{Records: records(t, grid)}) + page(t, Page{Records: records(t, "experiment mmc\npolicy fifo lifo\nset customers 50")})
	pictures := regexp.MustCompile(`(?s)<svg.*?</svg>`).FindAllString(got, -1)
	if len(pictures) < 8 {
		t.Fatalf("%d pictures", len(pictures))
	}
	for _, p := range pictures {
		d := xml.NewDecoder(strings.NewReader(p))
		for {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%v in\n%s", err, p)
			}
		}
		if strings.Contains(p, "NaN") || strings.Contains(p, "Inf") {
			t.Errorf("no number in\n%s", p)
		}
	}
}

// Names come from files that others made.
func TestPageEscapes(t *testing.T) {
	r := records(t, "experiment mmc\npolicy fifo panics\nset customers 20\nseeds 1 2")
	for i := range r {
		r[i].Policy = `<b onload="x">` + r[i].Policy
		r[i].Experiment = "<i>e"
		for j := range r[i].Metrics {
			r[i].Metrics[j].Name += "<u>"
			r[i].Metrics[j].Unit = "<s>"
		}
		for j := range r[i].Series {
			r[i].Series[j].Plot += "<u>"
			r[i].Series[j].XLabel = "</svg>"
		}
		if r[i].Failed != nil {
			r[i].Failed.What = "<img>"
		}
	}
	got := page(t, Page{Records: r, Versions: []string{"<a>"}, Torn: []string{"<u>"}})
	for _, bad := range []string{"<b onload", "<i>e", "<u>", "<s>", "<img>", "<a>"} {
		if strings.Contains(got, bad) {
			t.Errorf("%q is not escaped", bad)
		}
	}
}

func TestFailuresLeadBack(t *testing.T) {
	got := page(t, Page{Records: records(t, "experiment mmc\npolicy fifo panics\nset customers 20\nseeds 1 2"), Experiments: []simulations.Experiment{simtest.Queue{}}})
	for _, want := range []string{`4, <b class="bad">2 failed</b>`, "panic: index out of range", "<td>7</td><td>1.5s</td>",
		"<code>beam sim run mmc --policy panics --seed 2 --set customers=20</code>"} {
		if !strings.Contains(got, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

// The scenario on the page has the runs of the results, no more and no less.
func TestScenarioMakesTheSameRuns(t *testing.T) {
	for _, text := range []string{grid, "experiment mmc\nset customers 20", "experiment mmc\nseeds 1 2 7 9..12\nset customers 20\nsweep servers 1 2\nsweep load 0.5 0.9\npolicy lifo"} {
		r := records(t, text)
		again, n := Scenario(results.Summarize(slices.Clone(r)))
		if n != len(r) {
			t.Errorf("%q: %d runs, want %d", again, n, len(r))
		}
		if second := records(t, again); !reflect.DeepEqual(second, r) {
			t.Errorf("other runs from\n%s", again)
		}
	}
}

// A parameter that is empty by default cannot be written down, and need not be.
func TestScenarioLeavesOutWhatIsEmpty(t *testing.T) {
	r := results.Record{Experiment: "e", Policy: "p", Seed: 1, Params: map[string]string{"list": "", "nodes": "3"}, Metrics: []results.Metric{{Name: "m"}}}
	got, n := Scenario(results.Summarize([]results.Record{r}))
	if got != "experiment e\npolicy p\nseeds 1\nset nodes 3\n" || n != 1 {
		t.Errorf("%d runs from\n%s", n, got)
	}
	if got := Rerun(&r, nil); got != "beam sim run e --policy p --seed 1 --set nodes=3" {
		t.Errorf("got %s", got)
	}
}

func TestPageIsBounded(t *testing.T) {
	var r []results.Record
	for i := range 2 * maxCharts {
		r = append(r, results.Record{Experiment: "e", Policy: "p", Params: map[string]string{"n": fmt.Sprint(i), "m": "x" + fmt.Sprint(i)},
			Metrics: []results.Metric{{Name: "m"}}, Series: []results.Series{{Plot: "p", X: []float64{0, 1}, Y: []float64{0, 1}}}})
	}
	got := page(t, Page{Records: r})
	if n := strings.Count(got, "<figure>"); n != maxCharts || !strings.Contains(got, fmt.Sprintf("%d pictures are left out", maxCharts)) {
		t.Errorf("%d pictures", n)
	}
}

func TestAxis(t *testing.T) {
	for _, c := range []struct {
		min, max         float64
		log, round, zero bool
		want             string
	}{
		{0, 1, false, true, true, "0 0.2 0.4 0.6 0.8 1"},
		{4.6, 13.7, false, true, true, "0 5 10 15"},
		{90, 130, false, false, false, "90 100 110 120 130"},
		{95, 99.5, false, true, true, "95 96 97 98 99 100"},
		{-3, 3, false, true, true, "−4 −2 0 2 4"},
		{5, 5, false, true, true, "0 2 4 6"},
		{0, 0, false, true, true, "0 0.2 0.4 0.6 0.8 1"},
		{1, 100000, true, false, false, "1 10 100 1000 10k 100k"},
		{0.5, 60, true, false, false, "0.5 1 2 5 10 20 50"},
		{0.1 + 0.2, 0.3, false, true, true, "0 0.1 0.2 0.3 0.4"},
	} {
		a := newAxis(c.min, c.max, 0, 100, c.log, c.round, c.zero, 5)
		var got []string
		for _, v := range a.ticks {
			got = append(got, tickText(v))
			if p := a.at(v); p < -1e-6 || p > 100+1e-6 {
				t.Errorf("%v to %v: tick %v is at %v", c.min, c.max, v, p)
			}
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%v to %v: %s, want %s", c.min, c.max, s, c.want)
		}
	}
}

func TestMeanCurve(t *testing.T) {
	// The same places: used as they are.
	x, mean, sd := meanCurve([]curve{{[]float64{1, 2}, []float64{10, 20}}, {[]float64{1, 2}, []float64{14, 20}}})
	if !slices.Equal(x, []float64{1, 2}) || !slices.Equal(mean, []float64{12, 20}) || math.Abs(sd[0]-math.Sqrt(8)) > 1e-12 || sd[1] != 0 {
		t.Errorf("got %v %v %v", x, mean, sd)
	}
	// Other places: straight between points, over the stretch that both have.
	x, mean, _ = meanCurve([]curve{{[]float64{0, 10}, []float64{10, 0}}, {[]float64{4, 2, 20}, []float64{2, 2, 2}}})
	if x[0] != 2 || x[len(x)-1] != 10 || mean[0] != 5 || math.Abs(mean[len(mean)-1]-1) > 1e-12 {
		t.Errorf("from %v to %v, %v to %v", x[0], x[len(x)-1], mean[0], mean[len(mean)-1])
	}
	// Distributions: over the stretch that any has, 1 beyond the end of one.
	x, mean, _ = meanCurve([]curve{{[]float64{1, 2}, []float64{0, 1}}, {[]float64{3, 5}, []float64{0, 1}}})
	if x[0] != 1 || x[len(x)-1] != 5 || mean[0] != 0 || mean[len(mean)-1] != 1 {
		t.Errorf("from %v to %v, %v to %v", x[0], x[len(x)-1], mean[0], mean[len(mean)-1])
	}
	if x, _, _ := meanCurve(nil); x != nil {
		t.Errorf("of nothing: %v", x)
	}
}

func TestSeeds(t *testing.T) {
	if got := Seeds([]uint64{44, 42, 43, 7, 42, 60, 61}); got != "7 42..44 60..61" {
		t.Errorf("got %q", got)
	}
}

func TestQuoted(t *testing.T) {
	r := results.Record{Experiment: "e", Policy: "p", Params: map[string]string{"a": "x;y'z", "b": "1.5"}}
	if got := Rerun(&r, nil); got != `beam sim run e --policy p --seed 0 --set a='x;y'\''z' --set b=1.5` {
		t.Errorf("got %s", got)
	}
}

package results

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/simulations"
)

// run is a record with one metric, lower is better.
func run(policy string, seed uint64, load string, value float64) Record {
	return Record{Experiment: "mmc", Policy: policy, Seed: seed, Params: map[string]string{"load": load, "servers": "2"},
		Metrics: []Metric{{Name: "wait", Unit: "s", Value: value, Better: -1}, {Name: "served", Value: 10}},
		Series:  []Series{{Plot: "p", XLabel: "x", YLabel: "y", X: []float64{0, 1}, Y: []float64{value, 1}}}}
}

func store(t *testing.T, records ...Record) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "r.jsonl")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range records {
		if err := s.Append(&records[i], LogEntry{Version: "v1"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadGivesTheLastOfEachRunInOrder(t *testing.T) {
	failed := run("b", 1, "0.5", 0)
	failed.Metrics, failed.Series, failed.Failed = nil, nil, &Failure{What: "panic", Event: 9, At: "2s"}
	path := store(t, run("b", 10, "0.9", 1), run("b", 9, "0.9", 2), run("a", 1, "10", 3), failed, run("b", 1, "0.5", 4))
	f, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range f.Records {
		got = append(got, fmt.Sprintf("%s/%s/%d", r.Params["load"], r.Policy, r.Seed))
	}
	if want := "0.5/b/1 0.9/b/9 0.9/b/10 10/a/1"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if f.Records[0].Failed != nil || f.Torn || len(f.Versions()) != 1 {
		t.Errorf("got %+v", f)
	}
}

func TestReadTakesATornFileAndNoOther(t *testing.T) {
	good, err := os.ReadFile(store(t, run("a", 1, "0.5", 1), run("a", 2, "0.5", 1)))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, text string
		torn       bool
		want       string // of the error
	}{
		{"torn", string(good) + `{"experiment":"mmc","pol`, true, ""},
		{"torn at once", string(good) + `{"ex`, true, ""},
		{"empty", "", false, ""},
		{"something else", "hello", false, "line 1 is no result of a run"},
		{"something else, whole lines", "a\nb\n", false, "line 1 is no result of a run"},
		{"broken in the middle", `{"experiment":"mmc","pol` + "\n" + string(good), false, "line 1 is no result of a run"},
		{"another kind of JSON", string(good) + "{}\n", false, "line 3 is no result of a run: it has no experiment"},
		{"series", `{"experiment":"a","policy":"b","seed":1,"params":{},"metrics":[{"name":"m","value":1}],"series":[{"plot":"p","x":[1],"y":[]}]}` + "\n", false, "has 1 x and 0 y"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "r.jsonl")
			if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
				t.Fatal(err)
			}
			f, err := Read(path)
			if c.want != "" {
				if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("got %v, want %q", err, c.want)
				}
				// A writer must not touch such a file.
				if _, err := Open(path); err == nil {
					t.Error("Open took it")
				}
				if now, _ := os.ReadFile(path); string(now) != c.text {
					t.Error("Open changed it")
				}
				return
			}
			if err != nil || f.Torn != c.torn {
				t.Errorf("got %+v, %v", f, err)
			}
		})
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none")); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("no file: %v", err)
	}
}

func TestSetResultRefusesWhatCannotBeStored(t *testing.T) {
	for want, res := range map[string]*simulations.Result{
		"the metric m is NaN":        {Metrics: []simulations.Metric{{Name: "m", Value: math.NaN()}}},
		"a point that is not fin":    {Series: []simulations.Series{{Plot: "p", X: []float64{1}, Y: []float64{math.Inf(1)}}}},
		`series "p" has 1 x and 0 y`: {Series: []simulations.Series{{Plot: "p", X: []float64{1}}}},
	} {
		if err := new(Record).SetResult(res); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestSummarize(t *testing.T) {
	failed := run("b", 3, "0.9", 0)
	failed.Metrics, failed.Failed = nil, &Failure{What: "panic"}
	groups := Summarize([]Record{run("b", 1, "0.9", 2), run("a", 1, "0.9", 1), run("a", 2, "0.9", 3), run("b", 2, "0.9", 2.5), failed, run("a", 1, "0.5", 7)})
	if len(groups) != 2 || groups[0].Title() != "load=0.5" || groups[1].Title() != "load=0.9" {
		t.Fatalf("got %d groups: %+v", len(groups), groups)
	}
	a, b := groups[1].Policies[0], groups[1].Policies[1]
	wait, _ := a.Stat("wait")
	if wait.Mean != 2 || math.Abs(wait.SD-math.Sqrt2) > 1e-12 || !wait.Best || wait.MeanText() != "2 ± 1.4" {
		t.Errorf("a: %+v, %s", wait, wait.MeanText())
	}
	wait, _ = b.Stat("wait")
	if wait.Mean != 2.25 || wait.Best || len(b.Failed) != 1 {
		t.Errorf("b: %+v, %d failed", wait, len(b.Failed))
	}
	if s, _ := a.Stat("served"); s.Best {
		t.Error("a metric without a good side has a best")
	}
	if w, _ := groups[0].Policies[0].Stat("wait"); w.Best {
		t.Error("the only policy is called the best")
	}
	alone := run("b", 1, "0.5", 2)
	alone.Metrics = alone.Metrics[1:]
	if w, _ := Summarize([]Record{run("a", 1, "0.5", 1), alone})[0].Policies[0].Stat("wait"); w.Best {
		t.Error("the only policy that has a metric is called the best")
	}
}

func TestNumber(t *testing.T) {
	for want, v := range map[string]float64{"0": 0, "42": 42, "4.771": 4.7714, "47.70": 47.7, "477.1": 477.14, "4771": 4771.4, "0.100": 0.1,
		"0.000123": 0.000123, "1.23e+07": 12345678, "-3.500": -3.5} {
		if got := Number(v); got != want {
			t.Errorf("Number(%v) = %q, want %q", v, got, want)
		}
	}
}

func TestMeanText(t *testing.T) {
	for want, values := range map[string][]float64{"5": {5}, "4.770 ± 0.100": {4.67, 4.77, 4.87}, "1094 ± 112": {982, 1094, 1206}, "0.499 ± 0": {0.499, 0.499, 0.499},
		"0 ± 0": {0, 0}, "1000 ± 0.071": {999.95, 1000.05}, "2 ± 2.8": {0, 4}} {
		s := Stat{Values: values}
		s.Mean, s.SD = MeanSD(values)
		if got := s.MeanText(); got != want {
			t.Errorf("%v: %q, want %q", values, got, want)
		}
	}
}

func TestCSV(t *testing.T) {
	failed := run("b", 3, "0.9", 0)
	failed.Metrics, failed.Series, failed.Failed = nil, nil, &Failure{What: "panic: a, \"b\""}
	records := []Record{run("a", 1, "0.5", 0.1), failed}
	var b bytes.Buffer
	if err := WriteCSV(&b, records); err != nil {
		t.Fatal(err)
	}
	want := "experiment,policy,seed,trace,load,servers,wait (s),served,failed\nmmc,a,1,,0.5,2,0.1,10,\nmmc,b,3,,0.9,2,,,\"panic: a, \"\"b\"\"\"\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	b.Reset()
	if err := WriteCurvesCSV(&b, records); err != nil {
		t.Fatal(err)
	}
	want = "experiment,policy,seed,trace,load,servers,plot,label,x_label,y_label,x,y\nmmc,a,1,,0.5,2,p,,x,y,0,0.1\nmmc,a,1,,0.5,2,p,,x,y,1,1\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// No bytes make the reader fail in another way than with a reason.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"experiment":"a","policy":"b","seed":1,"params":{"x":"1"},"metrics":[{"name":"m","value":1}]}` + "\n" + `{"exp`))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "r")
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
		if file, err := Read(path); err == nil {
			Summarize(file.Records)
		} else if fault.CodeOf(err) != fault.Invalid {
			t.Fatal(err)
		}
	})
}

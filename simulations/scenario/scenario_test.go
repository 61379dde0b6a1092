package scenario

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/simtest"
)

var known = []simulations.Experiment{simtest.Queue{}}

func parse(t *testing.T, text string) *Scenario {
	t.Helper()
	s, err := Parse("dir/x.sim", text, known)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParse(t *testing.T) {
	s := parse(t, "# Two counters.\r\n# More.\n\nsweep load 0.70 .8 9e-1 # three\nset customers 0100\nexperiment mmc\npolicy fifo lifo\nseeds 42..44 7\n")
	if s.Name != "x" || s.Doc != "Two counters." || s.Count() != 2*4*3 {
		t.Errorf("got name %q, doc %q, %d runs", s.Name, s.Doc, s.Count())
	}
	runs := s.Runs()
	if len(runs) != s.Count() {
		t.Fatalf("%d runs, Count says %d", len(runs), s.Count())
	}
	want := Run{Policy: "lifo", Seed: 42, Params: map[string]string{"servers": "2", "load": "0.7", "customers": "100"}}
	if !reflect.DeepEqual(runs[1], want) {
		t.Errorf("run 1 is %v, want %v", runs[1], want)
	}
	if last := runs[len(runs)-1]; last.Seed != 7 || last.Params["load"] != "0.9" {
		t.Errorf("the last run is %v, want seed 7 at load 0.9", last)
	}
	// What equals a default is left out of the settings.
	if got := runs[2].Settings(s.Experiment).Values; !reflect.DeepEqual(got, map[string]string{"customers": "100"}) {
		t.Errorf("settings %v", got)
	}
}

func TestParseTakesDefaults(t *testing.T) {
	s := parse(t, "experiment mmc")
	if !reflect.DeepEqual(s.Policies, []string{"fifo"}) || !reflect.DeepEqual(s.Seeds, []uint64{1}) || s.Count() != 1 {
		t.Errorf("got %v %v %d", s.Policies, s.Seeds, s.Count())
	}
	if s := parse(t, "experiment mmc\npolicy all"); len(s.Policies) != 7 {
		t.Errorf("all policies: %v", s.Policies)
	}
}

func TestParseNamesLineAndRemedy(t *testing.T) {
	for _, c := range []struct{ name, text, message, hint string }{
		{"typo in a parameter", "experiment mmc\n\n# x\nsweep laod 0.7 0.8", `x.sim line 4: mmc has no parameter "laod"`, `did you mean "load"?`},
		{"far from all parameters", "experiment mmc\nset temperature 3", `line 2: mmc has no parameter "temperature"`, "there is servers, load, customers"},
		{"typo in a word", "experiment mmc\npolcy fifo", `line 2: unknown word "polcy"`, `did you mean "policy"?`},
		{"typo in the first word", "experimnet mmc", `line 1: unknown word "experimnet"`, `did you mean "experiment"?`},
		{"unknown experiment", "experiment mcm", `line 1: unknown experiment "mcm"`, `did you mean "mmc"?`},
		{"no experiment", "seeds 1..3", "x.sim names no experiment", "experiment mmc"},
		{"two experiments", "experiment mmc\nexperiment mmc", "line 2: experiment was given in line 1 already", "keep one"},
		{"unknown policy", "experiment mmc\npolicy fifo lfio", `line 2: mmc has no policy "lfio"`, `did you mean "lifo"?`},
		{"policy twice", "experiment mmc\npolicy fifo fifo", `line 2: policy "fifo" is listed twice`, "once"},
		{"wrong kind", "experiment mmc\nset servers many", `line 2: servers wants a value of kind int, not "many"`, "such as 2; it is: counters"},
		{"not finite", "experiment mmc\nsweep load 0.5 NaN", `line 2: load wants a finite number, not "NaN"`, "it is: share"},
		{"set and sweep", "experiment mmc\nset load 0.5\nsweep load 0.6 0.7", "line 3: load was given in line 2 already", "keep one"},
		{"the same value twice", "experiment mmc\nsweep load 0.5 0.50", "line 2: load has the value 0.5 twice", "once"},
		{"set without value", "experiment mmc\nset load", "line 2: set has 1 words after it", "write: set NAME VALUE"},
		{"set with two", "experiment mmc\nset load 1 2", "line 2: set has 3 words after it", "write: set NAME VALUE"},
		{"bad seed", "experiment mmc\nseeds -1", `line 2: "-1" is no seed`, "42..51"},
		{"seeds backwards", "experiment mmc\nseeds 5..3", `line 2: "5..3" is no seed`, "42..51"},
		{"seed twice", "experiment mmc\nseeds 1..3 2", "line 2: seed 2 is listed twice", "once"},
		{"endless seeds", "experiment mmc\nseeds 0..18446744073709551615", "more than 100000 seeds", "smaller"},
		{"too many runs", "experiment mmc\nseeds 1..50000\nsweep load 0.1 0.2 0.3", "line 3: that is more than 100000 runs", "fewer"},
		{"too large", strings.Repeat("#\n", MaxBytes), "a scenario has at most", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("dir/x.sim", c.text, known)
			var f *fault.Error
			if !errors.As(err, &f) || !strings.Contains(f.Message, c.message) || !strings.Contains(f.Hint, c.hint) {
				t.Fatalf("got %v (hint %q)\nwant %q (hint %q)", err, f.Hint, c.message, c.hint)
			}
		})
	}
}

func TestSuggest(t *testing.T) {
	for word, want := range map[string]string{"laod": `did you mean "load"?`, "LOAD": `did you mean "load"?`, "lo": `did you mean "load"?`,
		"x": "there is load, list", "listt": `did you mean "list"?`, "": "there is load, list"} {
		if got := Suggest(word, []string{"load", "list"}); got != want {
			t.Errorf("Suggest(%q) = %q, want %q", word, got, want)
		}
	}
}

// What a person set later, on the command line, replaces the file's.
func TestSetValuesReplaces(t *testing.T) {
	s := parse(t, "experiment mmc\nsweep load 0.7 0.8")
	if err := s.SetValues("load", []string{"0.5"}); err != nil {
		t.Fatal(err)
	}
	if s.Count() != 1 || s.Runs()[0].Params["load"] != "0.5" {
		t.Errorf("got %v", s.Runs())
	}
}

// No text makes the parser fail in another way than with a reason, and what it
// takes stays within its bounds.
func FuzzParse(f *testing.F) {
	f.Add("experiment mmc\npolicy all\nseeds 1..3\nset load 0.5\nsweep servers 1 2")
	f.Add("experiment mmc\nseeds 1..99999999999999999999")
	f.Add("# é\nexperiment mmc\nsweep load NaN Inf -0 1e400")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse("x.sim", text, known)
		if err != nil {
			var f *fault.Error
			if !errors.As(err, &f) || f.Code.ExitStatus() != 2 {
				t.Fatalf("%q: not a usage error: %v", text, err)
			}
			return
		}
		if n := s.Count(); n < 1 || n > MaxRuns {
			t.Fatalf("%q: %d runs", text, n)
		}
	})
}

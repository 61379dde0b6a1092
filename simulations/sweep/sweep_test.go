package sweep

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/results"
	"github.com/beammesh/beammesh/simulations/scenario"
	"github.com/beammesh/beammesh/simulations/simtest"
)

func parse(t *testing.T, q simulations.Experiment, text string) *scenario.Scenario {
	t.Helper()
	s, err := scenario.Parse("x.sim", text, []simulations.Experiment{q})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const small = "experiment mmc\nset customers 500\npolicy fifo lifo random\nseeds 1..4\nsweep load 0.5 0.8 0.9\n"

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The promise of the simulator: bytes depend on the seed alone.
func TestBytesAreTheSameForAnyNumberOfJobs(t *testing.T) {
	s := parse(t, simtest.Queue{}, small+"# one that fails is as stable\n")
	var want []byte
	for _, c := range []struct{ jobs, procs int }{{1, 1}, {2, 2}, {7, 1}, {16, 4}} {
		before := runtime.GOMAXPROCS(c.procs)
		path := filepath.Join(t.TempDir(), "r.jsonl")
		state, err := Run(context.Background(), s, path, Options{Jobs: c.jobs})
		runtime.GOMAXPROCS(before)
		if err != nil || state.Done != 36 || state.Failed != 0 || state.Share != 1 {
			t.Fatalf("%d jobs: %+v, %v", c.jobs, state, err)
		}
		got := read(t, path)
		if want == nil {
			want = got
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%d jobs on %d cores: other bytes than one job on one core", c.jobs, c.procs)
		}
		if left, _ := filepath.Glob(path + ".new*"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	if n := bytes.Count(want, []byte("\n")); n != 36 {
		t.Errorf("%d lines, want 36", n)
	}
}

func TestFailedRunsAreRecordedAndOthersGoOn(t *testing.T) {
	s := parse(t, simtest.Queue{}, "experiment mmc\nset customers 100\npolicy fifo panics explodes nan lifo\nseeds 3 4")
	path := filepath.Join(t.TempDir(), "r.jsonl")
	state, err := Run(context.Background(), s, path, Options{Jobs: 2})
	if err != nil || state.Done != 10 || state.Failed != 6 {
		t.Fatalf("%+v, %v", state, err)
	}
	f, err := results.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range f.Records {
		what, event := "", uint64(0)
		if r.Failed != nil {
			what, event = r.Failed.What, r.Failed.Event
		}
		want := map[string]string{"fifo": "", "lifo": "", "panics": "panic: index out of range", "explodes": "panic: exploded, at simtest.go:",
			"nan": "the metric nonsense is NaN"}[r.Policy]
		if !strings.HasPrefix(what, want) || (want == "") != (what == "") {
			t.Errorf("%s: failed with %q, want %q", r.Policy, what, want)
		}
		if (r.Policy == "panics") != (event == 7) {
			t.Errorf("%s: event %d", r.Policy, event)
		}
	}
	// They are tried again, those that have a result are not.
	state, err = Run(context.Background(), s, path, Options{})
	if err != nil || state.Before != 4 || state.Done != 6 {
		t.Errorf("second sweep: %+v, %v", state, err)
	}
	if n := bytes.Count(read(t, path), []byte("\n")); n != 10 {
		t.Errorf("%d lines, want 10: the older failures are replaced", n)
	}
}

// Errors of the experiment's own checks are told as they are.
func TestErrorOfTheExperimentPassesThrough(t *testing.T) {
	s := parse(t, simtest.Queue{}, "experiment mmc\nsweep servers 0 1\nset customers 10")
	var said []string
	state, err := Run(context.Background(), s, filepath.Join(t.TempDir(), "r.jsonl"), Options{Progress: func(s State) {
		if s.Ended != nil && s.Ended.Failed != nil {
			said = append(said, s.Ended.Failed.What)
		}
	}})
	if err != nil || state.Failed != 1 || len(said) != 1 || said[0] != "servers is 0: nobody would ever be served" {
		t.Errorf("%+v, %v, %q", state, err, said)
	}
}

// A sweep that is stopped keeps what was done, and the next one does the rest
// only; the file then is that of a sweep which was never stopped.
func TestInterruptedSweepGoesOn(t *testing.T) {
	waiting := make(chan uint64)
	q := simtest.Queue{Waiting: waiting}
	// With one job, seeds in order: the runs before the one that waits are done.
	text := "experiment mmc\nset customers 100\nseeds 1..3\npolicy "
	path := filepath.Join(t.TempDir(), "r.jsonl")
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	var state State
	go func() {
		var err error
		state, err = Run(ctx, parse(t, q, text+"fifo lifo waits"), path, Options{Jobs: 1})
		done <- err
	}()
	<-waiting
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) || state.Done != 2 || state.Total != 9 {
		t.Fatalf("stopped with %v, %+v", err, state)
	}

	var first State
	var ran []string
	s := parse(t, q, text+"fifo lifo")
	state, err := Run(context.Background(), s, path, Options{Jobs: 1, Progress: func(s State) {
		if s.Ended == nil && first.Total == 0 {
			first = s
		}
		if s.Ended != nil {
			ran = append(ran, s.Ended.Policy)
		}
	}})
	if err != nil || first.Before != 2 || first.Done != 0 || len(ran) != 4 || state.Done != 4 {
		t.Fatalf("resumed: %v, began with %+v, ran %v", err, first, ran)
	}
	whole := filepath.Join(t.TempDir(), "r.jsonl")
	if _, err := Run(context.Background(), s, whole, Options{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, path), read(t, whole)) {
		t.Error("a resumed sweep has other bytes than one that was never stopped")
	}
}

// After kill -9 the last line may be half there; it alone is done again.
func TestTornLineIsDoneAgain(t *testing.T) {
	s := parse(t, simtest.Queue{}, small)
	path := filepath.Join(t.TempDir(), "r.jsonl")
	if _, err := Run(context.Background(), s, path, Options{}); err != nil {
		t.Fatal(err)
	}
	whole := read(t, path)
	last := bytes.LastIndexByte(whole[:len(whole)-1], '\n') + 1
	for _, cut := range []int{len(whole) - 1, last + 20, last + 1, last} {
		if err := os.WriteFile(path, whole[:cut], 0o644); err != nil {
			t.Fatal(err)
		}
		torn := false
		state, err := Run(context.Background(), s, path, Options{Progress: func(s State) { torn = torn || s.Torn }})
		if err != nil || state.Done != 1 || state.Before != 35 || torn != (cut != last) {
			t.Errorf("cut at %d of %d: %+v, torn %v, %v", cut, len(whole), state, torn, err)
		}
		if !bytes.Equal(read(t, path), whole) {
			t.Errorf("cut at %d: other bytes than before", cut)
		}
	}
}

func TestTwoSweepsOfOneFile(t *testing.T) {
	waiting := make(chan uint64)
	q := simtest.Queue{Waiting: waiting}
	path := filepath.Join(t.TempDir(), "r.jsonl")
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		_, err := Run(ctx, parse(t, q, "experiment mmc\npolicy waits"), path, Options{})
		done <- err
	}()
	<-waiting
	_, err := Run(context.Background(), parse(t, q, small), path, Options{})
	if fault.CodeOf(err) != fault.Conflict {
		t.Errorf("got %v, want a conflict", err)
	}
	stop()
	<-done
	if _, err := Run(context.Background(), parse(t, q, "experiment mmc\nset customers 10"), path, Options{}); err != nil {
		t.Errorf("after the other ended: %v", err)
	}
}

// traced reads a file.
type traced struct{ simtest.Queue }

func (traced) TraceFiles(s simulations.Settings) ([]string, error) {
	return []string{filepath.Join(s.Traces, "t.csv")}, nil
}

func TestTracesAreHashed(t *testing.T) {
	dir := t.TempDir()
	s := parse(t, traced{}, "experiment mmc\nset customers 10")
	path := filepath.Join(dir, "r.jsonl")
	if _, err := Run(context.Background(), s, path, Options{Traces: dir}); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("without the trace: %v, want not found", err)
	}
	for i, content := range []string{"a", "b", "b"} {
		if err := os.WriteFile(filepath.Join(dir, "t.csv"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		state, err := Run(context.Background(), s, path, Options{Traces: dir})
		if want := []int{1, 1, 0}[i]; err != nil || state.Done != want {
			t.Errorf("trace %q: %d runs, want %d (%v)", content, state.Done, want, err)
		}
	}
	f, err := results.Read(path)
	if err != nil || len(f.Records) != 2 || len(f.Records[0].Trace) != 64 || f.Records[0].Trace == f.Records[1].Trace {
		t.Errorf("got %+v, %v", f.Records, err)
	}
}

func TestLogSaysHowRunsWent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.jsonl")
	s := parse(t, simtest.Queue{}, small)
	if _, err := Run(context.Background(), s, path, Options{Jobs: 2, Version: "v1.2-abc"}); err != nil {
		t.Fatal(err)
	}
	f, err := results.Read(path)
	if err != nil || len(f.Log) != 36 || f.Log[0].Wall <= 0 || f.Log[0].PeakRSS < 1<<20 || f.Log[0].Jobs != 2 {
		t.Fatalf("got %d entries, %v", len(f.Log), err)
	}
	if v := f.Versions(); len(v) != 1 || v[0] != "v1.2-abc" {
		t.Errorf("versions %v", v)
	}
	if bytes.Contains(read(t, path), []byte("v1.2")) {
		t.Error("the version is in the results: two versions could not be compared byte by byte")
	}
}

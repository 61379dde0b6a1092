package main

import (
	"fmt"
	"io"
	"sort"
	"strings"
	"sync"
	"time"
)

type state int

const (
	passed state = iota
	failed
	skipped
)

// result is the end of one test.
type result struct {
	Name   string // group, package and test
	State  state
	Output string // of failed tests
	Reason string // of skipped tests
	Took   time.Duration
}

// maxFailureOutput bounds what one failed test prints, at its end.
const maxFailureOutput = 16 << 10

// report collects results and prints progress. Safe for concurrent use.
type report struct {
	mu      sync.Mutex
	out     io.Writer
	all     []result
	reasons map[string][]string // reason → names
}

func newReport(out io.Writer) *report {
	return &report{out: out, reasons: map[string][]string{}}
}

func (r *report) heading(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, "== %s\n", name)
}

func (r *report) footing(name string, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, "== %s done in %s\n", name, took.Round(time.Second/10))
}

// note prints a line of progress.
func (r *report) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, format+"\n", args...)
}

// add counts a result; a failure is printed at once, with its output.
func (r *report) add(x result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, x)
	switch x.State {
	case failed:
		out := strings.TrimRight(x.Output, "\n")
		if len(out) > maxFailureOutput {
			out = "…" + out[len(out)-maxFailureOutput:]
		}
		fmt.Fprintf(r.out, "FAIL %s\n", x.Name)
		if out != "" {
			fmt.Fprintf(r.out, "     %s\n", strings.ReplaceAll(out, "\n", "\n     "))
		}
	case skipped:
		reason := x.Reason
		if reason == "" {
			reason = "no reason given"
		}
		r.reasons[reason] = append(r.reasons[reason], x.Name)
	}
}

func (r *report) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all)
}

// finish prints the failures and skips once more, then the line that counts.
// It tells whether all is well.
func (r *report) finish() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	reasons := make([]string, 0, len(r.reasons))
	for reason := range r.reasons {
		reasons = append(reasons, reason)
	}
	sort.Strings(reasons)
	if len(reasons) > maxSkipReasons {
		r.all = append(r.all, result{Name: fmt.Sprintf("skips: %d different reasons, at most %d may be", len(reasons), maxSkipReasons), State: failed})
	}
	if len(r.all) == 0 {
		r.all = append(r.all, result{Name: "no test ran", State: failed})
	}
	var n [3]int
	var failures []string
	for _, x := range r.all {
		n[x.State]++
		if x.State == failed {
			failures = append(failures, x.Name)
		}
	}
	if len(reasons) > 0 {
		fmt.Fprintln(r.out, "== skipped")
		for _, reason := range reasons {
			names := r.reasons[reason]
			fmt.Fprintf(r.out, "     %s: %s", reason, names[0])
			if len(names) > 1 {
				fmt.Fprintf(r.out, " and %d more", len(names)-1)
			}
			fmt.Fprintln(r.out)
		}
	}
	if len(failures) > 0 {
		fmt.Fprintln(r.out, "== failed")
		for _, f := range failures {
			fmt.Fprintf(r.out, "     %s\n", f)
		}
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", n[passed], n[failed], n[skipped])
	return n[failed] == 0
}

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"sort"
	"strings"
	"time"
)

// event is one line of `go test -json`.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build output
	Test        string
	Output      string
	Elapsed     float64
	FailedBuild string
}

// maxKeptOutput bounds the output kept of one running test.
const maxKeptOutput = 256 << 10

// maxLine bounds one line of `go test -json`.
const maxLine = 4 << 20

// slow is from when on a test is named while its package still runs, so that
// long packages show progress.
const slow = 2 * time.Second

// goResults follows one `go test -json`.
type goResults struct {
	r     *report
	pkgs  map[string]*goPackage
	build map[string]*strings.Builder // compiler output by import path
}

type goPackage struct {
	tests  map[string]*goTest
	output strings.Builder // outside of any test
}

type goTest struct {
	output strings.Builder
	end    string // pass, fail, skip; "" while it runs
	took   time.Duration
}

func newGoResults(r *report) *goResults {
	return &goResults{r: r, pkgs: map[string]*goPackage{}, build: map[string]*strings.Builder{}}
}

// read takes events until the end of the stream and reports each package when
// it ends.
func (g *goResults) read(in io.Reader) error {
	sc := bufio.NewScanner(in)
	sc.Buffer(nil, maxLine)
	for sc.Scan() {
		var e event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			g.r.note("%s", sc.Text()) // the go command itself, for people
			continue
		}
		g.take(e)
	}
	for name, p := range g.pkgs { // the go command ended without telling the end
		g.finish(name, p, event{Action: "fail", Output: "the test process ended early"})
	}
	return sc.Err()
}

func (g *goResults) take(e event) {
	switch e.Action {
	case "build-output":
		b := g.build[e.ImportPath]
		if b == nil {
			b = &strings.Builder{}
			g.build[e.ImportPath] = b
		}
		keep(b, e.Output)
		return
	case "build-fail":
		return
	}
	p := g.pkgs[e.Package]
	if p == nil {
		p = &goPackage{tests: map[string]*goTest{}}
		g.pkgs[e.Package] = p
	}
	if e.Test == "" {
		switch e.Action {
		case "output":
			keep(&p.output, e.Output)
		case "pass", "fail", "skip":
			delete(g.pkgs, e.Package)
			g.finish(e.Package, p, e)
		}
		return
	}
	t := p.tests[e.Test]
	if t == nil {
		t = &goTest{}
		p.tests[e.Test] = t
	}
	switch e.Action {
	case "output":
		keep(&t.output, e.Output)
	case "pass", "fail", "skip":
		t.end, t.took = e.Action, time.Duration(e.Elapsed*float64(time.Second))
		if t.took >= slow && !strings.Contains(e.Test, "/") {
			g.r.note("     %s %s %.1f s", e.Action, e.Test, e.Elapsed)
		}
	}
}

func keep(b *strings.Builder, s string) {
	if b.Len() < maxKeptOutput {
		b.WriteString(s)
	}
}

// finish reports the tests of a package that ended. Tests with subtests count
// only when they failed by themselves.
func (g *goResults) finish(name string, p *goPackage, e event) {
	short := strings.TrimPrefix(name, module+"/")
	names := make([]string, 0, len(p.tests))
	for n := range p.tests {
		names = append(names, n)
	}
	sort.Strings(names)
	parent := map[string]bool{}      // has subtests
	childFailed := map[string]bool{} // a subtest of it failed
	for _, n := range names {
		for i := strings.LastIndexByte(n, '/'); i > 0; i = strings.LastIndexByte(n[:i], '/') {
			parent[n[:i]] = true
			if p.tests[n].end == "fail" || p.tests[n].end == "" {
				childFailed[n[:i]] = true
			}
		}
	}
	var count [3]int
	add := func(x result) {
		count[x.State]++
		g.r.add(x)
	}
	for _, n := range names {
		t := p.tests[n]
		full := short + " " + n
		switch {
		case t.end == "pass" && !parent[n]:
			add(result{Name: full, State: passed, Took: t.took})
		case t.end == "skip":
			add(result{Name: full, State: skipped, Reason: skipReason(t.output.String())})
		case t.end == "fail" && !childFailed[n]:
			add(result{Name: full, State: failed, Output: t.output.String(), Took: t.took})
		case t.end == "" && !childFailed[n]:
			add(result{Name: full, State: failed, Output: t.output.String() + "did not end\n"})
		}
	}
	if e.Action == "fail" && count[failed] == 0 { // build, init, TestMain, os.Exit, timeout
		out := p.output.String() + e.Output
		if b := g.build[e.FailedBuild]; b != nil {
			out = b.String() + out
		}
		add(result{Name: short, State: failed, Output: out})
	}
	if count == [3]int{} {
		return // no test files
	}
	word := "ok  "
	if count[failed] > 0 {
		word = "FAIL"
	}
	line := fmt.Sprintf("%s %s: %d passed", word, short, count[passed])
	if count[failed] > 0 {
		line += fmt.Sprintf(", %d failed", count[failed])
	}
	if count[skipped] > 0 {
		line += fmt.Sprintf(", %d skipped", count[skipped])
	}
	g.r.note("%s  (%.1f s)", line, e.Elapsed)
}

var location = regexp.MustCompile(`^[\w.-]+\.go:\d+: `)

// skipReason is the text that a skipped test gave, without its location.
func skipReason(output string) string {
	var reason []string
	for _, l := range strings.Split(output, "\n") {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "=== ") || strings.HasPrefix(l, "--- ") {
			continue
		}
		reason = append(reason, location.ReplaceAllString(l, ""))
	}
	if len(reason) == 0 {
		return ""
	}
	return reason[len(reason)-1]
}

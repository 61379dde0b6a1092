package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// counts gives the last line of what a report prints.
func counts(t *testing.T, r *report, b *strings.Builder) (last string, ok bool) {
	t.Helper()
	ok = r.finish()
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	return lines[len(lines)-1], ok
}

// A real run of the go command over packages that end in every way.
func TestGoPackagesOfEveryKind(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{
		"go.mod":          "module example.test/m\n\ngo 1.26\n",
		"pass/a_test.go":  "package a\nimport \"testing\"\nfunc TestA(t *testing.T) {}\nfunc TestB(t *testing.T) { t.Run(\"x\", func(t *testing.T) {}); t.Run(\"y/z\", func(t *testing.T) {}) }\n",
		"fail/a_test.go":  "package a\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Run(\"x\", func(t *testing.T) { t.Error(\"boom\") }); t.Run(\"y\", func(t *testing.T) {}) }\nfunc TestB(t *testing.T) { t.Run(\"x\", func(t *testing.T) {}); t.Error(\"parent alone\") }\n",
		"skip/a_test.go":  "package a\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Skip(\"needs a GPU\") }\nfunc TestB(t *testing.T) { t.Log(\"noise\"); t.Skip(\"needs a GPU\") }\n",
		"build/a_test.go": "package a\nimport \"testing\"\nfunc TestA(t *testing.T) { undefined() }\n",
		"panic/a_test.go": "package a\nimport \"testing\"\nfunc TestA(t *testing.T) { panic(\"ouch\") }\n",
		"exit/a_test.go":  "package a\nimport (\"os\"; \"testing\")\nfunc TestMain(m *testing.M) { os.Exit(3) }\n",
		"none/a.go":       "package a\n",
	}
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	r := newReport(&b)
	c := exec.Command("go", "test", "-json", "./...")
	c.Dir = dir
	c.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := newGoResults(r).read(out); err != nil {
		t.Fatal(err)
	}
	if c.Wait() == nil {
		t.Fatal("go test succeeded")
	}
	last, ok := counts(t, r, &b)
	// passed: TestA, TestB/x, TestB/y/z, fail's TestA/y and TestB/x; failed:
	// TestA/x, TestB, build, panic, exit; skipped: both.
	if ok || last != "5 passed, 5 failed, 2 skipped" {
		t.Fatalf("got %q, ok %v:\n%s", last, ok, b.String())
	}
	for _, want := range []string{"boom", "parent alone", "undefined: undefined", "ouch", "needs a GPU: example.test/m/skip TestA and 1 more"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, b.String())
		}
	}
}

func TestJUnit(t *testing.T) {
	const text = `<?xml version="1.0"?><testsuites><testsuite name="pytest">
<testcase classname="tests.test_a" name="test_ok" time="0.5"/>
<testcase classname="tests.test_a" name="test_bad[x]"><failure message="assert 1 == 2">def test_bad: assert 1 == 2</failure></testcase>
<testcase classname="tests.test_a" name="test_bad[x]"><error message="teardown">again</error></testcase>
<testcase classname="tests.test_a" name="test_ok_but_teardown"/>
<testcase classname="tests.test_a" name="test_ok_but_teardown"><error message="teardown">late</error></testcase>
<testcase classname="tests.test_b" name="test_skip"><skipped message="no node">tests/test_b.py:3: no node</skipped></testcase>
</testsuite></testsuites>`
	var b strings.Builder
	r := newReport(&b)
	if err := readJUnit(strings.NewReader(text), r); err != nil {
		t.Fatal(err)
	}
	last, ok := counts(t, r, &b)
	if ok || last != "1 passed, 2 failed, 1 skipped" {
		t.Errorf("got %q, ok %v", last, ok)
	}
	if !strings.Contains(b.String(), "assert 1 == 2") || !strings.Contains(b.String(), "no node: tests.test_b test_skip") {
		t.Errorf("output lacks the failure or the skip:\n%s", b.String())
	}
	if readJUnit(strings.NewReader("<testsuites><testsuite"), r) == nil {
		t.Error("half a report was accepted")
	}
}

func TestWhatFailsTheWhole(t *testing.T) {
	skip := func(reasons ...string) []result {
		var out []result
		for _, reason := range reasons {
			out = append(out, result{Name: "t", State: skipped, Reason: reason})
		}
		return out
	}
	good := result{Name: "t", State: passed}
	for _, c := range []struct {
		name string
		all  []result
		last string
		ok   bool
	}{
		{"nothing ran", nil, "0 passed, 1 failed, 0 skipped", false},
		{"all well", []result{good, good}, "2 passed, 0 failed, 0 skipped", true},
		{"three reasons", append(skip("a", "b", "c", "a"), good), "1 passed, 0 failed, 4 skipped", true},
		{"four reasons", append(skip("a", "b", "c", "d"), good), "1 passed, 1 failed, 4 skipped", false},
		{"a failure", []result{good, {Name: "t", State: failed}}, "1 passed, 1 failed, 0 skipped", false},
	} {
		var b strings.Builder
		r := newReport(&b)
		for _, x := range c.all {
			r.add(x)
		}
		if last, ok := counts(t, r, &b); last != c.last || ok != c.ok {
			t.Errorf("%s: got %q, %v, want %q, %v", c.name, last, ok, c.last, c.ok)
		}
	}
}

// A test process that vanishes in the middle is a failure, not silence.
func TestStreamThatEndsEarly(t *testing.T) {
	var b strings.Builder
	r := newReport(&b)
	const text = `{"Action":"run","Package":"p","Test":"TestA"}
not json
{"Action":"output","Package":"p","Test":"TestA","Output":"working\n"}
`
	if err := newGoResults(r).read(strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	if last, ok := counts(t, r, &b); ok || last != "0 passed, 1 failed, 0 skipped" || !strings.Contains(b.String(), "did not end") {
		t.Errorf("got %q, %v:\n%s", last, ok, b.String())
	}
}

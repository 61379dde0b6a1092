package build

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/runtime"
)

// engine runs steps as plain processes whose working directory is what they
// "write". It behaves as the contract says as far as builds use it.
type engine struct {
	runtime.Engine // the rest is never called
	t              *testing.T
	mu             sync.Mutex
	specs          []runtime.Spec
	live           map[string]*box
	oom            int64
	starts         atomic.Int64
}

type box struct {
	runtime.Container
	e    *engine
	id   string
	dir  string
	env  []string
	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

func (e *engine) Start(ctx context.Context, s runtime.Spec) (runtime.Container, error) {
	e.starts.Add(1)
	dir, err := os.MkdirTemp(e.t.TempDir(), "upper")
	if err != nil {
		return nil, err
	}
	b := &box{e: e, id: s.ID, dir: dir, env: s.Env, done: make(chan struct{})}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.specs = append(e.specs, s)
	e.live[s.ID] = b
	return b, nil
}

func (e *engine) Diff(_ context.Context, id string, fn func(dir string) error) error {
	e.mu.Lock()
	b := e.live[id]
	e.mu.Unlock()
	if b == nil {
		return runtime.ErrNotFound
	}
	return fn(b.dir)
}

type plain struct {
	runtime.Process
	cmd  *exec.Cmd
	done chan struct{}
}

func (p plain) Done() <-chan struct{} { return p.done }
func (p plain) ExitCode() int         { return p.cmd.ProcessState.ExitCode() }

// output is a pointer, so that exec gives both streams to one goroutine.
type output struct{ to func(int, []byte) }

func (o *output) Write(p []byte) (int, error) { o.to(1, p); return len(p), nil }

func (b *box) Exec(_ context.Context, s runtime.ProcessSpec) (runtime.Process, error) {
	cmd := exec.Command(s.Args[0], s.Args[1:]...)
	cmd.Dir, cmd.Env = b.dir, append(os.Environ(), b.env...)
	cmd.Stdout = &output{s.Output}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.cmd = cmd
	b.mu.Unlock()
	p := plain{cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (b *box) Usage(context.Context) (runtime.Usage, error) {
	return runtime.Usage{OOMKills: b.e.oom}, nil
}
func (b *box) Done() <-chan struct{} { return b.done }
func (b *box) Stop(context.Context, time.Duration) error {
	b.mu.Lock()
	if b.cmd != nil {
		_ = b.cmd.Process.Kill()
	}
	b.mu.Unlock()
	b.e.mu.Lock()
	delete(b.e.live, b.id)
	b.e.mu.Unlock()
	return nil
}

type memory struct {
	mu sync.Mutex
	m  map[string]string
}

func (c *memory) Get(_ context.Context, k string) (string, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ok := c.m[k]
	return r, ok, nil
}

func (c *memory) Put(_ context.Context, k, root string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m[k] = root
	return nil
}

// setup returns a builder whose imports list the files of a layer.
func setup(t *testing.T) (*Builder, *engine, *memory) {
	t.Helper()
	bin := t.TempDir() // pip as a script
	script := "#!/bin/sh\nshift 4\nfor p; do case $p in no*) for i in 1 2 3; do echo line $i; done; echo \"ERROR: no matching distribution for $p\" >&2; exit 1;; *) echo $p > $p;; esac; done\n"
	if err := os.WriteFile(filepath.Join(bin, "python3"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	e := &engine{t: t, live: map[string]*box{}}
	c := &memory{m: map[string]string{}}
	b, err := NewBuilder(Config{Engine: e, Cache: c, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Import: func(_ context.Context, dir string, skip func(string) bool) (string, error) {
			var names []string
			err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
				rel, _ := filepath.Rel(dir, p)
				if err == nil && !d.IsDir() && !skip(rel) {
					names = append(names, rel)
				}
				return err
			})
			return "tree(" + strings.Join(names, " ") + ")", err
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if len(e.live) > 0 {
			t.Errorf("containers are left: %v", e.live)
		}
	})
	return b, e, c
}

var base = []runtime.Layer{{Root: "base"}}

func TestBuildChain(t *testing.T) {
	b, e, _ := setup(t)
	steps := []Step{
		{Kind: Env, Env: []string{"GREETING=hello"}},
		{Kind: Pip, Packages: []string{"numpy", "torch"}},
		{Kind: Shell, Command: "mkdir -p tmp root/.cache etc; echo $GREETING | tee greeting; touch tmp/x root/.cache/y etc/resolv.conf"},
		{Kind: Files, Files: runtime.Layer{Root: "code", Prefix: "mnt/code"}},
	}
	var lines []string
	res, err := b.Build(t.Context(), Request{Workspace: "w", Base: base, Steps: steps}, func(l string) { lines = append(lines, l) })
	if err != nil {
		t.Fatal(err)
	}
	want := []runtime.Layer{{Root: "base"}, {Root: "tree(numpy torch)"}, {Root: "tree(greeting)"}, {Root: "code", Prefix: "mnt/code"}}
	if !slices.Equal(res.Layers, want) || !slices.Equal(res.Env, []string{"GREETING=hello"}) || res.Cached != 0 {
		t.Errorf("got %+v, want layers %v", res, want)
	}
	if !slices.Contains(lines, "hello") || !slices.Contains(lines, "step 2 of 4: pip install numpy torch") {
		t.Errorf("lines %q", lines)
	}
	if got := e.specs[1]; !slices.Equal(got.Layers, want[:2]) || got.Workspace != "w" || !slices.Contains(got.Env, "GREETING=hello") {
		t.Errorf("second container: %+v", got)
	}
	again, err := b.Build(t.Context(), Request{Workspace: "other", Base: base, Steps: steps}, nil)
	if err != nil || again.Key != res.Key || !slices.Equal(again.Layers, want) || again.Cached != 2 || e.starts.Load() != 2 {
		t.Errorf("again: %+v, %v, %d containers", again, err, e.starts.Load())
	}
	// Another base or an earlier step that differs leads to other layers.
	for name, r := range map[string]Request{
		"base": {Base: []runtime.Layer{{Root: "base2"}}, Steps: steps[:2]},
		"env":  {Base: base, Steps: []Step{{Kind: Env, Env: []string{"GREETING=bye"}}, steps[1]}},
		"text": {Base: base, Steps: []Step{steps[0], {Kind: Pip, Packages: []string{"numpy torch"}}}},
	} {
		if o, err := b.Build(t.Context(), r, nil); err != nil || o.Cached != 0 || o.Key == res.Key {
			t.Errorf("other %s: %+v, %v", name, o, err)
		}
	}
}

func TestBuildFailureShowsLastLines(t *testing.T) {
	b, e, c := setup(t)
	_, err := b.Build(t.Context(), Request{Base: base, Steps: []Step{{Kind: Pip, Packages: []string{"fine", "nosuch"}}}}, nil)
	f := fault.From(err)
	if f.Code != fault.BuildFailed || !strings.Contains(f.Message, "step 1 of 1: pip install fine nosuch: exit code 1") ||
		!strings.Contains(f.Message, "ERROR: no matching distribution for nosuch") || !strings.Contains(f.Hint, "python_packages") {
		t.Errorf("got %+v", f)
	}
	if len(c.m) != 0 {
		t.Errorf("kept %v", c.m)
	}
	e.oom = 1
	_, err = b.Build(t.Context(), Request{Base: base, Steps: []Step{{Kind: Shell, Command: "for i in $(seq 100); do echo line $i; done; kill -9 $$"}}}, nil)
	if f := fault.From(err); !strings.Contains(f.Message, "out of memory") || !strings.Contains(f.Message, "line 100") || strings.Contains(f.Message, "line 70\n") {
		t.Errorf("got %+v", f)
	}
	b.cfg.StepTime = 50 * time.Millisecond
	_, err = b.Build(t.Context(), Request{Base: base, Steps: []Step{{Kind: Shell, Command: "exec sleep 1000"}}}, nil)
	if f := fault.From(err); f.Code != fault.BuildFailed || !strings.Contains(f.Message, "still running") {
		t.Errorf("got %+v", f)
	}
}

func TestBuildValidates(t *testing.T) {
	b, e, _ := setup(t)
	for name, c := range map[string]struct {
		steps []Step
		code  fault.Code
	}{
		"kind":       {[]Step{{Kind: "x"}}, fault.Invalid},
		"no package": {[]Step{{Kind: Pip}}, fault.Invalid},
		"option":     {[]Step{{Kind: Pip, Packages: []string{"a", " --index-url=x"}}}, fault.Invalid},
		"no command": {[]Step{{Kind: Shell, Command: " \n"}}, fault.Invalid},
		"env":        {[]Step{{Kind: Env, Env: []string{"A"}}}, fault.Invalid},
		"env lines":  {[]Step{{Kind: Env, Env: []string{"A=1\nB=2"}}}, fault.Invalid},
		"no files":   {[]Step{{Kind: Files}}, fault.Invalid},
		"long":       {[]Step{{Kind: Shell, Command: strings.Repeat("x", maxStepText+1)}}, fault.TooLarge},
		"many":       {make([]Step, maxSteps+1), fault.TooLarge},
	} {
		if _, err := b.Build(t.Context(), Request{Base: base, Steps: c.steps}, nil); fault.CodeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	if e.starts.Load() != 0 {
		t.Error("started a container for a bad request")
	}
	if _, err := NewBuilder(Config{Engine: struct{ runtime.Engine }{}}); err == nil {
		t.Error("took an engine without Diff")
	}
}

// Equal steps run once; whoever leaves does not take the others with him, and
// the last to leave ends it.
func TestEqualStepsRunOnce(t *testing.T) {
	b, e, _ := setup(t)
	gate := filepath.Join(t.TempDir(), "gate")
	req := Request{Base: base, Steps: []Step{{Kind: Shell, Command: "echo begun; until [ -e " + gate + " ]; do sleep 0.01; done; touch out"}}}
	first, leave := context.WithCancel(t.Context())
	begun := make(chan struct{}, 8)
	hear := func(l string) {
		if l == "begun" {
			begun <- struct{}{}
		}
	}
	errs := make(chan error, 8)
	build := func(ctx context.Context) {
		r, err := b.Build(ctx, req, hear)
		if err == nil && r.Layers[1].Root != "tree(out)" {
			err = fmt.Errorf("got %+v", r)
		}
		errs <- err
	}
	go build(first)
	<-begun
	for range 3 {
		go build(t.Context())
	}
	for range 3 {
		<-begun // latecomers hear what was said before
	}
	leave()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("the first left with %v", err)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := e.starts.Load(); n != 1 {
		t.Errorf("%d containers", n)
	}
	req.Steps[0].Command = "echo begun; exec sleep 1000"
	alone, leave := context.WithCancel(t.Context())
	go build(alone)
	<-begun
	leave()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("left alone with %v", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.live) != 0 {
		t.Error("nobody waits and it still runs")
	}
}

func TestHostSettings(t *testing.T) {
	wheels := t.TempDir()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	conf := filepath.Join(t.TempDir(), "pip.conf")
	for f, text := range map[string]string{ca: "CERT", conf: "[global]\nindex-url = http://index.example/simple\ncert = /x\nfind-links =\n    " +
		wheels + "\n    http://links.example/\n[install]\ntrusted-host: index.example\n[other]\nx = y\n"} {
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("SSL_CERT_FILE", ca)
	t.Setenv("PIP_CONFIG_FILE", conf)
	t.Setenv("PIP_FIND_LINKS", "")
	t.Setenv("https_proxy", "http://proxy.example:3128")
	t.Setenv("SECRET_OF_THE_HOST", "x")
	h := ReadHost(t.Context())
	dir, mounts, env, err := h.prepare()
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	all := strings.Join(env, "\n")
	for _, want := range []string{"https_proxy=http://proxy.example:3128", "PIP_CERT=" + hostTarget + "/ca.pem", "PIP_CONFIG_FILE=" + hostTarget + "/pip.conf"} {
		if !slices.Contains(env, want) {
			t.Errorf("environment lacks %s: %s", want, all)
		}
	}
	if strings.Contains(all, "SECRET_OF_THE_HOST") {
		t.Error("steps see the host's other variables")
	}
	b, _ := os.ReadFile(filepath.Join(dir, "pip.conf"))
	text := string(b)
	for _, want := range []string{"index-url = http://index.example/simple\n", "trusted-host = index.example\n", hostTarget + "-wheels-1 http://links.example/"} {
		if !strings.Contains(text, want) {
			t.Errorf("pip.conf lacks %q: %s", want, text)
		}
	}
	if strings.Contains(text, "cert") || strings.Contains(text, "x = y") {
		t.Errorf("pip.conf has too much: %s", text)
	}
	if c, _ := os.ReadFile(filepath.Join(dir, "ca.pem")); string(c) != "CERT" {
		t.Errorf("certificates: %q", c)
	}
	if apt, err := os.ReadFile(filepath.Join(dir, "apt.conf")); err != nil || !strings.Contains(string(apt), hostTarget+"/ca.pem") {
		t.Errorf("apt.conf: %q, %v", apt, err)
	}
	if len(mounts) != 2 || mounts[1].Source != wheels || !mounts[0].ReadOnly || !mounts[1].ReadOnly {
		t.Errorf("mounts: %+v", mounts)
	}
}

func TestLinesAreCut(t *testing.T) {
	var got []string
	w := &lineWriter{say: func(l string) { got = append(got, l) }}
	for _, p := range []string{"one\ntw", "o\r\n\n", "bar 1%\rbar 2%\r", "\xff!\n", strings.Repeat("x", maxLine+5) + "\n", "end"} {
		w.write(1, []byte(p))
	}
	w.flush()
	want := []string{"one", "two", "bar 1%", "bar 2%", "\ufffd!", strings.Repeat("x", maxLine), "xxxxx", "end"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

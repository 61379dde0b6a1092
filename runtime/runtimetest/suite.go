package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/ctl"
)

// Patience is how long the suite waits for an event that must come. It is long
// because machines that run tests are slow and shared.
const Patience = time.Minute

// Target is an engine under test.
type Target struct {
	Engine runtime.Engine
	Layers []runtime.Layer // of a root filesystem with the probe in it
	Probe  string          // path of the probe, as a process in a container sees it
}

// BuildProbe builds the probe and returns its path.
func BuildProbe(t testing.TB) string {
	t.Helper()
	_, file, _, _ := goruntime.Caller(0)
	out := filepath.Join(t.TempDir(), "probe")
	cmd := exec.Command("go", "build", "-o", out, "./probe")
	cmd.Dir = filepath.Dir(file)
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build probe: %v\n%s", err, b)
	}
	return out
}

// Run checks everything that runtime.Engine promises. Each part starts its own
// containers, named after prefix, on the one target.
func Run(t *testing.T, target Target, prefix string) {
	s := &suite{Target: target, prefix: prefix}
	t.Run("Process", s.process)
	t.Run("OutputInOrder", s.output)
	t.Run("Frames", s.frames)
	t.Run("Signals", s.signals)
	t.Run("Names", s.names)
	t.Run("StopWithGrace", s.stopGrace)
	t.Run("StopKillsTheStubborn", s.stopStubborn)
	t.Run("Parallel", s.parallel)
	t.Run("FailedStartLeavesNothing", s.failedStart)
	t.Run("SweepKeeps", s.sweep)
}

type suite struct {
	Target
	prefix string
	n      int
}

// start starts a container and stops it with the test.
func (s *suite) start(t *testing.T, change func(*runtime.Spec)) runtime.Container {
	t.Helper()
	s.n++
	spec := runtime.Spec{ID: fmt.Sprintf("%s-%d", s.prefix, s.n), Workspace: "w", Layers: s.Layers, Env: []string{"COLOUR=blue"}}
	if change != nil {
		change(&spec)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	c, err := s.Engine.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		if err := c.Stop(ctx, 0); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Output is what a process wrote.
type Output struct {
	Code           int
	Stdout, Stderr string
}

// Do runs the probe with args in c to its end.
func (target Target) Do(t testing.TB, c runtime.Container, args ...string) Output {
	t.Helper()
	o, err := target.Try(c, args...)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// Try is Do for use in goroutines.
func (target Target) Try(c runtime.Container, args ...string) (Output, error) {
	var out, errs strings.Builder
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	p, err := c.Exec(ctx, runtime.ProcessSpec{Args: append([]string{target.Probe}, args...), Output: func(fd int, b []byte) {
		if fd == 1 {
			out.Write(b)
		} else {
			errs.Write(b)
		}
	}})
	if err != nil {
		return Output{}, err
	}
	select {
	case <-p.Done():
		return Output{p.ExitCode(), out.String(), errs.String()}, nil
	case <-ctx.Done():
		return Output{}, fmt.Errorf("%v does not end", args)
	}
}

// Await runs the probe and returns when it has written its first line.
func (target Target) Await(t testing.TB, c runtime.Container, args ...string) runtime.Process {
	t.Helper()
	said := make(chan struct{})
	var once sync.Once
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	p, err := c.Exec(ctx, runtime.ProcessSpec{Args: append([]string{target.Probe}, args...), Output: func(int, []byte) {
		once.Do(func() { close(said) })
	}})
	if err != nil {
		t.Fatal(err)
	}
	WaitFor(t, fmt.Sprintf("first line of %v", args), said)
	return p
}

// WaitFor waits for a channel to be closed.
func WaitFor(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(Patience):
		t.Fatalf("%s: nothing after %v", what, Patience)
	}
}

func (s *suite) process(t *testing.T) {
	c := s.start(t, nil)
	if o := s.Do(t, c, "say", "out", "err"); o != (Output{0, "out\n", "err\n"}) {
		t.Errorf("say: %+v", o)
	}
	if o := s.Do(t, c, "exit", "7"); o.Code != 7 {
		t.Errorf("exit code %d, want 7", o.Code)
	}
	if o := s.Do(t, c, "env", "COLOUR"); o.Stdout != "blue" {
		t.Errorf("container's environment: %q", o.Stdout)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	var out strings.Builder
	p, err := c.Exec(ctx, runtime.ProcessSpec{Args: []string{s.Probe, "env", "COLOUR"}, Env: []string{"COLOUR=red"},
		Output: func(_ int, b []byte) { out.Write(b) }})
	if err != nil {
		t.Fatal(err)
	}
	WaitFor(t, "process", p.Done())
	if out.String() != "red" {
		t.Errorf("process's own environment does not win: %q", out.String())
	}
	out.Reset()
	p, err = c.Exec(ctx, runtime.ProcessSpec{Args: []string{s.Probe, "cwd"}, Cwd: "/made/on/demand",
		Output: func(_ int, b []byte) { out.Write(b) }})
	if err != nil {
		t.Fatal(err)
	}
	WaitFor(t, "process", p.Done())
	if !strings.HasSuffix(out.String(), "/made/on/demand") {
		t.Errorf("working directory %q", out.String())
	}
	if _, err := c.Exec(ctx, runtime.ProcessSpec{Args: []string{"/no/such/program"}}); !errors.Is(err, ctl.ErrExec) {
		t.Errorf("missing program: %v, want ctl.ErrExec", err)
	}
}

func (s *suite) output(t *testing.T) {
	c := s.start(t, nil)
	const n = 200_000 // about 1.3 MB, more than any buffer on the way
	o := s.Do(t, c, "yes", fmt.Sprint(n))
	lines := strings.Split(strings.TrimSpace(o.Stdout), "\n")
	if len(lines) != n {
		t.Fatalf("%d lines, want %d", len(lines), n)
	}
	for i, l := range lines {
		if l != fmt.Sprint(i) {
			t.Fatalf("line %d is %q", i, l)
		}
	}
}

func (s *suite) frames(t *testing.T) {
	c := s.start(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	var mu sync.Mutex
	var seen []string // output and frames in the order of delivery
	p, err := c.Exec(ctx, runtime.ProcessSpec{Args: []string{s.Probe, "frames"}, Frames: true,
		Output: func(_ int, b []byte) {
			mu.Lock()
			defer mu.Unlock()
			for l := range strings.Lines(string(b)) {
				seen = append(seen, "out "+strings.TrimSpace(l))
			}
		},
		Frame: func(b []byte) {
			h, payload, err := ctl.DecodeRunner(b)
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, fmt.Sprintf("%s %d %v", h.Type, len(payload), err))
		}})
	if err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 3<<20)
	for _, f := range []struct {
		typ     string
		payload []byte
	}{{"call", nil}, {"call", big}, {"stop", []byte("stop")}} {
		b, err := ctl.EncodeRunner(ctl.RunnerHeader{Type: f.typ}, f.payload)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Send(b); err != nil {
			t.Fatal(err)
		}
	}
	WaitFor(t, "frames", p.Done())
	// Frames in order, output in order, and output before the frame that was
	// written after it. The other way round nothing is promised.
	frames := []string{"call 0 <nil>", fmt.Sprintf("call %d <nil>", len(big)), "stop 4 <nil>"}
	at := -1
	for i, f := range frames {
		pos, out := slices.Index(seen, f), slices.Index(seen, fmt.Sprintf("out frame %d", i))
		if out < 0 || pos < out || pos <= at {
			t.Fatalf("frame %d or the output before it is out of place: %q", i, seen)
		}
		at = pos
	}
	if len(seen) != 2*len(frames) {
		t.Errorf("delivered %q", seen)
	}
	if err := p.Send([]byte("\x00\x00\x00\x00\x00\x00\x00\x00")); !errors.Is(err, runtime.ErrClosed) {
		t.Errorf("send to an ended process: %v, want ErrClosed", err)
	}
}

func (s *suite) signals(t *testing.T) {
	c := s.start(t, nil)
	p := s.Await(t, c, "sleep")
	if err := p.Signal(int(syscall.SIGTERM), false); err != nil {
		t.Fatal(err)
	}
	WaitFor(t, "signalled process", p.Done())
	if p.ExitCode() != 128+15 {
		t.Errorf("exit code %d, want 143", p.ExitCode())
	}
	if err := p.Signal(9, false); !errors.Is(err, runtime.ErrClosed) {
		t.Errorf("signal to an ended process: %v, want ErrClosed", err)
	}
	// The child of the process holds its output open until it goes too.
	p = s.Await(t, c, "parent")
	if err := p.Signal(int(syscall.SIGKILL), true); err != nil {
		t.Fatal(err)
	}
	WaitFor(t, "signalled group", p.Done())
	if p.ExitCode() != 128+9 {
		t.Errorf("exit code %d, want 137", p.ExitCode())
	}
}

func (s *suite) names(t *testing.T) {
	c := s.start(t, nil)
	if !slices.Contains(s.Engine.List(), c.ID()) {
		t.Errorf("List %v lacks %s", s.Engine.List(), c.ID())
	}
	if got, err := s.Engine.Get(c.ID()); err != nil || got.ID() != c.ID() {
		t.Errorf("Get: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if _, err := s.Engine.Start(ctx, runtime.Spec{ID: c.ID(), Layers: s.Layers}); !errors.Is(err, runtime.ErrExists) {
		t.Errorf("second Start: %v, want ErrExists", err)
	}
	if _, err := s.Engine.Get("no-such-container"); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("Get of nothing: %v, want ErrNotFound", err)
	}
	for _, id := range []string{"", "Upper", "a/b", "..", strings.Repeat("a", 65)} {
		if _, err := s.Engine.Start(ctx, runtime.Spec{ID: id, Layers: s.Layers}); err == nil {
			t.Errorf("Start with id %q succeeded", id)
		}
	}
}

func (s *suite) stopGrace(t *testing.T) {
	c := s.start(t, nil)
	p := s.Await(t, c, "sleep")
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := c.Stop(ctx, Patience/2); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Done():
	default:
		t.Error("Done is open after Stop")
	}
	WaitFor(t, "process in a stopped container", p.Done())
	if p.ExitCode() != 128+15 {
		t.Errorf("exit code %d, want 143: TERM comes first", p.ExitCode())
	}
	if e := c.End(); e.Reason != runtime.EndStopped || e.At.IsZero() {
		t.Errorf("end %+v, want stopped", e)
	}
	if err := c.Stop(ctx, 0); err != nil {
		t.Errorf("second Stop: %v", err)
	}
	if _, err := c.Exec(ctx, runtime.ProcessSpec{Args: []string{s.Probe, "exit", "0"}}); !errors.Is(err, runtime.ErrClosed) {
		t.Errorf("Exec after the end: %v, want ErrClosed", err)
	}
	if _, err := s.Engine.Get(c.ID()); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("Get after the end: %v, want ErrNotFound", err)
	}
	if _, err := c.Usage(ctx); err != nil {
		t.Errorf("Usage after the end: %v", err)
	}
	// The name is free again.
	again := s.start(t, func(spec *runtime.Spec) { spec.ID = c.ID() })
	s.Do(t, again, "exit", "0")
}

func (s *suite) stopStubborn(t *testing.T) {
	c := s.start(t, nil)
	p := s.Await(t, c, "stubborn")
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := c.Stop(ctx, 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	WaitFor(t, "stubborn process", p.Done())
	if p.ExitCode() != 128+9 {
		t.Errorf("exit code %d, want 137", p.ExitCode())
	}
}

func (s *suite) parallel(t *testing.T) {
	const n = 6
	cs := make([]runtime.Container, n)
	errs := make([]error, n)
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			cs[i], errs[i] = s.Engine.Start(ctx, runtime.Spec{ID: fmt.Sprintf("%s-p%d", s.prefix, i), Layers: s.Layers})
			if errs[i] != nil {
				return
			}
			var o Output
			if o, errs[i] = s.Try(cs[i], "say", fmt.Sprint(i)); errs[i] == nil && o.Stdout != fmt.Sprintln(i) {
				errs[i] = fmt.Errorf("output %+v", o)
			}
			errs[i] = errors.Join(errs[i], cs[i].Stop(ctx, time.Second))
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

func (s *suite) failedStart(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	id := s.prefix + "-bad"
	if _, err := s.Engine.Start(ctx, runtime.Spec{ID: id, Layers: []runtime.Layer{{Root: "no such root"}}}); err == nil {
		t.Error("Start with an unknown layer succeeded")
	}
	over, cancelOver := context.WithCancel(ctx)
	cancelOver()
	if _, err := s.Engine.Start(over, runtime.Spec{ID: id, Layers: s.Layers}); err == nil {
		t.Error("Start with a cancelled context succeeded")
	}
	if slices.Contains(s.Engine.List(), id) {
		t.Errorf("List %v has the container that failed to start", s.Engine.List())
	}
	c := s.start(t, func(spec *runtime.Spec) { spec.ID = id })
	s.Do(t, c, "exit", "0")
}

func (s *suite) sweep(t *testing.T) {
	a, b := s.start(t, nil), s.start(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := s.Engine.Sweep(ctx, []string{a.ID()}); err != nil {
		t.Fatal(err)
	}
	WaitFor(t, "swept container", b.Done())
	if got := s.Engine.List(); !slices.Equal(got, []string{a.ID()}) {
		t.Errorf("List after Sweep: %v, want %s", got, a.ID())
	}
	if o := s.Do(t, a, "say", "still here"); o.Code != 0 {
		t.Errorf("kept container: %+v", o)
	}
}

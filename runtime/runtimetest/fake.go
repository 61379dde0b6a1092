// Package runtimetest has what tests of and around runtime.Engine need: the
// suite that every Engine must pass (Run), and Fake, an Engine that runs plain
// processes of this machine.
//
//	e := runtimetest.NewFake(t.TempDir(), writer)
//	c, err := e.Start(ctx, runtime.Spec{ID: "a", Layers: layers})
//	p, err := c.Exec(ctx, runtime.ProcessSpec{Args: []string{"python3", "-V"}})
//
// Fake isolates nothing and limits nothing: its processes see the machine's
// files, network and users, run as the test's user, and find the layers in
// $BEAM_FAKE_ROOT. It is for tests that need processes which really start,
// print, exchange frames and die, without root.
package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/ctl"
)

var _ runtime.Engine = (*Fake)(nil)

// Fake is an Engine of plain processes. Safe for concurrent use.
type Fake struct {
	dir    string
	writer runtime.LayerWriter

	mu         sync.Mutex
	containers map[string]*FakeContainer
	closed     bool
}

// NewFake keeps its folders below dir. With a nil writer layers are ignored.
func NewFake(dir string, w runtime.LayerWriter) *Fake {
	return &Fake{dir: dir, writer: w, containers: map[string]*FakeContainer{}}
}

// Prepare writes the layers to a folder that is thrown away.
func (f *Fake) Prepare(ctx context.Context, layers []runtime.Layer) error {
	dir, err := os.MkdirTemp(f.dir, "prepare-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return f.write(ctx, layers, dir)
}

func (f *Fake) write(ctx context.Context, layers []runtime.Layer, dir string) error {
	if f.writer == nil {
		return nil
	}
	for _, l := range layers {
		to := filepath.Join(dir, l.Prefix)
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		if err := f.writer.WriteLayer(ctx, l.Root, to); err != nil {
			return fmt.Errorf("unpack layer %s: %w", l.Root, err)
		}
	}
	return nil
}

var goodID = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

// Start makes a folder with the layers in it.
func (f *Fake) Start(ctx context.Context, spec runtime.Spec) (runtime.Container, error) {
	if !goodID.MatchString(spec.ID) {
		return nil, fmt.Errorf("start container: bad id %q", spec.ID)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start container %s: %w", spec.ID, err)
	}
	c := &FakeContainer{fake: f, Spec: spec, root: filepath.Join(f.dir, spec.ID), done: make(chan struct{}), procs: map[*fakeProcess]bool{}}
	f.mu.Lock()
	_, there := f.containers[spec.ID]
	if !there && !f.closed {
		f.containers[spec.ID] = c
	}
	closed := f.closed
	f.mu.Unlock()
	if closed {
		return nil, fmt.Errorf("start container %s: %w", spec.ID, runtime.ErrClosed)
	}
	if there {
		return nil, fmt.Errorf("start container %s: %w", spec.ID, runtime.ErrExists)
	}
	err := os.MkdirAll(c.root, 0o755)
	if err == nil {
		err = f.write(ctx, spec.Layers, c.root)
	}
	if err != nil {
		f.forget(spec.ID)
		return nil, errors.Join(fmt.Errorf("start container %s: %w", spec.ID, err), os.RemoveAll(c.root))
	}
	return c, nil
}

func (f *Fake) forget(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.containers, id)
}

// Get finds a container.
func (f *Fake) Get(id string) (runtime.Container, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %s: %w", id, runtime.ErrNotFound)
}

// List names the containers.
func (f *Fake) List() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for id := range f.containers {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// Sweep stops what keep does not name.
func (f *Fake) Sweep(ctx context.Context, keep []string) error {
	var errs []error
	for _, id := range f.List() {
		if c, err := f.Get(id); err == nil && !slices.Contains(keep, id) {
			errs = append(errs, c.Stop(ctx, 0))
		}
	}
	return errors.Join(errs...)
}

// Close stops everything.
func (f *Fake) Close() error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	return f.Sweep(context.Background(), nil)
}

var _ runtime.Container = (*FakeContainer)(nil)

// FakeContainer is a folder and the processes started for it. Tests may look
// at Spec and call Crash.
type FakeContainer struct {
	Spec runtime.Spec
	fake *Fake
	root string
	done chan struct{}

	mu    sync.Mutex
	procs map[*fakeProcess]bool
	over  bool // no process may start any more
	usage runtime.Usage
	end   runtime.End
}

// ID is Spec.ID.
func (c *FakeContainer) ID() string { return c.Spec.ID }

// Exec starts a process of this machine.
func (c *FakeContainer) Exec(ctx context.Context, p runtime.ProcessSpec) (runtime.Process, error) {
	if len(p.Args) == 0 {
		return nil, fmt.Errorf("exec: %w: no arguments", ctl.ErrExec)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("exec %s: %w", p.Args[0], err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return nil, fmt.Errorf("exec %s: %w", p.Args[0], runtime.ErrClosed)
	}
	pr, err := startProcess(c, p)
	if err != nil {
		return nil, fmt.Errorf("exec %s: %w: %w", p.Args[0], ctl.ErrExec, err)
	}
	c.procs[pr] = true
	go func() {
		<-pr.done
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.procs, pr)
	}()
	return pr, nil
}

// SetLimits writes the limits down; nothing enforces them.
func (c *FakeContainer) SetLimits(_ context.Context, l runtime.Limits) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Spec.Limits = l
	return nil
}

// Limits are those of the start or of the last SetLimits.
func (c *FakeContainer) Limits() runtime.Limits {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Spec.Limits
}

// Usage is zero, or what Crash was told.
func (c *FakeContainer) Usage(context.Context) (runtime.Usage, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.usage, nil
}

// Stop ends all processes.
func (c *FakeContainer) Stop(ctx context.Context, grace time.Duration) error {
	return c.finish(ctx, grace, runtime.End{Reason: runtime.EndStopped})
}

// Crash ends the container as if for the given reason: the processes are
// killed, and for EndOOM the usage counts one kill.
func (c *FakeContainer) Crash(reason runtime.EndReason) error {
	return c.finish(context.Background(), 0, runtime.End{Reason: reason, ExitCode: 137})
}

func (c *FakeContainer) finish(ctx context.Context, grace time.Duration, end runtime.End) error {
	c.mu.Lock()
	first := !c.over
	c.over = true
	if first && end.Reason == runtime.EndOOM {
		c.usage.OOMKills = 1 // the kernel counts before the process is gone
	}
	procs := make([]*fakeProcess, 0, len(c.procs))
	for p := range c.procs {
		procs = append(procs, p)
	}
	c.mu.Unlock()
	if !first {
		select {
		case <-c.done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("stop container %s: %w", c.Spec.ID, ctx.Err())
		}
	}
	limit := time.NewTimer(grace)
	defer limit.Stop()
	if grace > 0 {
		for _, p := range procs {
			_ = p.Signal(int(syscall.SIGTERM), true) // may have ended
		}
		for _, p := range procs {
			select {
			case <-p.done:
				continue
			case <-limit.C:
			case <-ctx.Done():
			}
			break
		}
	}
	for _, p := range procs {
		_ = p.Signal(int(syscall.SIGKILL), true)
		<-p.done
	}
	err := os.RemoveAll(c.root)
	c.fake.forget(c.Spec.ID)
	end.At = time.Now()
	c.mu.Lock()
	c.end = end
	c.mu.Unlock()
	close(c.done)
	return err
}

// Done is closed when the container has ended.
func (c *FakeContainer) Done() <-chan struct{} { return c.done }

// End is valid after Done.
func (c *FakeContainer) End() runtime.End {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end
}

package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	ctrdruntime "github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/cgroup"
	"github.com/beammesh/beammesh/runtime/ctl"
)

var _ runtime.Container = (*container)(nil)

const (
	// teardownTime bounds the removal of one container; the kernel needs
	// milliseconds, a machine that is out of memory much more.
	teardownTime = time.Minute
	// stopMargin is how long init may take to end itself after the grace.
	stopMargin = 3 * time.Second
	// byeTime is how long after init's goodbye its process may last.
	byeTime = 10 * time.Second
)

// container is a container's life: start makes it, watch notices how it ends,
// teardown removes it.
type container struct {
	e     *Engine
	spec  runtime.Spec
	slot  *slot
	dir   string
	oci   []byte
	group *cgroup.Group

	sources []string // mount points below dir that runc mounts from
	release func()   // of the layers
	console *console
	server  *ctl.Server
	session *ctl.Session
	task    ctrdruntime.Task
	cancel  context.CancelFunc // of the watches

	stopping atomic.Bool
	done     chan struct{}

	mu    sync.Mutex
	usage runtime.Usage // the last one, once it has ended
	end   runtime.End
}

// exit is what the task runner says about init's end.
type exit struct {
	status *ctrdruntime.Exit
	err    error
}

func (e *Engine) start(ctx context.Context, spec runtime.Spec) (_ *container, err error) {
	c := &container{e: e, spec: spec, dir: e.cfg.container(spec.ID), done: make(chan struct{}), cancel: func() {},
		group: e.cgroups.Group(filepath.Join(e.cfg.CgroupParent, spec.ID))}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.teardown())
		}
	}()
	var lower []string
	if lower, c.release, err = e.layers.ensure(ctx, spec.Layers); err != nil {
		return nil, err
	}
	if c.slot, err = e.slots.take(ctx, spec.Limits.DiskBytes); err != nil {
		return nil, err
	}
	if err := e.net.SetPolicy(c.slot.addr, spec.Network); err != nil {
		return nil, err
	}
	if err := c.makeFiles(lower); err != nil {
		return nil, err
	}
	if err := c.create(ctx); err != nil {
		return nil, err
	}
	exits, oom, err := c.watch()
	if err != nil {
		return nil, err
	}
	if err := c.task.Start(ctx); err != nil {
		return nil, fmt.Errorf("start init: %w", err)
	}
	if err := c.connect(ctx, exits); err != nil {
		return nil, err
	}
	e.mu.Lock()
	e.containers[spec.ID] = c
	e.mu.Unlock()
	go c.run(exits, oom)
	return c, nil
}

// makeFiles makes the container's folder on the host: root filesystem, sockets
// and the files that are mounted inside.
func (c *container) makeFiles(lower []string) error {
	gid := int(c.slot.pair.First)
	// The container's root must get through, no other user of the host may:
	// the socket in it trusts whoever connects first.
	own := filepath.Join(c.dir, "ctl")
	if err := errors.Join(os.Mkdir(c.dir, 0o710), os.Chown(c.dir, 0, gid), os.Chmod(c.dir, 0o710), os.Mkdir(own, 0o711), os.Chmod(own, 0o711)); err != nil {
		return fmt.Errorf("make container folder: %w", err)
	}
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n" + c.slot.addr.String() + "\t" + c.spec.Hostname + "\n"
	for name, text := range map[string]string{"hosts": hosts, "hostname": c.spec.Hostname + "\n"} {
		if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("make container folder: %w", err)
		}
	}
	if err := mountRootfs(c.slot.pair, c.e.layers.dir, lower, c.slot.disk, c.rootfs()); err != nil {
		return err
	}
	var err error
	if c.console, err = newConsole(filepath.Join(c.dir, "console")); err != nil {
		return fmt.Errorf("make container folder: %w", err)
	}
	c.server, err = ctl.Listen(c.ctlDir(), c.e.log.With("container", c.spec.ID))
	return err
}

func (c *container) rootfs() string { return filepath.Join(c.dir, "rootfs") }

func (c *container) ctlDir() string {
	if c.spec.RunDir != "" {
		return c.spec.RunDir
	}
	return filepath.Join(c.dir, "ctl")
}

// create has runc make the container up to the point where init would start.
func (c *container) create(ctx context.Context) error {
	cfg := &c.e.cfg
	in := specInput{spec: c.spec, rootfs: c.rootfs(), hosts: filepath.Join(c.dir, "hosts"), hostname: filepath.Join(c.dir, "hostname"),
		resolv: cfg.resolv(), run: c.ctlDir(), init: cfg.InitPath, cgroupPath: filepath.Join(cfg.CgroupParent, c.spec.ID),
		cgroups: c.e.cgroups, userNS: c.slot.pair.UserPath(), netNS: c.slot.pair.NetPath()}
	var err error
	if len(c.spec.GPUs) > 0 {
		if in.edits, err = cfg.DeviceEdits(ctx, c.spec.GPUs); err != nil {
			return fmt.Errorf("devices %v: %w", c.spec.GPUs, err)
		}
	}
	defer c.dropSources() // runc has its own copies then
	if in.mounts, err = c.mapMounts(); err != nil {
		return err
	}
	if in.devices, err = c.makeDevices(in.edits.Devices); err != nil {
		return err
	}
	spec := ociSpec(in)
	if c.oci, err = json.Marshal(spec); err != nil {
		return err
	}
	specAny, err := typeurl.MarshalAny(spec)
	if err != nil {
		return err
	}
	opts, err := typeurl.MarshalAny(&options.Options{BinaryName: cfg.RuncPath, Root: cfg.runcRoot(), IoUid: c.slot.pair.First, IoGid: c.slot.pair.First})
	if err != nil {
		return err
	}
	ctx = namespaces.WithNamespace(ctx, ctrdNamespace)
	if _, err := c.e.daemon.records.Create(ctx, containers.Container{ID: c.spec.ID, Spec: specAny,
		Runtime: containers.RuntimeInfo{Name: cfg.ShimPath, Options: opts}}); err != nil {
		return fmt.Errorf("record container: %w", err)
	}
	c.task, err = c.e.daemon.tasks.Create(ctx, c.spec.ID, ctrdruntime.CreateOpts{
		Spec: specAny, Runtime: cfg.ShimPath, RuntimeOptions: opts, TaskOptions: opts,
		IO: ctrdruntime.IO{Stdout: c.console.path, Stderr: c.console.path}})
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	return nil
}

// watch begins to wait for init's end and for the OOM killer.
func (c *container) watch() (<-chan exit, <-chan struct{}, error) {
	ctx, cancel := context.WithCancel(namespaces.WithNamespace(context.Background(), ctrdNamespace))
	c.cancel = cancel
	oom, err := c.group.WatchOOM(ctx)
	if err != nil {
		return nil, nil, err
	}
	exits := make(chan exit, 1)
	go func() {
		status, err := c.task.Wait(ctx)
		exits <- exit{status, err}
	}()
	return exits, oom, nil
}

// connect waits for init to dial.
func (c *container) connect(ctx context.Context, exits <-chan exit) error {
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		s   *ctl.Session
		err error
	}
	got := make(chan result, 1)
	go func() {
		s, err := c.server.Wait(wctx)
		got <- result{s, err}
	}()
	select {
	case r := <-got:
		c.session = r.s
		return r.err
	case x := <-exits:
		cancel()
		if x.err != nil {
			return fmt.Errorf("init was lost before it connected: %w", x.err)
		}
		return fmt.Errorf("init ended with status %d before it connected: %s", x.status.Status, c.console.last())
	}
}

// run follows the container to its end and removes it.
func (c *container) run(exits <-chan exit, oom <-chan struct{}) {
	reason := runtime.EndReason("")
	session := c.session.Done()
	var late <-chan time.Time
	var x exit
	for over := false; !over; {
		select {
		case x = <-exits:
			over = true
			continue
		case <-oom:
			// One process was killed; the rest would go on with a hole in it.
			oom, reason = nil, runtime.EndOOM
		case <-session:
			session = nil
			if c.session.Err() == nil { // said goodbye
				t := time.NewTimer(byeTime)
				defer t.Stop()
				late = t.C
				continue
			}
			if reason == "" && !c.stopping.Load() {
				reason = runtime.EndLost
			}
		case <-late:
			late = nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), teardownTime)
		if err := c.group.Kill(ctx); err != nil {
			c.e.log.Error("kill container", "container", c.spec.ID, "err", err)
		}
		cancel()
	}
	end := runtime.End{Reason: reason, ExitCode: 137, At: time.Now()}
	if x.err == nil {
		end.ExitCode, end.At = int(x.status.Status), x.status.Timestamp
	}
	usage, err := c.readUsage()
	if err == nil {
		c.mu.Lock()
		c.usage = usage
		c.mu.Unlock()
	}
	end.Reason = why(reason, c.stopping.Load(), x.err != nil, end.ExitCode, usage.OOMKills)
	if err := c.teardown(); err != nil {
		c.e.log.Error("remove container", "container", c.spec.ID, "err", err)
	}
	c.e.forget(&c.spec)
	c.mu.Lock()
	c.end = end
	c.mu.Unlock()
	close(c.done)
}

// why tells the reason of an end from what is known: an earlier finding, that
// Stop was called, that the shim was lost, init's exit code, OOM kills.
func why(found runtime.EndReason, stopping, lost bool, code int, oomKills int64) runtime.EndReason {
	switch {
	case found == runtime.EndOOM || oomKills > 0:
		return runtime.EndOOM
	case stopping:
		return runtime.EndStopped
	case found != "":
		return found
	case lost || code > 128: // init ends by itself, unless somebody kills it
		return runtime.EndLost
	default:
		return runtime.EndExited
	}
}

// teardown removes all that start made, however far it got. It goes on after
// errors; what could not be removed, a later Sweep tries again.
func (c *container) teardown() error {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), ctrdNamespace), teardownTime)
	defer cancel()
	errs := []error{c.group.Kill(ctx)}
	c.cancel()
	if c.server != nil {
		errs = append(errs, c.server.Close())
	}
	if c.task != nil {
		if _, err := c.e.daemon.tasks.Delete(ctx, c.spec.ID); err != nil && !errdefs.IsNotFound(err) {
			c.e.log.Debug("delete task", "container", c.spec.ID, "err", err) // its shim was lost
		}
	}
	if err := c.e.daemon.records.Delete(ctx, c.spec.ID); err != nil && !errdefs.IsNotFound(err) {
		errs = append(errs, err)
	}
	errs = append(errs, c.group.Remove(ctx))
	if c.console != nil {
		c.console.close()
	}
	errs = append(errs, removeContainerFiles(&c.e.cfg, c.spec.ID))
	if c.slot != nil {
		errs = append(errs, c.e.slots.give(c.slot))
	}
	if c.release != nil {
		c.release()
	}
	return errors.Join(errs...)
}

func (c *container) ID() string { return c.spec.ID }

func (c *container) Exec(ctx context.Context, p runtime.ProcessSpec) (runtime.Process, error) {
	select {
	case <-c.done:
		return nil, fmt.Errorf("container %s: %w", c.spec.ID, runtime.ErrClosed)
	default:
	}
	pr, err := c.session.Exec(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.spec.ID, err)
	}
	return pr, nil
}

func (c *container) SetLimits(_ context.Context, l runtime.Limits) error {
	select {
	case <-c.done:
		return fmt.Errorf("container %s: %w", c.spec.ID, runtime.ErrClosed)
	default:
	}
	if err := c.group.Set(effective(l)); err != nil {
		return fmt.Errorf("container %s: %w", c.spec.ID, err)
	}
	return nil
}

func (c *container) readUsage() (runtime.Usage, error) {
	u, err := c.group.Usage()
	return runtime.Usage{CPU: u.CPU, MemoryBytes: u.MemoryBytes, OOMKills: u.OOMKills, PIDs: u.PIDs}, err
}

// Usage of a container that has ended is its last.
func (c *container) Usage(context.Context) (runtime.Usage, error) {
	u, err := c.readUsage()
	if err == nil {
		return u, nil
	}
	<-c.dying(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.usage, nil
}

// dying is closed when the container has ended, at once if err is no sign of it.
func (c *container) dying(err error) <-chan struct{} {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return c.done
	}
	ready := make(chan struct{})
	close(ready)
	return ready
}

func (c *container) Stop(ctx context.Context, grace time.Duration) error {
	c.stopping.Store(true)
	limit := time.NewTimer(grace + stopMargin)
	defer limit.Stop()
	if grace > 0 && c.session.Shutdown(grace) == nil {
		select {
		case <-c.done:
			return nil
		case <-limit.C:
		case <-ctx.Done():
		}
	}
	kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTime)
	defer cancel()
	if err := c.group.Kill(kctx); err != nil {
		return fmt.Errorf("stop container %s: %w", c.spec.ID, err)
	}
	select {
	case <-c.done:
		return nil
	case <-kctx.Done():
		return fmt.Errorf("stop container %s: %w", c.spec.ID, kctx.Err())
	}
}

func (c *container) Done() <-chan struct{} { return c.done }

func (c *container) End() runtime.End {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end
}

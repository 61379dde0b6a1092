// Package containerd is the runtime.Engine that makes real containers: with
// containerd inside this process as snapshotter and task runner, runc, and our
// own init as PID 1.
//
//	e, err := containerd.New(ctx, containerd.Config{
//		Root: "/var/lib/beam/runtime", State: "/run/beam/1a2b3c4d",
//		ShimPath: shim, RuncPath: runc, InitPath: initd, LayerWriter: w,
//	})
//	c, err := e.Start(ctx, runtime.Spec{ID: "a", Layers: layers, Limits: limits})
//	p, err := c.Exec(ctx, runtime.ProcessSpec{Args: []string{"/bin/true"}})
//	c.Stop(ctx, 10*time.Second)
//	e.Close()
//
// What a container is made of, and who owns it:
//
//	layers.go     unpacked layers, shared, idmapped for each container
//	slots.go      user namespace, network namespace and disk, made ahead
//	rootfs.go     overlay of both
//	spec.go       the OCI spec
//	container.go  its life: start, stop, why it ended
//	sweep.go      what a killed process leaves, and how it goes
//
// Containers do not outlive the Engine: Close ends them, and New removes what
// a killed process left. Everything that is created lies below Config.Root and
// Config.State or carries Config.Name. Needs root. Safe for concurrent use.
//
// The decisions are in docs/adr.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/cgroup"
	"github.com/beammesh/beammesh/runtime/network"
)

var _ runtime.Engine = (*Engine)(nil)

// Engine runs containers.
type Engine struct {
	cfg     Config
	log     *slog.Logger
	lock    *os.File
	cgroups *cgroup.Hierarchy
	layers  *layerStore
	net     *network.Network
	slots   *slots
	daemon  *daemon

	mu         sync.Mutex
	containers map[string]*container // nil while it is being started
	gpus       map[string]string     // device → the container that holds it
	closed     bool
	busy       sync.WaitGroup // calls under way
	closing    chan struct{}  // closed by Close
}

// New starts an engine. What an earlier process with the same Root and State
// left, containers included, is removed first.
func New(ctx context.Context, cfg Config) (*Engine, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, fault.New(fault.Unsupported, "running containers needs root", "start the node with sudo, or with --role client")
	}
	e := &Engine{cfg: cfg, log: cfg.Log, containers: map[string]*container{}, gpus: map[string]string{}, closing: make(chan struct{})}
	if err := e.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start container engine: %w", err), e.Close())
	}
	return e, nil
}

func (e *Engine) open(ctx context.Context) error {
	c := &e.cfg
	if err := c.makeDirs(); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(c.Root, &st); err != nil {
		return fmt.Errorf("look at %s: %w", c.Root, err)
	}
	if st.Type == unix.OVERLAYFS_SUPER_MAGIC || st.Type == unix.TMPFS_MAGIC {
		return fault.New(fault.Unsupported, fmt.Sprintf("the data directory %s lies on overlayfs or tmpfs", c.Root),
			"use --data with a folder on a disk (ext4, xfs or btrfs)")
	}
	var err error
	if e.lock, err = takeLock(c); err != nil {
		return err
	}
	if e.cgroups, err = cgroup.Detect(); err != nil {
		return err
	}
	if err := sweepMachine(ctx, c, e.cgroups); err != nil {
		return err
	}
	if err := c.makeDirs(); err != nil {
		return err
	}
	if e.layers, err = openLayers(ctx, c); err != nil {
		return err
	}
	e.net, err = network.New(network.Config{Name: c.Name, Subnets: c.Subnets, Bits: subnetBits,
		Upstream: c.Upstream, Reach: c.Reach, Log: c.Log})
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.resolv(), []byte("nameserver "+e.net.Gateway().String()+"\noptions timeout:5 attempts:2\n"), 0o644); err != nil {
		return err
	}
	if e.daemon, err = startDaemon(ctx, c); err != nil {
		return err
	}
	e.slots, err = newSlots(ctx, c, e.net)
	return err
}

// takeLock keeps a second engine, or a sweep, off the same folders.
func takeLock(c *Config) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(c.Root, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fault.New(fault.Conflict, fmt.Sprintf("another node uses the data directory %s", c.Root),
			"stop it, or give this one a directory of its own with --data")
	}
	return f, nil
}

// Prepare unpacks layers.
func (e *Engine) Prepare(ctx context.Context, layers []runtime.Layer) error {
	ctx, leave, err := e.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	_, release, err := e.layers.ensure(ctx, layers)
	if err != nil {
		return fmt.Errorf("prepare layers: %w", blame(ctx, err))
	}
	release()
	return nil
}

// enter begins a call that Close waits for and cuts short; leave ends it.
func (e *Engine) enter(ctx context.Context) (_ context.Context, leave func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, nil, fmt.Errorf("container engine: %w", runtime.ErrClosed)
	}
	e.busy.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-e.closing:
			cancel(fmt.Errorf("container engine: %w", runtime.ErrClosed))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil); e.busy.Done() }, nil
}

// blame adds that the engine was closed to an error that came of it.
func blame(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, runtime.ErrClosed) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// Start starts a container and waits for its init to connect.
func (e *Engine) Start(ctx context.Context, spec runtime.Spec) (runtime.Container, error) {
	ctx, leave, err := e.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := e.check(&spec); err != nil {
		return nil, fmt.Errorf("start container %s: %w", spec.ID, err)
	}
	if err := e.reserve(&spec); err != nil {
		return nil, fmt.Errorf("start container %s: %w", spec.ID, err)
	}
	c, err := e.start(ctx, spec)
	if err != nil {
		e.forget(&spec)
		return nil, fmt.Errorf("start container %s: %w", spec.ID, blame(ctx, err))
	}
	return c, nil
}

// reserve takes the name and the devices.
func (e *Engine) reserve(s *runtime.Spec) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, there := e.containers[s.ID]; there {
		return runtime.ErrExists
	}
	for i, g := range s.GPUs {
		if by, held := e.gpus[g]; held {
			return fmt.Errorf("device %s is held by container %s: %w", g, by, runtime.ErrNoResource)
		}
		if slices.Contains(s.GPUs[:i], g) {
			return fmt.Errorf("device %s is asked for twice", g)
		}
	}
	e.containers[s.ID] = nil
	for _, g := range s.GPUs {
		e.gpus[g] = s.ID
	}
	return nil
}

// forget gives both back, when nothing of the container is left.
func (e *Engine) forget(s *runtime.Spec) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.containers, s.ID)
	for _, g := range s.GPUs {
		delete(e.gpus, g)
	}
}

// check refuses what would only fail later, and fills in defaults.
func (e *Engine) check(s *runtime.Spec) error {
	if !validID(s.ID) {
		return fmt.Errorf("id %q is not [a-z0-9-]{1,64}", s.ID)
	}
	if s.Hostname == "" {
		s.Hostname = s.ID
	}
	if !validID(s.Hostname) {
		return fmt.Errorf("hostname %q is not [a-z0-9-]{1,64}", s.Hostname)
	}
	if len(s.GPUs) > 0 && e.cfg.DeviceEdits == nil {
		return fmt.Errorf("devices %v: this node has none: %w", s.GPUs, runtime.ErrNoResource)
	}
	l := s.Limits
	if l.CPUMillis < 0 || l.MemoryBytes < 0 || l.PIDs < 0 || l.DiskBytes < 0 {
		return fmt.Errorf("negative limit in %+v", l)
	}
	for _, m := range s.Mounts {
		if err := checkMount(m); err != nil {
			return err
		}
	}
	return nil
}

// Get finds a running container.
func (e *Engine) Get(id string) (runtime.Container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.containers[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %s: %w", id, runtime.ErrNotFound)
}

// List names the running containers, sorted.
func (e *Engine) List() []string {
	var out []string
	for _, c := range e.running() {
		out = append(out, c.spec.ID)
	}
	slices.Sort(out)
	return out
}

func (e *Engine) running() []*container {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []*container
	for _, c := range e.containers {
		if c != nil {
			out = append(out, c)
		}
	}
	return out
}

// OCISpec is the spec that a running container was made from, as JSON.
func (e *Engine) OCISpec(id string) ([]byte, error) {
	e.mu.Lock()
	c := e.containers[id]
	e.mu.Unlock()
	if c == nil {
		return nil, fmt.Errorf("container %s: %w", id, runtime.ErrNotFound)
	}
	return c.oci, nil
}

// Address is where the node reaches a container's ports.
func (e *Engine) Address(id string) (string, error) {
	e.mu.Lock()
	c := e.containers[id]
	e.mu.Unlock()
	if c == nil {
		return "", fmt.Errorf("container %s: %w", id, runtime.ErrNotFound)
	}
	return c.slot.addr.String(), nil
}

// Close ends all containers at once and removes everything but the layers.
// May be called twice.
func (e *Engine) Close() error {
	e.mu.Lock()
	again := e.closed
	if !again {
		e.closed = true
		close(e.closing)
	}
	e.mu.Unlock()
	if again {
		return nil
	}
	e.busy.Wait()
	errs := []error{e.stopAll(context.Background(), nil)}
	if e.slots != nil {
		errs = append(errs, e.slots.close())
	}
	if e.daemon != nil {
		e.daemon.stop()
	}
	if e.net != nil {
		errs = append(errs, e.net.Close())
	}
	if e.layers != nil {
		errs = append(errs, e.layers.close())
	}
	if e.lock != nil {
		if e.cgroups != nil {
			ctx, cancel := context.WithTimeout(context.Background(), teardownTime)
			defer cancel()
			errs = append(errs, sweepMachine(ctx, &e.cfg, e.cgroups))
		}
		errs = append(errs, e.lock.Close())
	}
	return errors.Join(errs...)
}

// stopAll ends the containers that keep does not name, without grace.
func (e *Engine) stopAll(ctx context.Context, keep []string) error {
	var wg sync.WaitGroup
	running := e.running()
	errs := make([]error, len(running))
	for i, c := range running {
		if slices.Contains(keep, c.spec.ID) {
			continue
		}
		wg.Go(func() { errs[i] = c.Stop(ctx, 0) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

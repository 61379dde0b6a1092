package worker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/runtime"
)

const (
	// maxQueued bounds the calls that wait at a lease; owners prefetch a few.
	maxQueued = 64
	// stopGrace is how long TERM may take before KILL.
	stopGrace = 5 * time.Second
	// codeDir is where the code tree lands and the program's working directory.
	codeDir = "/mnt/code"
	// runnerDir is where the runner bundle is mounted.
	runnerDir = "/opt/beam/runner"
)

// lease is one granted container and the calls that run in it.
type lease struct {
	id          string
	containerID string
	fence       uint64
	owner       string
	order       *peerv1.WorkOrder
	gpus        []string
	cpuMillis   int64
	granted     time.Time
	env         *environment
	log         *slog.Logger

	out *eventLog

	oomSeen int64 // OOM kills that were told; only callLoop uses it

	mu      sync.Mutex
	queue   []*peerv1.Call // waiting calls, first to run first
	current *running       // nil between calls
	again   *peerv1.Call   // put back once, since its process was ending when it came
	last    string         // task that output between calls belongs to
	wake    chan struct{}  // one token: the queue grew

	cancel  context.CancelCauseFunc // ends run; the cause becomes the reason
	onReady func()                  // called once, when the program is loaded
	settle  func()                  // ends the CPU boost of the start; set by serve
	// onDrained is called when the lease is over and all was acknowledged.
	onDrained func()
}

// running is the call that the runner process works on.
type running struct {
	call   *peerv1.Call
	log    *attemptLog
	cancel chan bool // buffered: true = no grace
	begun  bool      // the runner said so; only the lease's goroutine looks at it
}

// environment is what all leases of a worker share.
type environment struct {
	engine    runtime.Engine
	puller    Puller
	logs      *logDir
	bundle    string // host path of the runner bundle
	nodeName  string
	runDirs   string                                    // short path; one folder per container below it
	sockets   func(dir string) (stop func(), err error) // puts the API into such a folder
	bootstrap []string                                  // env for every container: addresses of the API inside
}

// openRunDir makes the folder that a container sees as /run/beam, with the
// node's API in it.
func (e *environment) openRunDir(containerID string) (dir string, done func(), err error) {
	// Short, because the paths of unix sockets are.
	sum := sha256.Sum256([]byte(containerID))
	dir = filepath.Join(e.runDirs, hex.EncodeToString(sum[:6]))
	if err := os.RemoveAll(dir); err != nil {
		return "", nil, fmt.Errorf("make socket folder: %w", err)
	}
	if err := errors.Join(os.MkdirAll(dir, 0o711), os.Chmod(dir, 0o711)); err != nil {
		return "", nil, fmt.Errorf("make socket folder: %w", err)
	}
	stop, err := e.sockets(dir)
	if err != nil {
		_ = os.RemoveAll(dir)
		return "", nil, err
	}
	return dir, func() {
		stop()
		_ = os.RemoveAll(dir)
	}, nil
}

// Puller makes trees available on this node's disk.
type Puller interface {
	// Pull returns when an image's roots and the code root ("" = none) are
	// complete here. It gives the bytes that had to move and the peers they
	// came from.
	Pull(ctx context.Context, image []string, code string, sources []string) (bytes int64, from []string, err error)
}

// endCause is why a lease's context ended.
type endCause struct{ reason, message string }

func (e *endCause) Error() string { return e.message }

func (l *lease) emit(up *peerv1.LeaseUp) { l.out.add(up) }

func (l *lease) phase(name string, since time.Time, detail string) {
	l.emit(&peerv1.LeaseUp{What: &peerv1.LeaseUp_Phase{Phase: &peerv1.PhaseDone{
		Name: name, DurationUs: time.Since(since).Microseconds(), Detail: detail}}})
}

// run carries the lease from grant to gone. It returns when nothing of the
// container is left.
func (l *lease) run(ctx context.Context) *peerv1.LeaseGone {
	gone := l.serve(ctx)
	if gone.Reason == "" {
		gone.Reason, gone.Message = "released", "the owner released it"
		var c *endCause
		if errors.As(context.Cause(ctx), &c) {
			gone.Reason, gone.Message = c.reason, c.message
		}
	}
	l.dropQueued()
	l.emit(&peerv1.LeaseUp{What: &peerv1.LeaseUp_Gone{Gone: gone}})
	l.out.close()
	l.log.Info("lease ended", "lease", l.id, "reason", gone.Reason, "message", gone.Message)
	return gone
}

// serve starts the container and runs calls until ctx ends or the container
// does. An empty reason means that ctx ended.
func (l *lease) serve(ctx context.Context) *peerv1.LeaseGone {
	t := time.Now()
	bytes, from, err := l.env.puller.Pull(ctx, l.order.ImageRoots, l.order.CodeRoot, l.order.Sources)
	if err != nil {
		return l.failed(ctx, "pull", err)
	}
	l.phase("pull", t, pullDetail(bytes, from))

	t = time.Now()
	runDir, closeAPI, err := l.env.openRunDir(l.containerID)
	if err != nil {
		return l.failed(ctx, "start", err)
	}
	defer closeAPI()
	spec, err := l.spec(runDir)
	if err != nil {
		return l.failed(ctx, "start", err)
	}
	asked := spec.Limits
	spec.Limits.CPUMillis = boosted(asked.CPUMillis)
	c, err := l.env.engine.Start(ctx, spec)
	if err != nil {
		return l.failed(ctx, "start", err)
	}
	defer func() {
		// The lease's own context may be over: stopping has its own limit.
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 60*time.Second)
		defer cancel()
		if err := c.Stop(sctx, stopGrace); err != nil {
			l.log.Error("stop container", "container", c.ID(), "err", err)
		}
	}()
	l.phase("start", t, "")
	defer l.endBoost(ctx, c, asked)()
	return l.callLoop(ctx, c)
}

func (l *lease) callLoop(ctx context.Context, c runtime.Container) *peerv1.LeaseGone {
	deaths := 0
	for first := true; ; first = false {
		r, gone := l.startRunner(ctx, c, first)
		if gone != nil {
			return gone
		}
		deaths++
		for {
			call, ok := l.nextCall(ctx, c, r)
			if !ok {
				break
			}
			deaths = 0
			if alive := l.runCall(ctx, c, r, call); !alive {
				break
			}
		}
		r.quiet()
		if ctx.Err() != nil {
			return &peerv1.LeaseGone{}
		}
		select {
		case <-c.Done():
			return containerGone(c.End())
		default: // only the process is gone: the next one takes over
		}
		if deaths >= maxIdleDeaths {
			return &peerv1.LeaseGone{Reason: string(runtime.EndExited), Message: fmt.Sprintf(
				"the program ended by itself %d times without a call (exit code %d)", deaths, r.ExitCode())}
		}
	}
}

// A container that was granted less gets a whole core while Python starts and
// the program is imported: with the default eighth of a core that takes most of
// a second. It ends when the program is loaded, at the latest after boostLimit,
// so that loading a model is not worth more than was asked for.
const (
	boostMillis = 1000
	boostLimit  = 5 * time.Second
)

// boosted is the CPU limit to start with; 0 is no limit and stays that.
func boosted(asked int64) int64 {
	if asked > 0 {
		asked = max(asked, boostMillis)
	}
	return asked
}

// endBoost arranges that the container has what was asked for from the moment
// when the program is loaded. stop waits until nothing touches c any more.
func (l *lease) endBoost(ctx context.Context, c runtime.Container, asked runtime.Limits) (stop func()) {
	if boosted(asked.CPUMillis) == asked.CPUMillis {
		l.settle = func() {}
		return func() {}
	}
	var once sync.Once
	l.settle = func() {
		once.Do(func() {
			if err := c.SetLimits(ctx, asked); err != nil && ctx.Err() == nil {
				select {
				case <-c.Done():
				default:
					l.log.Error("limit the CPU of a container", "container", c.ID(), "err", err)
				}
			}
		})
	}
	timer := time.AfterFunc(boostLimit, l.settle)
	return func() {
		timer.Stop()
		once.Do(func() {}) // it has run, or never will
	}
}

func containerGone(end runtime.End) *peerv1.LeaseGone {
	g := &peerv1.LeaseGone{Reason: string(end.Reason),
		Message: fmt.Sprintf("the container ended by itself (exit code %d)", end.ExitCode)}
	if end.Reason == runtime.EndOOM {
		g.Message = "the container ran out of memory"
	}
	return g
}

// failed turns an error on the way to a running container into the lease's end.
func (l *lease) failed(ctx context.Context, step string, err error) *peerv1.LeaseGone {
	if ctx.Err() != nil {
		return &peerv1.LeaseGone{}
	}
	f := fault.From(err)
	return &peerv1.LeaseGone{Reason: "failed", Message: strings.ToValidUTF8(fmt.Sprintf("%s on %s: %s", step, l.env.nodeName, err), "\uFFFD"), Hint: f.Hint}
}

func pullDetail(bytes int64, from []string) string {
	if bytes == 0 {
		return "already here"
	}
	peers := "1 peer"
	if len(from) != 1 {
		peers = fmt.Sprint(len(from), " peers")
	}
	return fmt.Sprintf("%.1f MiB from %s", float64(bytes)/(1<<20), peers)
}

func (l *lease) spec(runDir string) (runtime.Spec, error) {
	o := l.order
	layers := make([]runtime.Layer, 0, len(o.ImageRoots)+1)
	for _, r := range o.ImageRoots {
		layers = append(layers, runtime.Layer{Root: r})
	}
	layers = append(layers, runtime.Layer{Root: o.CodeRoot, Prefix: codeDir[1:]})
	var allow []netip.Prefix
	for _, s := range o.AllowList {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return runtime.Spec{}, fault.Wrap(fault.Invalid, err, "bad network in the allow list", "write it as 10.0.0.0/8")
		}
		allow = append(allow, p)
	}
	return runtime.Spec{
		ID:        l.containerID,
		Workspace: o.WorkspaceId,
		Layers:    layers,
		Hostname:  l.containerID,
		Env:       append([]string{}, o.Env...),
		Limits: runtime.Limits{CPUMillis: l.cpuMillis, MemoryBytes: o.MemoryBytes,
			DiskBytes: o.DiskBytes},
		GPUs:    l.gpus,
		Mounts:  []runtime.Mount{{Source: l.env.bundle, Target: runnerDir, ReadOnly: true}},
		Network: runtime.Network{Block: o.BlockNetwork, Allow: allow},
		RunDir:  runDir,
	}, nil
}

// enqueue adds a call; false means that the lease has too many. One that is sent
// again is recognised.
func (l *lease) enqueue(c *peerv1.Call) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	// A repeated send, after a broken stream or a restart of the owner: the call
	// waits, runs, or its end is among the events not yet acknowledged.
	for _, q := range l.queue {
		if q.TaskId == c.TaskId && q.Attempt == c.Attempt {
			return true
		}
	}
	if l.current != nil && l.current.call.TaskId == c.TaskId && l.current.call.Attempt == c.Attempt {
		// A new life of the owner has not heard that it began.
		l.emit(&peerv1.LeaseUp{What: &peerv1.LeaseUp_Started{Started: &peerv1.CallStarted{TaskId: c.TaskId, Attempt: c.Attempt}}})
		return true
	}
	if l.out.hasEnd(c.TaskId, c.Attempt) {
		return true
	}
	if len(l.queue) >= maxQueued {
		return false
	}
	l.queue = append(l.queue, c)
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return true
}

// takeQueued removes a waiting call; nil when it does not wait (any more).
func (l *lease) takeQueued(task string, attempt uint32) *peerv1.Call {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, q := range l.queue {
		if q.TaskId == task && q.Attempt == attempt {
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			return q
		}
	}
	return nil
}

// dropQueued gives all waiting calls back: they never started.
func (l *lease) dropQueued() {
	l.mu.Lock()
	queue := l.queue
	l.queue = nil
	l.mu.Unlock()
	for _, q := range queue {
		l.ended(q, &peerv1.CallEnded{Kind: peerv1.CallEnded_RECALLED})
	}
}

func (l *lease) ended(c *peerv1.Call, e *peerv1.CallEnded) {
	e.TaskId, e.Attempt = c.TaskId, c.Attempt
	l.emit(&peerv1.LeaseUp{What: &peerv1.LeaseUp_Ended{Ended: e}})
}

// cancelCall ends a call wherever it is.
func (l *lease) cancelCall(task string, attempt uint32, kill bool) {
	if q := l.takeQueued(task, attempt); q != nil {
		l.ended(q, &peerv1.CallEnded{Kind: peerv1.CallEnded_CANCELLED})
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if cur := l.current; cur != nil && cur.call.TaskId == task && cur.call.Attempt == attempt {
		select {
		case cur.cancel <- kill:
		default: // one is under way
			if kill {
				select {
				case <-cur.cancel:
				default:
				}
				cur.cancel <- true
			}
		}
	}
}

func (l *lease) recall(task string, attempt uint32) {
	if q := l.takeQueued(task, attempt); q != nil {
		l.ended(q, &peerv1.CallEnded{Kind: peerv1.CallEnded_RECALLED})
	}
}

package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/ctl"
)

// loadLimit bounds importing the handler and on_start: models load there.
const loadLimit = 30 * time.Minute

// killLimit is how long a killed process may take to be gone.
const killLimit = 30 * time.Second

// maxResult bounds what a call returns; the runner has the same bound and says
// it better. Above it an event would not fit into a message.
const maxResult = 16 << 20

// maxIdleDeaths bounds the processes in a row that ended by themselves without
// having been given a call.
const maxIdleDeaths = 5

// process is one runner process: persistent, it takes calls in sequence.
type process struct {
	runtime.Process
	frames chan frame
	quiet  context.CancelFunc // lets go of output that nobody takes
}

type frame struct {
	header  ctl.RunnerHeader
	payload []byte
	err     error
}

// startRunner starts a runner process and waits until the program is loaded. A
// LeaseGone means that the program cannot be loaded, or that ctx is over.
func (l *lease) startRunner(ctx context.Context, c runtime.Container, first bool) (*process, *peerv1.LeaseGone) {
	t := time.Now()
	p := &process{frames: make(chan frame, 4)}
	pctx, quiet := context.WithCancel(ctx)
	p.quiet = quiet
	// While it loads, output belongs to the call that the lease was made for.
	proc, err := c.Exec(ctx, runtime.ProcessSpec{
		Args:   []string{l.order.Python, "-m", "beam._runner.main"},
		Env:    l.runnerEnv(),
		Cwd:    codeDir,
		Frames: true,
		Output: func(fd int, b []byte) { l.output(pctx, fd, b) },
		Frame: func(body []byte) {
			h, payload, err := ctl.DecodeRunner(body)
			f := frame{header: h, payload: append([]byte(nil), payload...), err: err}
			select {
			case p.frames <- f:
			case <-pctx.Done():
			}
		},
	})
	if err != nil {
		quiet()
		return nil, l.cannotExec(ctx, c, err)
	}
	p.Process = proc
	timer := time.NewTimer(loadLimit)
	defer timer.Stop()
	select {
	case f := <-p.frames:
		return l.loaded(p, f, first, t)
	case <-proc.Done():
		select {
		case f := <-p.frames: // it said why before it ended
			return l.loaded(p, f, first, t)
		default:
		}
		return nil, l.diedLoading(ctx, c, proc)
	case <-timer.C:
		l.kill(p, true)
		return nil, &peerv1.LeaseGone{Reason: "failed", Code: string(fault.JobTimeout),
			Message: fmt.Sprintf("the program did not load within %s", loadLimit)}
	case <-ctx.Done():
		l.kill(p, true)
		return nil, &peerv1.LeaseGone{}
	}
}

// cannotExec explains why no process can be started. Of a container that is
// ending it waits for the end, which says more.
func (l *lease) cannotExec(ctx context.Context, c runtime.Container, err error) *peerv1.LeaseGone {
	if errors.Is(err, runtime.ErrClosed) {
		t := time.NewTimer(killLimit)
		defer t.Stop()
		select {
		case <-c.Done():
		case <-ctx.Done():
		case <-t.C:
		}
	}
	select {
	case <-c.Done():
		if ctx.Err() == nil {
			return containerGone(c.End())
		}
	default:
	}
	return l.failed(ctx, "start the program", err)
}

func (l *lease) loaded(p *process, f frame, first bool, since time.Time) (*process, *peerv1.LeaseGone) {
	switch {
	case f.err != nil:
		l.kill(p, true)
		return nil, &peerv1.LeaseGone{Reason: "failed", Code: string(fault.Internal), Message: "the runner sent a broken frame: " + f.err.Error()}
	case f.header.Type == ctl.RunnerReady:
		l.settle()
		if first {
			l.phase("import", since, "Python "+f.header.Python)
			l.emit(&peerv1.LeaseUp{What: &peerv1.LeaseUp_Ready{Ready: &peerv1.Ready{ContainerId: l.containerID, Python: f.header.Python}}})
			l.onReady()
		}
		return p, nil
	case f.header.Type == ctl.RunnerFailed && f.header.Error != nil:
		e := userError(f.header.Error)
		code := fault.Failed
		if e.Kind == ctl.KindPythonMismatch {
			code = fault.PythonMismatch
		}
		return nil, &peerv1.LeaseGone{Reason: "failed", Code: string(code), Message: e.Message, Hint: e.Hint, Error: e}
	}
	l.kill(p, true)
	return nil, &peerv1.LeaseGone{Reason: "failed", Code: string(fault.Internal), Message: "the runner answered " + f.header.Type + " before it was ready"}
}

// diedLoading explains a runner that ended before it was ready.
func (l *lease) diedLoading(ctx context.Context, c runtime.Container, proc runtime.Process) *peerv1.LeaseGone {
	if ctx.Err() != nil {
		return &peerv1.LeaseGone{}
	}
	select {
	case <-c.Done():
		if end := c.End(); end.Reason != runtime.EndExited {
			return containerGone(end)
		}
	default:
	}
	if l.ranOutOfMemory(ctx, c) {
		return &peerv1.LeaseGone{Reason: "failed", Code: string(fault.OutOfMemory),
			Message: fmt.Sprintf("out of memory while the program loaded (limit %d MiB)", l.order.MemoryBytes>>20),
			Hint:    "ask for more: memory=\"1Gi\""}
	}
	g := &peerv1.LeaseGone{Reason: "failed", Code: string(fault.Failed),
		Message: fmt.Sprintf("the program ended with exit code %d before it was loaded", proc.ExitCode())}
	if proc.ExitCode() == 127 {
		g.Message = fmt.Sprintf("the image has no %s", l.order.Python)
		g.Hint = "use an image with Python, or set Image(python_version=…)"
	}
	return g
}

// runnerEnv is what the runner reads; the user's own variables are in the
// container's environment.
func (l *lease) runnerEnv() []string {
	o := l.order
	env := []string{
		"PYTHONPATH=" + runnerDir,
		"PYTHONUNBUFFERED=1",
		"HANDLER=" + o.Handler,
		"ON_START=" + o.OnStart,
		"STUB_ID=" + o.StubId,
		"STUB_TYPE=" + o.StubType,
		"CONTAINER_ID=" + l.containerID,
		"CONTAINER_HOSTNAME=" + l.containerID,
		"CALLBACK_URL=" + o.CallbackUrl,
		"RETRY_FOR=" + strings.Join(o.RetryFor, ","),
		"BEAM_CLIENT_PYTHON=" + o.ClientPython,
		"BIND_PORT=8001",
		fmt.Sprintf("TIMEOUT=%d", o.TimeoutMs/1000),
		"BEAM_TOKEN=" + o.Token,
		"BETA9_TOKEN=" + o.Token,
	}
	return append(env, l.env.bootstrap...)
}

// output files log bytes under the call that runs.
func (l *lease) output(ctx context.Context, fd int, b []byte) {
	l.mu.Lock()
	cur := l.current
	task, attempt := l.last, uint32(0)
	var log *attemptLog
	if cur != nil {
		task, attempt, log = cur.call.TaskId, cur.call.Attempt, cur.log
	} else if len(l.queue) > 0 { // what the program prints while it loads
		task, attempt = l.queue[0].TaskId, l.queue[0].Attempt
	}
	l.mu.Unlock()
	if log != nil {
		log.write(fd, b)
	}
	l.out.addOutput(ctx, &peerv1.LeaseUp{What: &peerv1.LeaseUp_Output{Output: &peerv1.Output{
		TaskId: task, Attempt: attempt, Fd: uint32(fd), Data: append([]byte(nil), b...)}}})
}

// nextCall waits for work. ok is false when the process or the lease is over.
func (l *lease) nextCall(ctx context.Context, c runtime.Container, p *process) (*peerv1.Call, bool) {
	for {
		// Results that the owner does not acknowledge must not pile up.
		l.out.room(ctx)
		if call, ok := l.takeNext(); ok {
			return call, true
		}
		select {
		case <-l.wake:
		case <-p.Done():
			return nil, false
		case <-c.Done():
			return nil, false
		case <-ctx.Done():
			return nil, false
		}
	}
}

// takeNext makes the first waiting call the current one.
func (l *lease) takeNext() (*peerv1.Call, bool) {
	l.mu.Lock()
	if len(l.queue) == 0 {
		l.mu.Unlock()
		return nil, false
	}
	call := l.queue[0]
	l.queue = l.queue[1:]
	cur := &running{call: call, log: closedLog(), cancel: make(chan bool, 1)}
	l.current, l.last = cur, call.TaskId
	l.mu.Unlock()
	// The process does not have the call yet: nothing of it is printed before
	// the file is there.
	log, err := l.env.logs.create(call.TaskId, call.Attempt)
	if err != nil {
		l.log.Warn("no log file for this attempt", "task", call.TaskId, "err", err)
		return call, true
	}
	l.mu.Lock()
	cur.log = log
	l.mu.Unlock()
	return call, true
}

// finish ends the current call. The end is among the events before the call is
// no longer current: one that is sent again meanwhile finds it in either place.
// A nil end is that of the whole lease, which says it for the call.
func (l *lease) finish(call *peerv1.Call, e *peerv1.CallEnded) {
	l.mu.Lock()
	if e != nil {
		l.ended(call, e)
	}
	log := l.current.log
	l.current = nil
	l.mu.Unlock()
	l.env.logs.finish(call.TaskId, call.Attempt, log)
}

// runCall runs one call to its end; it tells whether the process lives on.
func (l *lease) runCall(ctx context.Context, c runtime.Container, p *process, call *peerv1.Call) (alive bool) {
	l.mu.Lock()
	cur := l.current
	l.mu.Unlock()
	start := time.Now()
	end := func(e *peerv1.CallEnded) {
		e.DurationUs = time.Since(start).Microseconds()
		l.finish(call, e)
	}
	body, err := ctl.EncodeRunner(ctl.RunnerHeader{Type: ctl.RunnerCall, TaskID: call.TaskId,
		Attempt: int(call.Attempt), Format: call.Format}, call.Args)
	if err == nil {
		l.emit(&peerv1.LeaseUp{What: &peerv1.LeaseUp_Started{Started: &peerv1.CallStarted{TaskId: call.TaskId, Attempt: call.Attempt}}})
		err = p.Send(body)
	}
	if err != nil {
		// It ended by itself, or it closed its channel: its exit code says which.
		if !l.gone(p, stopGrace) {
			l.kill(p, true)
		}
		if !l.putBack(c, cur) {
			end(l.crashed(ctx, c, p, err.Error()))
		}
		return false
	}
	var deadline <-chan time.Time
	if call.TimeoutMs > 0 {
		t := time.NewTimer(time.Duration(call.TimeoutMs) * time.Millisecond)
		defer t.Stop()
		deadline = t.C
	}
	for {
		select {
		case f := <-p.frames:
			if e := l.result(f, cur); e != nil {
				end(e)
				return f.err == nil
			}
		case <-p.Done():
			// The result may have come just before the end.
			e := l.lastResult(p, cur)
			if e == nil && l.putBack(c, cur) {
				return false
			}
			if e == nil {
				e = l.crashed(ctx, c, p, "")
			}
			end(e)
			return false
		case <-c.Done():
			end(l.crashed(ctx, c, p, ""))
			return false
		case <-deadline:
			l.kill(p, false)
			end(&peerv1.CallEnded{Kind: peerv1.CallEnded_TIMEOUT})
			return false
		case now := <-cur.cancel:
			l.kill(p, now)
			end(&peerv1.CallEnded{Kind: peerv1.CallEnded_CANCELLED})
			return false
		case <-ctx.Done():
			// The container is stopped by serve, with its own grace, and the
			// lease's end tells the owner that the call did not finish.
			l.finish(call, nil)
			return false
		}
	}
}

// lastResult looks for a call's end in what a dead process had said.
func (l *lease) lastResult(p *process, cur *running) *peerv1.CallEnded {
	for {
		select {
		case f := <-p.frames:
			if e := l.result(f, cur); e != nil {
				return e
			}
		default:
			return nil
		}
	}
}

// putBack queues a call again that a process never saw: it was ending when the
// call came. That happens to a call once; the container must live.
func (l *lease) putBack(c runtime.Container, cur *running) bool {
	select {
	case <-c.Done():
		return false
	default:
	}
	l.mu.Lock()
	if cur.begun || l.again == cur.call || len(cur.cancel) > 0 {
		l.mu.Unlock()
		return false
	}
	l.again = cur.call
	l.current = nil
	l.queue = append([]*peerv1.Call{cur.call}, l.queue...)
	log := cur.log
	l.mu.Unlock()
	l.env.logs.finish(cur.call.TaskId, cur.call.Attempt, log)
	return true
}

// result turns a runner frame into the call's end; nil for frames that are not.
func (l *lease) result(f frame, cur *running) *peerv1.CallEnded {
	call := cur.call
	if f.err != nil {
		return &peerv1.CallEnded{Kind: peerv1.CallEnded_CRASHED, Error: &peerv1.UserError{Kind: "exception", Message: "broken frame from the runner: " + f.err.Error()}}
	}
	h := f.header
	if h.Type == ctl.RunnerStarted && h.TaskID == call.TaskId {
		cur.begun = true
	}
	if h.Type != ctl.RunnerResult || h.TaskID != call.TaskId || h.Attempt != int(call.Attempt) {
		return nil
	}
	if n := len(f.payload); n > maxResult {
		return &peerv1.CallEnded{Kind: peerv1.CallEnded_ERROR, Error: &peerv1.UserError{Kind: ctl.KindUnpicklableValue, Type: "ValueError",
			Message: fmt.Sprintf("the result weighs %.1f MiB, the limit is %d MiB", float64(n)/(1<<20), maxResult>>20)}}
	}
	e := &peerv1.CallEnded{Format: h.Format, Payload: f.payload}
	switch h.Status {
	case ctl.StatusOK:
		e.Kind = peerv1.CallEnded_OK
	case ctl.StatusRetry:
		e.Kind = peerv1.CallEnded_RETRY
	default:
		e.Kind = peerv1.CallEnded_ERROR
	}
	if h.Error != nil {
		e.Error = userError(h.Error)
	}
	return e
}

// crashed explains a process that ended without a result.
func (l *lease) crashed(ctx context.Context, c runtime.Container, p *process, detail string) *peerv1.CallEnded {
	e := &peerv1.CallEnded{Kind: peerv1.CallEnded_CRASHED}
	select {
	case <-p.Done():
		e.ExitCode = int32(p.ExitCode())
	default:
		e.ExitCode = 1
	}
	ended := false
	select {
	case <-c.Done():
		ended = c.End().Reason == runtime.EndOOM
	default:
	}
	kills := l.oomKills(ctx, c)
	if ended || kills > l.oomSeen {
		e.Kind, e.ExitCode = peerv1.CallEnded_OOM, 137
	}
	l.oomSeen = max(kills, l.oomSeen)
	if detail != "" {
		e.Error = &peerv1.UserError{Kind: "crash", Message: detail}
	}
	return e
}

func (l *lease) oomKills(ctx context.Context, c runtime.Container) int64 {
	u, err := c.Usage(ctx)
	if err != nil {
		return 0
	}
	return u.OOMKills
}

func (l *lease) ranOutOfMemory(ctx context.Context, c runtime.Container) bool {
	return l.oomKills(ctx, c) > 0
}

// kill ends a process group: TERM, and after the grace KILL; now skips TERM.
// It returns when the process is gone.
func (l *lease) kill(p *process, now bool) {
	if !now {
		_ = p.Signal(int(syscall.SIGTERM), true)
		l.gone(p, stopGrace)
	}
	// Children that ignored TERM are in the same group: KILL it in any case.
	_ = p.Signal(int(syscall.SIGKILL), true)
	if l.gone(p, stopGrace) {
		return
	}
	// It ends when its output was taken, which an owner that does not read may
	// prevent: the file has it.
	p.quiet()
	if !l.gone(p, killLimit) {
		l.log.Error("process did not end after KILL", "container", l.containerID, "pid", p.PID())
	}
}

// gone waits for the end of a process whose frames nobody wants any more.
func (l *lease) gone(p *process, limit time.Duration) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	for {
		select {
		case <-p.Done():
			return true
		case <-p.frames: // its writer must not hang
		case <-t.C:
			return false
		}
	}
}

func userError(e *ctl.RunnerError) *peerv1.UserError {
	return &peerv1.UserError{Kind: e.Kind, Type: e.Type, Message: e.Message, Traceback: e.Traceback, Hint: e.Hint}
}

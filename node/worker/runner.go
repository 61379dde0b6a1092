package worker

import (
	"context"
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

// process is one runner process: persistent, it takes calls in sequence.
type process struct {
	runtime.Process
	frames chan frame
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
	// While it loads, output belongs to the call that the lease was made for.
	proc, err := c.Exec(ctx, runtime.ProcessSpec{
		Args:   []string{l.order.Python, "-m", "beam._runner.main"},
		Env:    l.runnerEnv(),
		Cwd:    codeDir,
		Frames: true,
		Output: func(fd int, b []byte) { l.output(ctx, fd, b) },
		Frame: func(body []byte) {
			h, payload, err := ctl.DecodeRunner(body)
			f := frame{header: h, payload: append([]byte(nil), payload...), err: err}
			select {
			case p.frames <- f:
			case <-ctx.Done():
			}
		},
	})
	if err != nil {
		select {
		case <-c.Done():
			return nil, containerGone(c.End())
		default:
			return nil, l.failed(ctx, "start the program", err)
		}
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

func (l *lease) loaded(p *process, f frame, first bool, since time.Time) (*process, *peerv1.LeaseGone) {
	switch {
	case f.err != nil:
		l.kill(p, true)
		return nil, &peerv1.LeaseGone{Reason: "failed", Code: string(fault.Internal), Message: "the runner sent a broken frame: " + f.err.Error()}
	case f.header.Type == ctl.RunnerReady:
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
	if cur != nil {
		task, attempt = cur.call.TaskId, cur.call.Attempt
	} else if len(l.queue) > 0 { // what the program prints while it loads
		task, attempt = l.queue[0].TaskId, l.queue[0].Attempt
	}
	l.mu.Unlock()
	if cur != nil {
		cur.log.write(fd, b)
	}
	l.out.addOutput(ctx, &peerv1.LeaseUp{What: &peerv1.LeaseUp_Output{Output: &peerv1.Output{
		TaskId: task, Attempt: attempt, Fd: uint32(fd), Data: append([]byte(nil), b...)}}})
}

// nextCall waits for work. ok is false when the process or the lease is over.
func (l *lease) nextCall(ctx context.Context, c runtime.Container, p *process) (*peerv1.Call, bool) {
	for {
		l.mu.Lock()
		if len(l.queue) > 0 {
			call := l.queue[0]
			l.queue = l.queue[1:]
			log, err := l.env.logs.create(call.TaskId, call.Attempt)
			if err != nil {
				l.log.Warn("no log file for this attempt", "task", call.TaskId, "err", err)
				log = &attemptLog{done: true, wake: make(chan struct{})}
			}
			l.current = &running{call: call, log: log, cancel: make(chan bool, 1)}
			l.last = call.TaskId
			l.mu.Unlock()
			return call, true
		}
		l.mu.Unlock()
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

// runCall runs one call to its end; it tells whether the process lives on.
func (l *lease) runCall(ctx context.Context, c runtime.Container, p *process, call *peerv1.Call) (alive bool) {
	l.mu.Lock()
	cur := l.current
	l.mu.Unlock()
	oomBefore := l.oomKills(ctx, c)
	start := time.Now()
	end := func(e *peerv1.CallEnded) {
		e.DurationUs = time.Since(start).Microseconds()
		l.mu.Lock()
		l.current = nil
		l.mu.Unlock()
		if cur.log.f != nil {
			l.env.logs.finish(call.TaskId, call.Attempt, cur.log)
		}
		l.ended(call, e)
	}
	body, err := ctl.EncodeRunner(ctl.RunnerHeader{Type: ctl.RunnerCall, TaskID: call.TaskId,
		Attempt: int(call.Attempt), Format: call.Format}, call.Args)
	if err == nil {
		l.emit(&peerv1.LeaseUp{What: &peerv1.LeaseUp_Started{Started: &peerv1.CallStarted{TaskId: call.TaskId, Attempt: call.Attempt}}})
		err = p.Send(body)
	}
	if err != nil {
		end(l.crashed(ctx, c, p, oomBefore, err.Error()))
		l.kill(p, true)
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
			if e := l.result(f, call); e != nil {
				end(e)
				return f.err == nil
			}
		case <-p.Done():
			select { // the result may have come just before the end
			case f := <-p.frames:
				if e := l.result(f, call); e != nil {
					end(e)
					return false
				}
			default:
			}
			end(l.crashed(ctx, c, p, oomBefore, ""))
			return false
		case <-c.Done():
			end(l.crashed(ctx, c, p, oomBefore, ""))
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
			l.mu.Lock()
			l.current = nil
			l.mu.Unlock()
			if cur.log.f != nil {
				l.env.logs.finish(call.TaskId, call.Attempt, cur.log)
			}
			return false
		}
	}
}

// result turns a runner frame into the call's end; nil for frames that are not.
func (l *lease) result(f frame, call *peerv1.Call) *peerv1.CallEnded {
	if f.err != nil {
		return &peerv1.CallEnded{Kind: peerv1.CallEnded_CRASHED, Error: &peerv1.UserError{Kind: "exception", Message: "broken frame from the runner: " + f.err.Error()}}
	}
	h := f.header
	if h.Type != ctl.RunnerResult || h.TaskID != call.TaskId || h.Attempt != int(call.Attempt) {
		return nil
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
func (l *lease) crashed(ctx context.Context, c runtime.Container, p *process, oomBefore int64, detail string) *peerv1.CallEnded {
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
	if ended || l.oomKills(ctx, c) > oomBefore {
		e.Kind, e.ExitCode = peerv1.CallEnded_OOM, 137
	}
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
		t := time.NewTimer(stopGrace)
		defer t.Stop()
		select {
		case <-p.Done():
		case <-t.C:
		}
	}
	// Children that ignored TERM are in the same group: KILL it in any case.
	_ = p.Signal(int(syscall.SIGKILL), true)
	t := time.NewTimer(30 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-p.Done():
			return
		case <-p.frames: // nobody wants them any more, but its writer must not hang
		case <-t.C:
			l.log.Error("process did not end after KILL", "container", l.containerID, "pid", p.PID())
			return
		}
	}
}

func userError(e *ctl.RunnerError) *peerv1.UserError {
	return &peerv1.UserError{Kind: e.Kind, Type: e.Type, Message: e.Message, Traceback: e.Traceback, Hint: e.Hint}
}

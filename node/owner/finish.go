package owner

import (
	"context"
	"fmt"
	"time"

	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/scheduler/replicas"
	"google.golang.org/protobuf/proto"
)

// journalLimit bounds the wait for the journal while the owner closes.
const journalLimit = 30 * time.Second

// finishLocked ends a task: the end is journalled, then told.
func (o *Owner) finishLocked(p *pool, t *task, a replicas.Finished) {
	if Ended(t.status) {
		return
	}
	ans, ok := t.answers[uint32(a.Attempt)]
	out := ans.outcome
	if ok && ans.answers(a.Failure) {
		t.accepted++
	} else {
		out = o.failureLocked(p, t, a)
	}
	t.answers = nil
	t.status, t.ended, t.outcome = out.Status, time.Now(), out
	out.Phases = o.phasesLocked(t)
	if t.started.IsZero() {
		t.started = t.ended
	}
	if t.headless {
		p.headless--
	}
	notify, holds := t.notify, t.holds
	t.notify, t.holds = nil, nil
	o.wg.Add(1)
	go func() {
		defer o.wg.Done()
		o.tell(t, notify, holds)
	}()
}

// recentLocked keeps an ended task for a while: beyond the bounds the journal
// answers for it.
func (o *Owner) recentLocked(t *task, journalled bool) {
	t.told = true
	o.open--
	o.openBytes -= len(t.args)
	o.slimLocked(t, journalled)
	o.recent = append(o.recent, t.id)
	for len(o.recent) > maxRecent {
		delete(o.tasks, o.recent[0])
		o.recent = o.recent[1:]
	}
}

// tell journals a task's end and then hands it out. An end that cannot be
// journalled is told all the same: the client is there, the disk is not. Until
// it was taken the worker keeps it too, and begins no more calls once it keeps
// too much: that is how a client that does not read slows its map down.
func (o *Owner) tell(t *task, notify Notify, holds []func()) {
	// What ended while the owner closes is still written down.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(o.ctx), journalLimit)
	defer cancel()
	b, err := proto.Marshal(t.outcome)
	if err == nil {
		err = o.cfg.Journal.Ended(ctx, t.id, EndRecord{Status: t.status, Outcome: b, StartedUnixMicro: t.started.UnixMicro(),
			EndedUnixMicro: t.ended.UnixMicro(), Node: t.outcome.NodeId, Lease: t.outcome.ContainerId, Attempt: t.outcome.Attempt})
	}
	if err != nil {
		o.log.Error("journal the end of a task", "task", t.id, "err", err)
	}
	// What it printed before its end was handed on before; what a reader holds
	// up now belongs to an attempt that does not count.
	t.stop()
	out := t.outcome
	o.mu.Lock()
	o.recentLocked(t, err == nil)
	o.mu.Unlock()
	if notify != nil {
		t.logMu.Lock()
		notify.Done(t.id, out)
		t.logMu.Unlock()
	}
	if err == nil || !t.headless { // else the worker keeps the end for our next life
		for _, release := range holds {
			release()
		}
	}
}

// keptResult is how large a result may be to stay in memory after its task has
// ended: with maxRecent tasks that is 640 MiB at the very most.
const keptResult = 64 << 10

// slimLocked lets go of what an ended task no longer needs in memory; a large
// result is read from the journal when somebody asks for it.
func (o *Owner) slimLocked(t *task, journalled bool) {
	t.args = nil
	if journalled && len(t.outcome.Result)+len(t.outcome.GetException().GetPickle()) > keptResult {
		t.outcome, t.slim = WithoutResult(t.outcome), true
	}
}

// WithoutResult is a copy without what may be large.
func WithoutResult(o *beamv1.Outcome) *beamv1.Outcome {
	return &beamv1.Outcome{TaskId: o.TaskId, Status: o.Status, Error: o.Error, NodeId: o.NodeId, NodeName: o.NodeName,
		ContainerId: o.ContainerId, Attempt: o.Attempt, Warm: o.Warm, Phases: o.Phases, ResultFormat: o.ResultFormat, Notes: o.Notes}
}

// failureLocked is the outcome of a task that ended without an answer of its own.
func (o *Owner) failureLocked(p *pool, t *task, a replicas.Finished) *beamv1.Outcome {
	out := &beamv1.Outcome{TaskId: t.id, Status: Error, Attempt: uint32(a.Attempt)}
	if at := t.last(); at != nil {
		out.NodeId, out.ContainerId = at.node, string(at.lease)
		out.NodeName = o.cfg.NodeName(peerID(at.node))
	}
	f := a.Failure
	if f == nil {
		f = &replicas.Failure{Kind: replicas.FailCrash, Text: "the result was lost"}
	}
	detail := &beamv1.ErrorDetail{Message: f.Text}
	switch f.Kind {
	case replicas.FailCancelled:
		out.Status, detail.Code = Cancelled, string(fault.Cancelled)
		if detail.Message == "" {
			detail.Message = "the task was cancelled"
		}
	case replicas.FailTimeout:
		out.Status, detail.Code = TimedOut, string(fault.JobTimeout)
		detail.Message = fmt.Sprintf("the call ran longer than its timeout of %s", p.plan.Config.Timeout())
	case replicas.FailExpired:
		out.Status, detail.Code = TimedOut, string(fault.Timeout)
		detail.Message = "the task waited too long to begin"
		if p.waiting != "" {
			detail.Message += ": " + p.waiting
		}
		detail.Hint = "see 'beam explain " + t.id + "'"
	case replicas.FailOOM:
		detail.Code = string(fault.OutOfMemory)
		detail.Hint = "ask for more, for example memory=\"1Gi\""
	case replicas.FailNodeLost:
		detail.Code = string(fault.NodeLost)
		detail.Hint = "the task was tried on several nodes; see 'beam explain " + t.id + "'"
	case replicas.FailRejected:
		detail.Code = string(fault.NoCapacity)
	case replicas.FailNoPlace:
		detail.Code = string(fault.NoCapacity)
		if p.fatal != nil {
			detail = proto.Clone(p.fatal).(*beamv1.ErrorDetail)
		}
		if p.userFail != nil {
			out.Exception = exception(p.userFail, nil)
		}
	default:
		detail.Code = string(fault.Failed)
	}
	out.Error = detail
	return out
}

// phasesLocked draws a task's way: times in ms since it was taken.
func (o *Owner) phasesLocked(t *task) []*beamv1.Phase {
	at := t.last()
	if at == nil {
		return []*beamv1.Phase{{Name: "queue", DurationMs: t.ended.Sub(t.created).Milliseconds()}}
	}
	since := func(x time.Time) int64 { return max(x.Sub(t.created).Milliseconds(), 0) }
	var ps []*beamv1.Phase
	if c := o.leases[at.lease]; c != nil && !at.warm {
		// The container was started for this task, or for one beside it.
		if !c.placedAt.IsZero() {
			ps = append(ps, &beamv1.Phase{Name: "place", StartMs: since(c.wanted), DurationMs: c.placedAt.Sub(c.wanted).Milliseconds(), Detail: o.cfg.NodeName(c.node)})
		}
		offset := c.wanted.Sub(t.created).Milliseconds()
		for _, ph := range c.phases {
			q := proto.Clone(ph).(*beamv1.Phase)
			q.StartMs = max(q.StartMs+offset, 0)
			ps = append(ps, q)
		}
	} else {
		ps = append(ps, &beamv1.Phase{Name: "queue", DurationMs: since(at.dispatched)})
	}
	if !at.started.IsZero() {
		end := at.ended
		if end.IsZero() {
			end = t.ended
		}
		ps = append(ps, &beamv1.Phase{Name: "run", StartMs: since(at.started), DurationMs: end.Sub(at.started).Milliseconds()})
	}
	return ps
}

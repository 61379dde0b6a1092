package owner

import (
	"fmt"

	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/scheduler/replicas"
)

// outcome turns a call's end into what the client sees and what the pool needs.
func (c *leaseClient) outcome(t *task, at *attempt, e *peerv1.CallEnded) (*beamv1.Outcome, *replicas.Failure) {
	node := c.o.cfg.NodeName(c.node)
	o := &beamv1.Outcome{TaskId: t.id, NodeId: string(c.node), NodeName: node, ContainerId: string(c.id), Attempt: e.Attempt,
		Warm: at != nil && at.warm, ResultFormat: e.Format}
	if c.note != "" {
		o.Notes = append(o.Notes, c.note)
	}
	fail := func(kind replicas.FailureKind, name string, code fault.Code, text, hint string) (*beamv1.Outcome, *replicas.Failure) {
		o.Status = Error
		o.Error = &beamv1.ErrorDetail{Code: string(code), Message: text, Hint: hint}
		return o, &replicas.Failure{Kind: kind, Name: name, Text: text}
	}
	switch e.Kind {
	case peerv1.CallEnded_OK:
		o.Status, o.Result = Complete, e.Payload
		return o, nil
	case peerv1.CallEnded_ERROR, peerv1.CallEnded_RETRY:
		o.Exception = exception(e.Error, e.Payload)
		name := o.Exception.Type
		if e.Kind == peerv1.CallEnded_RETRY {
			name = retryName
		}
		return fail(replicas.FailException, name, fault.Failed, fmt.Sprintf("%s: %s", o.Exception.Type, o.Exception.Message), o.Exception.Hint)
	case peerv1.CallEnded_TIMEOUT:
		o2, f := fail(replicas.FailTimeout, "", fault.JobTimeout, fmt.Sprintf("the call ran longer than its timeout of %s", c.pool.plan.Config.Timeout()), "raise timeout=, or -1 for none")
		o2.Status = TimedOut
		return o2, f
	case peerv1.CallEnded_CANCELLED:
		o2, f := fail(replicas.FailCancelled, "", fault.Cancelled, "the task was cancelled", "")
		o2.Status = Cancelled
		return o2, f
	case peerv1.CallEnded_OOM:
		return fail(replicas.FailOOM, "", fault.OutOfMemory, fmt.Sprintf("out of memory on %s: the container's limit is %d MiB", node, c.pool.plan.Demand.MemoryMiB), "ask for more, for example memory=\"1Gi\"")
	}
	text := fmt.Sprintf("the program ended with exit code %d on %s", e.ExitCode, node)
	if e.Error.GetMessage() != "" {
		text += ": " + e.Error.Message
	}
	return fail(replicas.FailCrash, "", fault.Failed, text, "see 'beam logs --task-id "+t.id+"'")
}

func exception(e *peerv1.UserError, pickle []byte) *beamv1.RemoteException {
	if e == nil {
		e = &peerv1.UserError{Kind: "exception", Type: "Exception"}
	}
	return &beamv1.RemoteException{Kind: e.Kind, Type: e.Type, Message: e.Message, Traceback: e.Traceback, Hint: e.Hint, Pickle: pickle}
}

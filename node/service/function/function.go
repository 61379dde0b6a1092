// Package function serves function.FunctionService: one call of a stub per
// request, with its output and its result on the answer stream.
package function

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/beammesh/beammesh/node/api"
	"github.com/beammesh/beammesh/node/auth"
	"github.com/beammesh/beammesh/node/owner"
	"github.com/beammesh/beammesh/node/token"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/client/functionpb"
	"github.com/beammesh/beammesh/proto/client/functionpb/functionpbconnect"
	"github.com/beammesh/beammesh/proto/fault"
)

// MaxArgs bounds the arguments of one call; results have the same bound.
const MaxArgs = 16 << 20

// Tasks is what the service needs of the owner.
type Tasks interface {
	Submit(ctx context.Context, r owner.Request) (string, error)
	Forget(taskID string)
}

// Service implements function.FunctionService.
type Service struct {
	functionpbconnect.UnimplementedFunctionServiceHandler
	Tasks Tasks
}

// idDelay is how long the message with nothing but the task's id may wait for
// company: every message has the id, and most warm calls end before it is over.
const idDelay = 3 * time.Millisecond

// FunctionInvoke submits one call. The first message has the task's id, then
// output comes as it is printed, and the last message has the result. When the
// client closes the stream, a task that is not headless is cancelled.
func (s *Service) FunctionInvoke(ctx context.Context, req *connect.Request[functionpb.FunctionInvokeRequest], out *connect.ServerStream[functionpb.FunctionInvokeResponse]) error {
	id, err := auth.Require(ctx, token.Invoke)
	if err != nil {
		return err
	}
	sub := newStream()
	task, err := s.submit(ctx, id.Workspace, req.Msg, sub)
	if err != nil && api.Stock(req.Header()) {
		return out.Send(&functionpb.FunctionInvokeResponse{Output: api.Text(err) + "\n", Fd: 2, Done: true, ExitCode: int32(fault.CodeOf(err).ExitStatus())})
	} else if err != nil {
		return err
	}
	defer close(sub.left)
	defer s.Tasks.Forget(task)
	alone := time.NewTimer(idDelay)
	defer alone.Stop()
	for {
		select {
		case <-alone.C:
			if err := out.Send(&functionpb.FunctionInvokeResponse{TaskId: task}); err != nil {
				return err
			}
		case l := <-sub.lines:
			alone.Stop()
			if err := out.Send(l.message(task)); err != nil {
				return err
			}
		case o := <-sub.done:
			// What was printed before the end is in the channel already.
			for more := true; more; {
				select {
				case l := <-sub.lines:
					if err := out.Send(l.message(task)); err != nil {
						return err
					}
				default:
					more = false
				}
			}
			for fd, text := range sub.unfinished() {
				if err := out.Send(line{fd, text}.message(task)); err != nil {
					return err
				}
			}
			api.Hold(ctx) // the end of the stream goes with it
			return out.Send(last(task, o, req.Peer().Protocol == connect.ProtocolGRPC))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Service) submit(ctx context.Context, workspace string, m *functionpb.FunctionInvokeRequest, sub *stream) (task string, err error) {
	if len(m.Args) > MaxArgs {
		return "", fault.New(fault.TooLarge, "the arguments are above 16 MiB", "put large data into a file of the image or a volume, and pass its name")
	}
	return s.Tasks.Submit(ctx, owner.Request{Workspace: workspace, StubID: m.StubId, Args: m.Args,
		Format: "pickle", Headless: m.Headless, CallbackURL: m.CallbackUrl, Notify: sub})
}

// last is the message that ends a stream. Stock clients speak gRPC and show
// output, and nothing else, of what failed; ours reads the outcome.
func last(task string, o *beamv1.Outcome, stock bool) *functionpb.FunctionInvokeResponse {
	m := &functionpb.FunctionInvokeResponse{TaskId: task, Done: true, ExitCode: int32(ExitCode(o)), Outcome: o}
	if o.Status == owner.Complete {
		// Not twice: clients bound what they take.
		m.Result, m.Outcome = o.Result, owner.WithoutResult(o)
	} else if o.Error != nil && stock {
		text := o.Error.Message
		if tb := o.Exception.GetTraceback(); tb != "" {
			text = tb
		}
		m.Output = text + "\n"
		m.Fd = 2
	}
	return m
}

// ExitCode is the process status that stands for an outcome.
func ExitCode(o *beamv1.Outcome) int {
	if o.Status == owner.Complete {
		return 0
	}
	return fault.Code(o.GetError().GetCode()).ExitStatus()
}

// Package admin serves beammesh.v1.NodeService: what the command line asks of a
// node beyond the stock client's services.
package admin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/beammesh/beammesh/node/auth"
	"github.com/beammesh/beammesh/node/token"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/beammesh/v1/beammeshv1connect"
	"github.com/beammesh/beammesh/proto/fault"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Bounds of what may be asked for.
const (
	maxTicketLife = 30 * 24 * time.Hour
	ticketLife    = 24 * time.Hour
	drainLimit    = 10 * time.Minute
	maxDrain      = 24 * time.Hour
)

// Node is the node itself.
type Node interface {
	Status() *beamv1.StatusResponse
	Nodes() []*beamv1.NodeInfo
	Invite(ctx context.Context, tier string, life time.Duration) (ticket string, err error)
	// Drain stops new work and waits for what runs, or takes work again. report
	// is called as it goes on.
	Drain(ctx context.Context, on bool, limit time.Duration, report func(text string, running int)) error
	// Leave drains, gives the membership up and makes the process end.
	Leave(ctx context.Context, report func(text string, running int)) error
}

// Tasks is what the service needs of the task router.
type Tasks interface {
	Get(ctx context.Context, workspace, id string) (*beamv1.TaskInfo, error)
	Explain(ctx context.Context, workspace, id string, changes []string) (*beamv1.ExplainResponse, error)
	List(ctx context.Context, workspace, status, stub string, limit int) (*beamv1.ListTasksResponse, error)
	Logs(ctx context.Context, workspace, task, container string, follow bool, fn func(fd int, p []byte) error) error
}

// Tokens issues tokens.
type Tokens interface {
	Issue(ctx context.Context, workspace, name string, scopes []token.Scope, life time.Duration) (id, bearer string, err error)
}

// Service implements beammesh.v1.NodeService.
type Service struct {
	beammeshv1connect.UnimplementedNodeServiceHandler
	Node   Node
	Tasks  Tasks
	Tokens Tokens
}

// Status says how the node is.
func (s *Service) Status(ctx context.Context, _ *connect.Request[beamv1.StatusRequest]) (*connect.Response[beamv1.StatusResponse], error) {
	if _, err := auth.Require(ctx, token.Read); err != nil {
		return nil, err
	}
	return connect.NewResponse(s.Node.Status()), nil
}

// ListNodes lists the members of the mesh as this node sees them.
func (s *Service) ListNodes(ctx context.Context, _ *connect.Request[beamv1.ListNodesRequest]) (*connect.Response[beamv1.ListNodesResponse], error) {
	if _, err := auth.Require(ctx, token.Read); err != nil {
		return nil, err
	}
	nodes := s.Node.Nodes()
	slices.SortFunc(nodes, func(a, b *beamv1.NodeInfo) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.Id, b.Id)
	})
	return connect.NewResponse(&beamv1.ListNodesResponse{Nodes: nodes}), nil
}

// Invite makes a ticket.
func (s *Service) Invite(ctx context.Context, req *connect.Request[beamv1.InviteRequest]) (*connect.Response[beamv1.InviteResponse], error) {
	if _, err := auth.Require(ctx, token.Admin); err != nil {
		return nil, err
	}
	life := time.Duration(req.Msg.TtlSeconds) * time.Second
	if life == 0 {
		life = ticketLife
	}
	if life < 0 || life > maxTicketLife {
		return nil, fault.New(fault.Invalid, fmt.Sprintf("a ticket lives at most %s", maxTicketLife), "leave the time out for 24 h")
	}
	t, err := s.Node.Invite(ctx, req.Msg.Tier, life)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&beamv1.InviteResponse{Ticket: t, Expires: timestamppb.New(time.Now().Add(life))}), nil
}

// Drain stops new work on this node, or takes work again.
func (s *Service) Drain(ctx context.Context, req *connect.Request[beamv1.DrainRequest], out *connect.ServerStream[beamv1.DrainEvent]) error {
	if _, err := auth.Require(ctx, token.Admin); err != nil {
		return err
	}
	limit := time.Duration(req.Msg.TimeoutSeconds) * time.Second
	if limit <= 0 {
		limit = drainLimit
	}
	err := s.Node.Drain(ctx, req.Msg.Drain, min(limit, maxDrain), func(text string, running int) {
		_ = out.Send(&beamv1.DrainEvent{Text: text, Running: uint32(running)}) // the client may be gone; draining goes on
	})
	if err != nil {
		return err
	}
	return out.Send(&beamv1.DrainEvent{Text: "done", Done: true})
}

// Leave takes this node out of the mesh for good.
func (s *Service) Leave(ctx context.Context, _ *connect.Request[beamv1.LeaveRequest], out *connect.ServerStream[beamv1.DrainEvent]) error {
	if _, err := auth.Require(ctx, token.Admin); err != nil {
		return err
	}
	err := s.Node.Leave(ctx, func(text string, running int) {
		_ = out.Send(&beamv1.DrainEvent{Text: text, Running: uint32(running)})
	})
	if err != nil {
		return err
	}
	return out.Send(&beamv1.DrainEvent{Text: "this machine has left the mesh", Done: true})
}

// maxChanges bounds the changes of one what-if question.
const maxChanges = 16

// Explain says why a task ran where it ran, or why it waits; with changes, also
// where one that asks for something else would run now.
func (s *Service) Explain(ctx context.Context, req *connect.Request[beamv1.ExplainRequest]) (*connect.Response[beamv1.ExplainResponse], error) {
	id, err := auth.Require(ctx, token.Read)
	if err != nil {
		return nil, err
	}
	if len(req.Msg.Changes) > maxChanges {
		return nil, fault.New(fault.Invalid, fmt.Sprintf("%d changes at once", len(req.Msg.Changes)), fmt.Sprintf("give %d at most", maxChanges))
	}
	r, err := s.Tasks.Explain(ctx, id.Workspace, req.Msg.TaskId, req.Msg.Changes)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(r), nil
}

// GetTask describes one task, with its result when it has ended.
func (s *Service) GetTask(ctx context.Context, req *connect.Request[beamv1.GetTaskRequest]) (*connect.Response[beamv1.TaskInfo], error) {
	id, err := auth.Require(ctx, token.Read)
	if err != nil {
		return nil, err
	}
	t, err := s.Tasks.Get(ctx, id.Workspace, req.Msg.TaskId)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(t), nil
}

// ListTasks lists the newest tasks of the workspace on all reachable owners.
func (s *Service) ListTasks(ctx context.Context, req *connect.Request[beamv1.ListTasksRequest]) (*connect.Response[beamv1.ListTasksResponse], error) {
	id, err := auth.Require(ctx, token.Read)
	if err != nil {
		return nil, err
	}
	l, err := s.Tasks.List(ctx, id.Workspace, req.Msg.Status, "", int(req.Msg.Limit))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(l), nil
}

// TaskLogs streams the log of a task or container.
func (s *Service) TaskLogs(ctx context.Context, req *connect.Request[beamv1.TaskLogsRequest], out *connect.ServerStream[beamv1.LogLine]) error {
	id, err := auth.Require(ctx, token.Read)
	if err != nil {
		return err
	}
	m := req.Msg
	tail := newTail(int(m.TailLines))
	send := func(fd int, p []byte) error {
		return out.Send(&beamv1.LogLine{TaskId: m.TaskId, Fd: uint32(fd), Data: p})
	}
	if tail == nil {
		return s.Tasks.Logs(ctx, id.Workspace, m.TaskId, m.ContainerId, m.Follow, send)
	}
	// The end of what there is, then, if wanted, what comes.
	var seen int64
	err = s.Tasks.Logs(ctx, id.Workspace, m.TaskId, m.ContainerId, false, func(fd int, p []byte) error {
		seen += int64(len(p))
		tail.add(fd, p)
		return nil
	})
	if err != nil && !(m.Follow && fault.CodeOf(err) == fault.NotFound) { // it may be yet to start
		return err
	}
	if err := tail.send(send); err != nil || !m.Follow {
		return err
	}
	return s.Tasks.Logs(ctx, id.Workspace, m.TaskId, m.ContainerId, true, func(fd int, p []byte) error {
		if skip := min(seen, int64(len(p))); skip > 0 {
			seen -= skip
			p = p[skip:]
		}
		if len(p) == 0 {
			return nil
		}
		return send(fd, p)
	})
}

// CreateScopedToken makes a token with chosen rights.
func (s *Service) CreateScopedToken(ctx context.Context, req *connect.Request[beamv1.CreateScopedTokenRequest]) (*connect.Response[beamv1.CreateScopedTokenResponse], error) {
	id, err := auth.Require(ctx, token.Admin)
	if err != nil {
		return nil, err
	}
	var scopes []token.Scope
	for _, sc := range req.Msg.Scopes {
		if sc == "run" {
			sc = string(token.Invoke)
		}
		switch token.Scope(sc) {
		case token.Admin, token.Deploy, token.Invoke, token.Read:
			scopes = append(scopes, token.Scope(sc))
		default:
			return nil, fault.New(fault.Invalid, "unknown scope "+sc, "scopes are admin, deploy, invoke and read")
		}
	}
	if len(scopes) == 0 {
		scopes = []token.Scope{token.Invoke}
	}
	if req.Msg.TtlSeconds < 0 {
		return nil, fault.New(fault.Invalid, "the time to live is negative", "leave it out for a token that does not expire")
	}
	tid, bearer, err := s.Tokens.Issue(ctx, id.Workspace, "", scopes, time.Duration(req.Msg.TtlSeconds)*time.Second)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&beamv1.CreateScopedTokenResponse{TokenId: tid, Token: bearer}), nil
}

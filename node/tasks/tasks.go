// Package tasks answers questions about any task or container of the mesh from
// any node: a task's id names its owner, which is asked by stream; lists are
// put together from all members, and say who did not answer.
package tasks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/node/owner"
	"github.com/beammesh/beammesh/node/wire"
	"github.com/beammesh/beammesh/node/worker"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/client/gatewaypb"
	"github.com/beammesh/beammesh/proto/client/typespb"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/scheduler/market"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Protocol is the mesh protocol of the questions.
const Protocol = "task/1"

// askLimit bounds one question to one node.
const askLimit = 5 * time.Second

// Router is safe for concurrent use.
type Router struct {
	Self    mesh.PeerID
	Dialer  mesh.Dialer
	Members mesh.Members
	Owner   *owner.Owner
	Worker  *worker.Worker // nil where no containers run
	Log     *slog.Logger
}

// ownerOf names the member that made a task id.
func (r *Router) ownerOf(id string) (mesh.PeerID, error) {
	if owner.IsOwnedBy(id, string(r.Self)) {
		return r.Self, nil
	}
	for _, m := range r.Members.Members() {
		if owner.IsOwnedBy(id, string(m.ID)) {
			return m.ID, nil
		}
	}
	return "", fault.New(fault.NotFound, "task "+id+" is not known: no member of the mesh made it", "see 'beam task list'")
}

// Get describes a task.
func (r *Router) Get(ctx context.Context, workspace, id string) (*beamv1.TaskInfo, error) {
	out := new(beamv1.TaskInfo)
	return out, r.ofTask(ctx, id, &peerv1.TaskRequest{What: &peerv1.TaskRequest_Get{Get: id}, WorkspaceId: workspace}, out)
}

// Explain says why a task ran where it ran and, with changes, where one that
// asks for something else would run now.
func (r *Router) Explain(ctx context.Context, workspace, id string, changes []string) (*beamv1.ExplainResponse, error) {
	out := new(beamv1.ExplainResponse)
	return out, r.ofTask(ctx, id, &peerv1.TaskRequest{What: &peerv1.TaskRequest_Explain{Explain: id}, WorkspaceId: workspace, Changes: changes}, out)
}

// Stop cancels a task; one that has ended is left alone.
func (r *Router) Stop(ctx context.Context, workspace, id string) error {
	return r.ofTask(ctx, id, &peerv1.TaskRequest{What: &peerv1.TaskRequest_Stop{Stop: id}, WorkspaceId: workspace}, nil)
}

func (r *Router) ofTask(ctx context.Context, id string, req *peerv1.TaskRequest, out proto.Message) error {
	at, err := r.ownerOf(id)
	if err != nil {
		return err
	}
	err = r.ask(ctx, at, req, out)
	if errors.Is(err, mesh.ErrUnreachable) {
		return fault.Wrap(fault.Unreachable, err, "the node that took task "+id+" cannot be reached", "a headless task goes on without it; ask again when it is back")
	}
	return err
}

// List gives the newest tasks of all owners.
func (r *Router) List(ctx context.Context, workspace, status, stub string, limit int) (*beamv1.ListTasksResponse, error) {
	if limit <= 0 {
		limit = 100
	}
	all := new(beamv1.ListTasksResponse)
	missing := r.everyone(ctx, &peerv1.TaskRequest{What: &peerv1.TaskRequest_List{List: &peerv1.ListTasks{Limit: uint32(limit), Status: status, StubId: stub}}, WorkspaceId: workspace},
		func() proto.Message { return new(beamv1.ListTasksResponse) },
		func(m proto.Message) { all.Tasks = append(all.Tasks, m.(*beamv1.ListTasksResponse).Tasks...) })
	all.MissingNodes = missing
	slices.SortFunc(all.Tasks, func(a, b *beamv1.TaskInfo) int { return b.CreatedAt.AsTime().Compare(a.CreatedAt.AsTime()) })
	all.Tasks = all.Tasks[:min(limit, len(all.Tasks))]
	return all, nil
}

// Containers lists the containers of all workers.
func (r *Router) Containers(ctx context.Context, workspace string) ([]*typespb.Container, []string) {
	var all []*typespb.Container
	missing := r.everyone(ctx, &peerv1.TaskRequest{What: &peerv1.TaskRequest_Containers{Containers: true}, WorkspaceId: workspace},
		func() proto.Message { return new(gatewaypb.ListContainersResponse) },
		func(m proto.Message) { all = append(all, m.(*gatewaypb.ListContainersResponse).Containers...) })
	slices.SortFunc(all, func(a, b *typespb.Container) int { return b.ScheduledAt.AsTime().Compare(a.ScheduledAt.AsTime()) })
	return all, missing
}

// StopContainer stops a container wherever it runs.
func (r *Router) StopContainer(ctx context.Context, workspace, id string) error {
	found := false
	r.everyone(ctx, &peerv1.TaskRequest{What: &peerv1.TaskRequest_StopContainer{StopContainer: id}, WorkspaceId: workspace},
		func() proto.Message { return nil }, func(proto.Message) { found = true })
	if !found {
		return fault.New(fault.NotFound, "container "+id+" is not running on any reachable node", "see 'beam container list'")
	}
	return nil
}

// everyone asks all members at once and gives the names of those that did not
// answer.
func (r *Router) everyone(ctx context.Context, req *peerv1.TaskRequest, fresh func() proto.Message, take func(proto.Message)) (missing []string) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, m := range r.Members.Members() {
		if m.ID != r.Self && !m.Connected {
			mu.Lock()
			missing = append(missing, m.Name)
			mu.Unlock()
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			out := fresh()
			err := r.ask(ctx, m.ID, req, out)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				take(out)
			case fault.CodeOf(err) != fault.NotFound:
				missing = append(missing, m.Name)
				r.Log.Debug("ask about tasks", "peer", m.ID, "err", err)
			}
		}()
	}
	wg.Wait()
	slices.Sort(missing)
	return missing
}

func (r *Router) ask(ctx context.Context, at mesh.PeerID, req *peerv1.TaskRequest, out proto.Message) error {
	var rep *peerv1.TaskReply
	if at == r.Self {
		rep = r.answer(req)
	} else {
		ctx, cancel := context.WithTimeout(ctx, askLimit)
		defer cancel()
		s, err := r.Dialer.Open(ctx, at, Protocol)
		if err != nil {
			return err
		}
		defer s.Close()
		_ = s.SetDeadline(time.Now().Add(askLimit))
		conn := wire.New(s)
		rep = new(peerv1.TaskReply)
		if err := conn.Write(req); err != nil {
			return fmt.Errorf("%w: %w", mesh.ErrUnreachable, err)
		}
		if err := conn.Read(rep); err != nil {
			return fmt.Errorf("%w: %w", mesh.ErrUnreachable, err)
		}
	}
	if rep.Code != "" {
		return fault.New(fault.Code(rep.Code), rep.Message, rep.Hint)
	}
	if out == nil || len(rep.Payload) == 0 {
		return nil
	}
	return proto.Unmarshal(rep.Payload, out)
}

// Serve is the mesh handler of Protocol. A member speaks for its users: it
// checked their token, and names the workspace.
func (r *Router) Serve(_ context.Context, s mesh.Stream) {
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(askLimit))
	conn := wire.New(s)
	req := new(peerv1.TaskRequest)
	if err := conn.Read(req); err != nil {
		_ = s.Reset()
		return
	}
	_ = conn.Write(r.answer(req))
}

func (r *Router) answer(req *peerv1.TaskRequest) *peerv1.TaskReply {
	m, err := r.local(req)
	rep := new(peerv1.TaskReply)
	if err == nil && m != nil {
		rep.Payload, err = proto.Marshal(m)
	}
	if err != nil {
		f := fault.From(err)
		rep.Code, rep.Message, rep.Hint = string(f.Code), f.Message, f.Hint
	}
	return rep
}

func (r *Router) local(req *peerv1.TaskRequest) (proto.Message, error) {
	ws := req.WorkspaceId
	switch w := req.What.(type) {
	case *peerv1.TaskRequest_Get:
		return r.Owner.Get(ws, w.Get)
	case *peerv1.TaskRequest_Explain:
		return r.Owner.Explain(ws, w.Explain, req.Changes)
	case *peerv1.TaskRequest_Stop:
		if _, err := r.Owner.Get(ws, w.Stop); err != nil {
			return nil, err
		}
		return nil, r.Owner.Cancel(w.Stop, "stopped by the user")
	case *peerv1.TaskRequest_List:
		infos, err := r.Owner.List(ws, w.List.Status, w.List.StubId, int(w.List.Limit))
		return &beamv1.ListTasksResponse{Tasks: infos}, err
	case *peerv1.TaskRequest_Containers:
		return &gatewaypb.ListContainersResponse{Ok: true, Containers: r.containers(ws)}, nil
	case *peerv1.TaskRequest_StopContainer:
		if r.Worker == nil || !r.Worker.Stop(w.StopContainer, ws) {
			return nil, fault.New(fault.NotFound, "no such container here", "")
		}
		return nil, nil
	}
	return nil, fault.New(fault.Unsupported, "unknown question", "update the node that asks or this one")
}

func (r *Router) containers(workspace string) []*typespb.Container {
	if r.Worker == nil {
		return nil
	}
	var out []*typespb.Container
	for _, l := range r.Worker.Leases() {
		o, ok := r.Worker.Order(string(l.Lease))
		if !ok || o.WorkspaceId != workspace {
			continue
		}
		c := &typespb.Container{ContainerId: string(l.Lease), StubId: o.StubId, WorkspaceId: o.WorkspaceId, Status: status(l),
			WorkerId: string(r.Self), MachineId: r.Members.Self().Name}
		if at, ok := r.Worker.Granted(string(l.Lease)); ok {
			c.ScheduledAt = timestamppb.New(at)
		}
		out = append(out, c)
	}
	return out
}

func status(l market.LeaseState) string {
	switch {
	case l.Stopping != "":
		return "STOPPING"
	case l.Ready:
		return "RUNNING"
	}
	return "PENDING"
}

// startLook is the pause between two looks at a task whose output is waited for:
// the node that owns it may be another one, which does not call back.
const startLook = 200 * time.Millisecond

// Logs streams the log of a task or container from the worker that has it. With
// follow it waits for the task to start and goes on with its later attempts,
// until the task has ended.
func (r *Router) Logs(ctx context.Context, workspace, task, container string, follow bool, fn func(fd int, p []byte) error) error {
	if task == "" {
		cs, _ := r.Containers(ctx, workspace)
		for _, c := range cs {
			if c.ContainerId == container {
				return r.log(ctx, mesh.PeerID(c.WorkerId), &peerv1.LogsRequest{ContainerId: container, Follow: follow}, fn)
			}
		}
		return fault.New(fault.NotFound, "container "+container+" is not running on any reachable node", "see 'beam container list', or give --task-id")
	}
	pause := time.NewTimer(0)
	defer pause.Stop()
	for read := uint32(0); ; { // the last attempt whose log was read
		info, err := r.Get(ctx, workspace, task)
		if err != nil {
			return err
		}
		over := info.EndedAt != nil
		if info.NodeId != "" && info.Attempt > read {
			err := r.log(ctx, mesh.PeerID(info.NodeId), &peerv1.LogsRequest{TaskId: task, Attempt: info.Attempt, Follow: follow}, fn)
			switch {
			case err == nil:
				read = info.Attempt
			case over || !follow || fault.CodeOf(err) != fault.NotFound:
				return err
			}
		}
		switch {
		case read > 0 && (over || !follow):
			return nil
		case over:
			return fault.New(fault.NotFound, "task "+task+" ended before it ran", "see 'beam explain "+task+"'")
		case !follow:
			return fault.New(fault.NotFound, "task "+task+" has not run yet: "+info.Waiting, "wait for its output with 'beam logs -f "+task+"'; 'beam explain "+task+"' shows why it waits")
		}
		pause.Reset(startLook)
		select {
		case <-pause.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// log streams one log from one worker to its end.
func (r *Router) log(ctx context.Context, at mesh.PeerID, req *peerv1.LogsRequest, fn func(fd int, p []byte) error) error {
	octx, cancel := context.WithTimeout(ctx, askLimit)
	s, err := r.Dialer.Open(octx, at, worker.LogsProtocol)
	cancel()
	if err != nil {
		return fault.Wrap(fault.Unreachable, err, "the node that has the log cannot be reached", "the log is kept there; ask again when it is back")
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	conn := wire.New(s)
	if err := conn.Write(req); err != nil {
		return err
	}
	for {
		c := new(peerv1.LogsChunk)
		if err := conn.Read(c); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("read log: %w", err)
		}
		if c.Error != "" {
			return fault.New(fault.NotFound, "the worker has no such log: "+c.Error, "logs are kept for 7 days")
		}
		if err := fn(int(c.Fd), c.Data); err != nil {
			return err
		}
	}
}

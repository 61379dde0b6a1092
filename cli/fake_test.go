package cli_test

import (
	"context"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	beammeshv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/beammesh/v1/beammeshv1connect"
	"github.com/beammesh/beammesh/proto/client/gatewaypb"
	"github.com/beammesh/beammesh/proto/client/gatewaypb/gatewaypbconnect"
	"github.com/beammesh/beammesh/proto/client/typespb"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/proto/fault/faultconnect"
)

// Tokens choose the mesh that a script sees.
const (
	tokenGood  = "good-0123456789"
	tokenEmpty = "empty-0123456789" // a mesh where nothing has happened yet
)

// fakeNode answers the API like a node of a three-node mesh on which a few
// tasks ran. It behaves: what is stopped stays stopped.
type fakeNode struct {
	beammeshv1connect.UnimplementedNodeServiceHandler

	mu         sync.Mutex
	tasks      []*beammeshv1.TaskInfo
	containers []*typespb.Container
	tokens     []*gatewaypb.Token
}

// fakeGateway is the same mesh behind the stock client's service.
type fakeGateway struct {
	gatewaypbconnect.UnimplementedGatewayServiceHandler
	f *fakeNode
}

// serveFake starts a node on a free port of the loopback.
func serveFake() (host, port string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", nil, err
	}
	f := newFakeNode()
	mux := http.NewServeMux()
	opts := connect.WithInterceptors(faultconnect.Interceptor(), auth{})
	mux.Handle(gatewaypbconnect.NewGatewayServiceHandler(fakeGateway{f: f}, opts))
	mux.Handle(beammeshv1connect.NewNodeServiceHandler(f, opts))
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: mux, Protocols: protocols, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l) // ends with ErrServerClosed
	}()
	host, port, err = net.SplitHostPort(l.Addr().String())
	return host, port, func() {
		_ = srv.Close()
		<-done
	}, err
}

// auth refuses tokens that this mesh did not issue.
type auth struct{}

func (auth) check(h http.Header) error {
	switch token := strings.TrimPrefix(h.Get("Authorization"), "Bearer "); token {
	case "":
		return fault.New(fault.Unauthorized, "no token was sent", "")
	case tokenGood, tokenEmpty:
		return nil
	case "read-only":
		return fault.New(fault.Forbidden, "this token may only read", "make one with `beam token create --scope run`")
	}
	return fault.New(fault.Expired, "the token has expired", "")
}

func (a auth) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if err := a.check(req.Header()); err != nil {
			return nil, faultconnect.Encode(err)
		}
		return next(ctx, req)
	}
}

func (auth) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (a auth) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := a.check(conn.RequestHeader()); err != nil {
			return faultconnect.Encode(err)
		}
		return next(ctx, conn)
	}
}

func empty(h http.Header) bool { return h.Get("Authorization") == "Bearer "+tokenEmpty }

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(-d)) }

func newFakeNode() *fakeNode {
	return &fakeNode{
		tasks: []*beammeshv1.TaskInfo{
			{Id: "task-3", Status: "PENDING", StubName: "train", StubId: "stub-2", WorkspaceId: "ws", OwnerName: "box1", OwnerId: "p1",
				CreatedAt: ago(90 * time.Second), Waiting: "a free H100: 2 of 2 are busy on box2", Headless: true},
			{Id: "task-2", Status: "RUNNING", StubName: "train", StubId: "stub-2", WorkspaceId: "ws", OwnerName: "box1", OwnerId: "p1",
				NodeName: "box2", NodeId: "p2", ContainerId: "container-2", Attempt: 2, CreatedAt: ago(10 * time.Minute), StartedAt: ago(4*time.Minute + 5*time.Second)},
			{Id: "task-1", Status: "COMPLETE", StubName: "square", StubId: "stub-1", WorkspaceId: "ws", OwnerName: "box1", OwnerId: "p1",
				NodeName: "box3", NodeId: "p3", ContainerId: "container-1", Attempt: 1,
				CreatedAt: ago(2 * time.Hour), StartedAt: ago(2*time.Hour - 300*time.Millisecond), EndedAt: ago(2*time.Hour - 1540*time.Millisecond)},
			{Id: "task-0", Status: "ERROR", StubName: "broken\x1b[31m\nname", StubId: "stub-0", WorkspaceId: "ws", OwnerName: "box3", OwnerId: "p3",
				NodeName: "box3", NodeId: "p3", ContainerId: "container-0", Attempt: 1,
				CreatedAt: ago(50 * time.Hour), StartedAt: ago(50 * time.Hour), EndedAt: ago(50*time.Hour - 20*time.Millisecond),
				Outcome: &beammeshv1.Outcome{Error: &beammeshv1.ErrorDetail{Code: "failed", Message: "ZeroDivisionError: division by zero", Hint: "see `beam logs task-0`"}}},
		},
		containers: []*typespb.Container{
			{ContainerId: "container-2", StubId: "stub-2", Status: "RUNNING", ScheduledAt: ago(5 * time.Minute), StartedAt: ago(4*time.Minute + 6*time.Second),
				WorkspaceId: "ws", MachineId: "p2"},
			{ContainerId: "container-3", StubId: "stub-1", Status: "STARTING", ScheduledAt: ago(2 * time.Second), WorkspaceId: "ws", MachineId: "p3"},
		},
		tokens: []*gatewaypb.Token{
			{TokenId: "tok-1", Key: "secret-1", Active: true, Reusable: true, TokenType: "workspace", CreatedAt: ago(3 * 24 * time.Hour)},
			{TokenId: "tok-2", Key: "secret-2", TokenType: "workspace", CreatedAt: ago(time.Hour)},
		},
	}
}

func (f *fakeNode) task(id string) (*beammeshv1.TaskInfo, error) {
	for _, t := range f.tasks {
		if t.Id == id {
			return t, nil
		}
	}
	return nil, fault.New(fault.NotFound, "no task "+id, "`beam task list` shows the latest")
}

func (f *fakeNode) ListTasks(_ context.Context, req *connect.Request[beammeshv1.ListTasksRequest]) (*connect.Response[beammeshv1.ListTasksResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	res := &beammeshv1.ListTasksResponse{}
	if empty(req.Header()) {
		return connect.NewResponse(res), nil
	}
	for _, t := range f.tasks {
		if (req.Msg.Status == "" || t.Status == req.Msg.Status) && len(res.Tasks) < int(req.Msg.Limit) {
			res.Tasks = append(res.Tasks, t)
		}
	}
	if req.Msg.Status == "ERROR" {
		res.MissingNodes = []string{"box4", "box5"}
	}
	return connect.NewResponse(res), nil
}

func (g fakeGateway) StopTasks(_ context.Context, req *connect.Request[gatewaypb.StopTasksRequest]) (*connect.Response[gatewaypb.StopTasksResponse], error) {
	g.f.mu.Lock()
	defer g.f.mu.Unlock()
	for _, id := range req.Msg.TaskIds {
		t, err := g.f.task(id)
		if err != nil {
			return nil, err
		}
		if t.Status == "COMPLETE" {
			return connect.NewResponse(&gatewaypb.StopTasksResponse{ErrMsg: "it has ended already"}), nil
		}
		t.Status, t.EndedAt, t.Waiting = "CANCELLED", timestamppb.New(now), ""
	}
	return connect.NewResponse(&gatewaypb.StopTasksResponse{Ok: true}), nil
}

func (g fakeGateway) ListContainers(_ context.Context, req *connect.Request[gatewaypb.ListContainersRequest]) (*connect.Response[gatewaypb.ListContainersResponse], error) {
	g.f.mu.Lock()
	defer g.f.mu.Unlock()
	res := &gatewaypb.ListContainersResponse{Ok: true}
	if !empty(req.Header()) {
		res.Containers = g.f.containers
	}
	return connect.NewResponse(res), nil
}

func (g fakeGateway) StopContainer(_ context.Context, req *connect.Request[gatewaypb.StopContainerRequest]) (*connect.Response[gatewaypb.StopContainerResponse], error) {
	g.f.mu.Lock()
	defer g.f.mu.Unlock()
	n := len(g.f.containers)
	g.f.containers = slices.DeleteFunc(g.f.containers, func(c *typespb.Container) bool { return c.ContainerId == req.Msg.ContainerId })
	if len(g.f.containers) == n {
		return nil, fault.New(fault.NotFound, "no container "+req.Msg.ContainerId, "")
	}
	return connect.NewResponse(&gatewaypb.StopContainerResponse{Ok: true}), nil
}

func (f *fakeNode) TaskLogs(ctx context.Context, req *connect.Request[beammeshv1.TaskLogsRequest], st *connect.ServerStream[beammeshv1.LogLine]) error {
	f.mu.Lock()
	id := req.Msg.TaskId
	if req.Msg.ContainerId == "container-1" {
		id = "task-1"
	}
	_, err := f.task(id)
	f.mu.Unlock()
	if err != nil {
		return err
	}
	all := []*beammeshv1.LogLine{
		{TaskId: id, Fd: 1, Data: []byte("epoch 1\n")},
		{TaskId: id, Fd: 2, Data: []byte("warning: slow disk\n")},
		{TaskId: id, Fd: 1, Data: []byte("epoch 2\n")},
	}
	if n := int(req.Msg.TailLines); n > 0 && n < len(all) {
		all = all[len(all)-n:]
	}
	if req.Msg.Follow {
		all = append(all, &beammeshv1.LogLine{TaskId: id, Fd: 1, Data: []byte("done\n")})
	}
	for _, l := range all {
		if err := st.Send(l); err != nil {
			return err
		}
	}
	if id == "task-3" && req.Msg.Follow { // it waits, and so does its log
		<-ctx.Done()
		return ctx.Err()
	}
	if id == "task-0" {
		return fault.New(fault.NodeLost, "box3 left before all of its log was read", "")
	}
	return nil
}

func (f *fakeNode) Explain(_ context.Context, req *connect.Request[beammeshv1.ExplainRequest]) (*connect.Response[beammeshv1.ExplainResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, err := f.task(req.Msg.TaskId)
	if err != nil {
		return nil, err
	}
	res := &beammeshv1.ExplainResponse{Task: t}
	switch t.Id {
	case "task-1":
		t.Outcome = &beammeshv1.Outcome{
			Warm:  false,
			Notes: []string{"asked for 8 cores, the largest node has 4"},
			Phases: []*beammeshv1.Phase{
				{Name: "queue", DurationMs: 1},
				{Name: "place", StartMs: 1, DurationMs: 12},
				{Name: "pull", StartMs: 13, DurationMs: 700, Detail: "61.2 MiB from box2"},
				{Name: "start", StartMs: 713, DurationMs: 120, Detail: "from the pool"},
				{Name: "import", StartMs: 833, DurationMs: 310},
				{Name: "run", StartMs: 1143, DurationMs: 390},
				{Name: "result", StartMs: 1533, DurationMs: 2},
			},
		}
		res.Attempts = []*beammeshv1.Attempt{{
			Attempt: 1, NodeName: "box3", NodeId: "p3", How: "asked", Rounds: 1,
			Candidates: []*beammeshv1.Candidate{
				{NodeName: "box3", Verdict: "chosen", Score: 1210, Terms: []string{"locality +1200 ms", "free cores +10 ms"}, Source: "hello"},
				{NodeName: "box1", Verdict: "bid", Score: 40, Terms: []string{"free cores +40 ms"}, Source: "hello"},
				{NodeName: "box2", Verdict: "refused", Reasons: []string{"memory: 2 GiB asked for, 1 GiB free"}, Source: "gossip"},
				{NodeName: "box4", Verdict: "not asked", Reasons: []string{"silent for 12 s"}, Source: "dht"},
			},
		}}
	case "task-2":
		res.Attempts = []*beammeshv1.Attempt{
			{Attempt: 1, NodeName: "box3", How: "asked", Rounds: 2, End: "box3 was lost: connection broken", Notes: []string{"does not use up retries"}},
			{Attempt: 2, NodeName: "box2", How: "pulled the open offer"},
		}
	}
	if len(req.Msg.Changes) > 0 {
		if req.Msg.Changes[0] == "colour=green" {
			return nil, fault.New(fault.Invalid, "\"colour\" cannot be changed: cpu, memory, disk, gpu, zone can", "such as --if gpu=any")
		}
		res.WhatIf = &beammeshv1.WhatIf{Demand: "1 core, " + strings.Join(req.Msg.Changes, ", "), Verdict: "would be placed on box2 now",
			Candidates: []*beammeshv1.Candidate{
				{NodeName: "box2", Verdict: "chosen", Score: 40, Terms: []string{"40ms: load 40ms"}, Source: "gossip"},
				{NodeName: "box1", Verdict: "refused", Reasons: []string{"has no GPU, asked for any GPU"}, Source: "hello"},
			}, Notes: []string{"the largest node that fits has 4 cores"}}
	}
	return connect.NewResponse(res), nil
}

func (g fakeGateway) ListTokens(_ context.Context, req *connect.Request[gatewaypb.ListTokensRequest]) (*connect.Response[gatewaypb.ListTokensResponse], error) {
	g.f.mu.Lock()
	defer g.f.mu.Unlock()
	res := &gatewaypb.ListTokensResponse{Ok: true}
	if !empty(req.Header()) {
		res.Tokens = g.f.tokens
	}
	return connect.NewResponse(res), nil
}

func (g fakeGateway) CreateToken(_ context.Context, req *connect.Request[gatewaypb.CreateTokenRequest]) (*connect.Response[gatewaypb.CreateTokenResponse], error) {
	if req.Msg.TokenType == "odd" {
		return connect.NewResponse(&gatewaypb.CreateTokenResponse{ErrMsg: "no token type odd"}), nil
	}
	return connect.NewResponse(&gatewaypb.CreateTokenResponse{Ok: true, Token: &gatewaypb.Token{TokenId: "tok-3", Key: "v4.public.full", Active: true}}), nil
}

func (f *fakeNode) CreateScopedToken(_ context.Context, req *connect.Request[beammeshv1.CreateScopedTokenRequest]) (*connect.Response[beammeshv1.CreateScopedTokenResponse], error) {
	return connect.NewResponse(&beammeshv1.CreateScopedTokenResponse{
		TokenId: "tok-4", Token: "v4.public." + strings.Join(req.Msg.Scopes, "+") + "." + (time.Duration(req.Msg.TtlSeconds) * time.Second).String(),
	}), nil
}

func (g fakeGateway) ToggleToken(_ context.Context, req *connect.Request[gatewaypb.ToggleTokenRequest]) (*connect.Response[gatewaypb.ToggleTokenResponse], error) {
	g.f.mu.Lock()
	defer g.f.mu.Unlock()
	for _, t := range g.f.tokens {
		if t.TokenId == req.Msg.TokenId {
			t.Active = !t.Active
			return connect.NewResponse(&gatewaypb.ToggleTokenResponse{Ok: true, Token: t}), nil
		}
	}
	return nil, fault.New(fault.NotFound, "no token "+req.Msg.TokenId, "")
}

func (g fakeGateway) DeleteToken(_ context.Context, req *connect.Request[gatewaypb.DeleteTokenRequest]) (*connect.Response[gatewaypb.DeleteTokenResponse], error) {
	g.f.mu.Lock()
	defer g.f.mu.Unlock()
	n := len(g.f.tokens)
	g.f.tokens = slices.DeleteFunc(g.f.tokens, func(t *gatewaypb.Token) bool { return t.TokenId == req.Msg.TokenId })
	if len(g.f.tokens) == n {
		return nil, fault.New(fault.NotFound, "no token "+req.Msg.TokenId, "")
	}
	return connect.NewResponse(&gatewaypb.DeleteTokenResponse{Ok: true}), nil
}

func (g fakeGateway) ExportWorkspaceConfig(context.Context, *connect.Request[gatewaypb.ExportWorkspaceConfigRequest]) (*connect.Response[gatewaypb.ExportWorkspaceConfigResponse], error) {
	return connect.NewResponse(&gatewaypb.ExportWorkspaceConfigResponse{
		GatewayGrpcHost: "box1", GatewayGrpcPort: 1993, GatewayHttpHost: "box 1;", GatewayHttpPort: 1994, WorkspaceId: "ws",
	}), nil
}

func nodes() []*beammeshv1.NodeInfo {
	const gib = 1 << 30
	return []*beammeshv1.NodeInfo{
		{Id: "p1", Name: "box1", Tier: "own", Version: "1.2.3", Self: true, State: "ready", Path: "self", Addrs: []string{"/ip4/10.0.0.1/udp/4001/quic-v1"},
			CpuMillis: 8000, CpuFreeMillis: 6500, MemoryBytes: 32 * gib, MemoryFreeBytes: 20 * gib, Worker: true, BootId: "b1"},
		{Id: "p2", Name: "box2", Tier: "own", Version: "1.2.3", State: "ready", Path: "direct", RttMs: 0.42, CpuMillis: 64000, CpuFreeMillis: 64000,
			MemoryBytes: 512 * gib, MemoryFreeBytes: 500 * gib, Worker: true, BootId: "b2",
			Gpus: []*beammeshv1.Gpu{{Id: "g0", Model: "H100", MemoryMib: 81559, Free: false}, {Id: "g1", Model: "H100", MemoryMib: 81559, Free: true},
				{Id: "s0", Model: "RTX4090", MemoryMib: 24564, Free: true, Simulated: true}}},
		{Id: "p3", Name: "box3", Tier: "invited", Version: "1.2.2", State: "unreachable", Path: "none", Reason: "no answer for 14 s", LastSeen: ago(14 * time.Second)},
	}
}

func (f *fakeNode) ListNodes(context.Context, *connect.Request[beammeshv1.ListNodesRequest]) (*connect.Response[beammeshv1.ListNodesResponse], error) {
	return connect.NewResponse(&beammeshv1.ListNodesResponse{Nodes: nodes()}), nil
}

func (f *fakeNode) Status(_ context.Context, req *connect.Request[beammeshv1.StatusRequest]) (*connect.Response[beammeshv1.StatusResponse], error) {
	res := &beammeshv1.StatusResponse{
		Node: nodes()[0], MeshId: "7f3k", Members: 3, Connected: 1, LedgerVoter: true, LedgerState: "voter", TasksOpen: 2, Containers: 2, Images: "2 ready, fetching image 1a2b3c4d: 57 %",
		Counters: map[string]int64{"blocks.bytes_in": 1 << 20, "blocks.corrupt": 0},
		Troubles: []*beammeshv1.Trouble{{Code: "clock_skew", Severity: "warning", Text: "the clock differs from box3's by 12 min", Hint: "switch time synchronisation on"}},
	}
	if empty(req.Header()) {
		res = &beammeshv1.StatusResponse{Node: &beammeshv1.NodeInfo{Id: "p9", Name: "laptop", State: "ready", Version: "1.2.3"}, MeshId: "7f3k", Members: 1, LedgerState: "following box1"}
	}
	return connect.NewResponse(res), nil
}

func (f *fakeNode) Invite(_ context.Context, req *connect.Request[beammeshv1.InviteRequest]) (*connect.Response[beammeshv1.InviteResponse], error) {
	return connect.NewResponse(&beammeshv1.InviteResponse{
		Ticket: "beam1" + req.Msg.Tier, Expires: timestamppb.New(now.Add(time.Duration(req.Msg.TtlSeconds) * time.Second)),
	}), nil
}

func (f *fakeNode) Drain(_ context.Context, req *connect.Request[beammeshv1.DrainRequest], st *connect.ServerStream[beammeshv1.DrainEvent]) error {
	if !req.Msg.Drain {
		return st.Send(&beammeshv1.DrainEvent{Text: "taking work again", Done: true})
	}
	if err := st.Send(&beammeshv1.DrainEvent{Text: "waiting for 1 task", Running: 1}); err != nil {
		return err
	}
	if req.Msg.TimeoutSeconds == 1 {
		return fault.New(fault.Conflict, "another drain is under way", "")
	}
	return st.Send(&beammeshv1.DrainEvent{Text: "drained", Done: true})
}

func (f *fakeNode) Leave(_ context.Context, req *connect.Request[beammeshv1.LeaveRequest], st *connect.ServerStream[beammeshv1.DrainEvent]) error {
	if err := st.Send(&beammeshv1.DrainEvent{Text: "drained"}); err != nil || empty(req.Header()) {
		return err
	}
	return st.Send(&beammeshv1.DrainEvent{Text: "left the mesh", Done: true})
}

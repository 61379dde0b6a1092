package tasks_test

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/meshtest"
	"github.com/beammesh/beammesh/node/owner"
	"github.com/beammesh/beammesh/node/tasks"
	"github.com/beammesh/beammesh/node/wire"
	"github.com/beammesh/beammesh/node/worker"
	"github.com/beammesh/beammesh/node/worker/workertest"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) {
	workertest.Main()
	os.Exit(m.Run())
}

// stored is a journal of tasks that have ended.
type stored struct {
	mu    sync.Mutex
	tasks []owner.StoredTask
}

func (s *stored) Submitted(context.Context, owner.TaskRecord) error            { return nil }
func (s *stored) Attempted(context.Context, string, owner.AttemptRecord) error { return nil }
func (s *stored) Ended(context.Context, string, owner.EndRecord) error         { return nil }
func (s *stored) Open() ([]owner.StoredTask, error)                            { return nil, nil }
func (s *stored) List(ws string, limit int) (out []owner.StoredTask, err error) {
	for _, t := range s.tasks {
		if t.Workspace == ws {
			out = append(out, t)
		}
	}
	return out[:min(limit, len(out))], nil
}
func (s *stored) Get(id string) (owner.StoredTask, bool, error) {
	for _, t := range s.tasks {
		if t.ID == id {
			return t, true, nil
		}
	}
	return owner.StoredTask{}, false, nil
}

type peer struct {
	*tasks.Router
	node    *meshtest.Node
	journal *stored
	worker  *workertest.Worker
}

func newPeer(t *testing.T, w *meshtest.Network, name string, works bool) *peer {
	t.Helper()
	n := w.Join(name)
	p := &peer{node: n, journal: &stored{}}
	began := time.Now()
	o := owner.New(owner.Config{Self: n.PeerID(), Name: name, Epoch: 1, Clock: func() time.Duration { return time.Since(began) }, Dialer: n,
		Journal: p.journal, Log: slog.New(slog.DiscardHandler), NodeName: func(id mesh.PeerID) string { return string(id) },
		Send: func(scheduler.NodeID, any, []byte, func(error)) {}, Publish: func(market.OpenOffer) {}})
	p.Router = &tasks.Router{Self: n.PeerID(), Dialer: n, Members: n, Owner: o, Log: slog.New(slog.DiscardHandler)}
	n.Handle(tasks.Protocol, p.Serve)
	t.Cleanup(func() { o.Close(); _ = n.Close() })
	if works {
		p.worker = workertest.New(t, n, workertest.Options{})
		p.Worker = p.worker.Worker
	}
	n.Start()
	return p
}

// ended puts a task that has ended into the peer's journal.
func (p *peer) ended(t *testing.T, ws string, at time.Time, node string) string {
	t.Helper()
	id := owner.NewTaskID(string(p.node.PeerID()))
	b, err := proto.Marshal(&beamv1.Outcome{TaskId: id, Status: owner.Complete, NodeId: node, Attempt: 1})
	if err != nil {
		t.Fatal(err)
	}
	p.journal.tasks = append(p.journal.tasks, owner.StoredTask{
		TaskRecord: owner.TaskRecord{ID: id, Workspace: ws, StubID: "stub", CreatedUnixMicro: at.UnixMicro()},
		End:        &owner.EndRecord{Status: owner.Complete, Outcome: b, Node: node, Attempt: 1, EndedUnixMicro: at.UnixMicro()}})
	return id
}

func TestAnyNodeAnswers(t *testing.T) {
	w := meshtest.NewNetwork()
	a, b := newPeer(t, w, "a", true), newPeer(t, w, "b", false)
	id := a.ended(t, "ws", time.Now(), "box")
	for _, p := range []*peer{a, b} {
		info, err := p.Get(t.Context(), "ws", id)
		if err != nil || info.Id != id || info.Status != owner.Complete || info.OwnerName != "a" {
			t.Errorf("%v, %v", info, err)
		}
		if r, err := p.Explain(t.Context(), "ws", id, nil); err != nil || r.Task.Id != id {
			t.Errorf("%v, %v", r, err)
		}
		if _, err := p.Get(t.Context(), "another", id); fault.CodeOf(err) != fault.NotFound {
			t.Errorf("another workspace: %v", err)
		}
		if err := p.Stop(t.Context(), "another", id); fault.CodeOf(err) != fault.NotFound {
			t.Errorf("another workspace stops: %v", err)
		}
		for _, bad := range []string{"", "x", owner.NewTaskID("nobody")} {
			if _, err := p.Get(t.Context(), "ws", bad); fault.CodeOf(err) != fault.NotFound {
				t.Errorf("%q: %v", bad, err)
			}
		}
	}
	w.Cut(a.node, b.node)
	if _, err := b.Get(t.Context(), "ws", id); fault.CodeOf(err) != fault.Unreachable && fault.CodeOf(err) != fault.NotFound {
		t.Errorf("the owner is away: %v", err)
	}
}

func TestListOfAllNodes(t *testing.T) {
	w := meshtest.NewNetwork()
	var peers []*peer
	for _, n := range []string{"a", "b", "c", "d"} {
		peers = append(peers, newPeer(t, w, n, false))
	}
	now := time.Now()
	var want []string
	for i := range 8 {
		want = append(want, peers[i%4].ended(t, "ws", now.Add(-time.Duration(i)*time.Second), "box"))
		peers[i%4].ended(t, "another", now, "box")
	}
	l, err := peers[0].List(t.Context(), "ws", "", "", 5)
	if err != nil || len(l.MissingNodes) != 0 {
		t.Fatalf("%v, %v", l, err)
	}
	var got []string
	for _, x := range l.Tasks {
		got = append(got, x.Id)
	}
	if !slices.Equal(got, want[:5]) {
		t.Errorf("got %q\nwant %q", got, want[:5])
	}
	if l, err := peers[0].List(t.Context(), "ws", owner.Error, "", 5); err != nil || len(l.Tasks) != 0 {
		t.Errorf("by status: %v, %v", l, err)
	}
	w.Cut(peers[0].node, peers[1].node)
	w.Cut(peers[0].node, peers[2].node)
	l, err = peers[0].List(t.Context(), "ws", "", "", 0)
	if err != nil || !slices.Equal(l.MissingNodes, []string{"b", "c"}) || len(l.Tasks) != 4 {
		t.Errorf("missing %q, %d tasks, %v", l.GetMissingNodes(), len(l.GetTasks()), err)
	}
}

func TestContainersAndLogs(t *testing.T) {
	w := meshtest.NewNetwork()
	a, b := newPeer(t, w, "a", true), newPeer(t, w, "b", false)
	order, err := proto.Marshal(workertest.Order("ok:f"))
	if err != nil {
		t.Fatal(err)
	}
	a.worker.Step(market.Award{Owner: market.OwnerID{Peer: scheduler.NodeID(b.node.PeerID()), Epoch: 1}, Offer: "f", Lease: "f-1",
		Fence: market.Fence{Epoch: 1, Attempt: 1}, Demand: scheduler.Demand{CPUMillis: 1, MemoryMiB: 1}, LeaseFor: 15 * time.Second}, order)
	s, err := b.node.Open(t.Context(), a.node.PeerID(), worker.LeaseProtocol)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Reset() }()
	conn := wire.New(s)
	id := b.ended(t, "ws", time.Now(), string(a.node.PeerID()))
	for _, m := range []*peerv1.LeaseDown{
		{What: &peerv1.LeaseDown_Attach{Attach: &peerv1.Attach{LeaseId: "f-1", Fence: 1, FromEvent: 1}}},
		{What: &peerv1.LeaseDown_Call{Call: &peerv1.Call{TaskId: id, Attempt: 1, Args: []byte("print 2")}}},
	} {
		if err := conn.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	_ = s.SetReadDeadline(time.Now().Add(workertest.Patience))
	for {
		up := new(peerv1.LeaseUp)
		if err := conn.Read(up); err != nil {
			t.Fatal(err)
		}
		if up.GetEnded() != nil {
			break
		}
	}
	for _, p := range []*peer{a, b} {
		cs, missing := p.Containers(t.Context(), "ws")
		if len(cs) != 1 || cs[0].ContainerId != "f-1" || cs[0].Status != "RUNNING" || cs[0].WorkerId != string(a.node.PeerID()) || len(missing) != 0 {
			t.Errorf("%v, missing %q", cs, missing)
		}
		if cs, _ := p.Containers(t.Context(), "another"); len(cs) != 0 {
			t.Errorf("another workspace sees %v", cs)
		}
	}
	logs := func(ws, task, container string) (string, error) {
		var text strings.Builder
		err := b.Logs(t.Context(), ws, task, container, false, func(_ int, p []byte) error { text.Write(p); return nil })
		return text.String(), err
	}
	if got, err := logs("ws", id, ""); err != nil || got != "line 0\nline 1\n" {
		t.Errorf("of the task: %q, %v", got, err)
	}
	for _, c := range [][3]string{{"another", id, ""}, {"ws", "nobody", ""}, {"ws", "", "x-1"}, {"another", "", "f-1"}} {
		if got, err := logs(c[0], c[1], c[2]); fault.CodeOf(err) != fault.NotFound || got != "" {
			t.Errorf("%v: %q, %v", c, got, err)
		}
	}
	if err := b.StopContainer(t.Context(), "another", "f-1"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("another workspace stops it: %v", err)
	}
	if err := b.StopContainer(t.Context(), "ws", "f-1"); err != nil {
		t.Error(err)
	}
	for {
		up := new(peerv1.LeaseUp)
		if err := conn.Read(up); err != nil {
			t.Fatal(err)
		}
		if g := up.GetGone(); g != nil {
			if !strings.Contains(g.Message, "stopped by the user") {
				t.Errorf("gone as %v", g)
			}
			break
		}
	}
}

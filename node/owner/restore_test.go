package owner_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh/meshtest"
	"github.com/beammesh/beammesh/node/owner"
	"github.com/beammesh/beammesh/node/stub"
	"github.com/beammesh/beammesh/node/wire"
	"github.com/beammesh/beammesh/node/worker"
	"github.com/beammesh/beammesh/node/worker/workertest"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
)

func (f funcNotify) Log(context.Context, string, int, []byte) {}
func (f funcNotify) Done(_ string, o *beamv1.Outcome)         { f(o) }

// peek reads what a worker still keeps for the owner of a task.
func (c *cluster) peek(t testing.TB, id string) (ends []string) {
	t.Helper()
	st, _, err := c.journal.Get(id)
	if err != nil || st.Attempt == nil {
		t.Fatalf("task %s has no attempt: %v", id, err)
	}
	var to *meshtest.Node
	for _, b := range c.boxes {
		if string(b.Mesh.PeerID()) == st.Attempt.Node {
			to = b.Mesh
		}
	}
	s, err := c.node.Open(t.Context(), to.PeerID(), worker.LeaseProtocol)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Reset() }()
	conn := wire.New(s)
	if err := conn.Write(&peerv1.LeaseDown{What: &peerv1.LeaseDown_Attach{Attach: &peerv1.Attach{LeaseId: st.Attempt.Lease, Fence: 1, FromEvent: 1}}}); err != nil {
		t.Fatal(err)
	}
	_ = s.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // nothing says that there is no more
	for {
		up := new(peerv1.LeaseUp)
		if conn.Read(up) != nil {
			return ends
		}
		if e := up.GetEnded(); e != nil {
			ends = append(ends, e.TaskId)
		}
	}
}

// mustBeKept waits until the worker keeps a task's end, or does no longer.
func (c *cluster) mustBeKept(t testing.TB, id string, want bool) {
	t.Helper()
	deadline := time.Now().Add(workertest.Patience)
	for slices.Contains(c.peek(t, id), id) != want {
		if want || time.Now().After(deadline) {
			t.Fatalf("the worker keeps the end: %v, want %v", !want, want)
		}
	}
}

// breakStreams breaks what is open to a box, without its going down.
func (c *cluster) breakStreams(name string) {
	c.t.Helper()
	b := c.boxes[name]
	c.net.BreakStreams(c.node, b.Mesh)
}

func TestRestartOfTheOwner(t *testing.T) {
	c := newCluster(t, "box")
	g := workertest.NewGate(t)
	running, cl := c.submit("ok-stub", string(g.Args()), headless)
	cl.printed(t, "at the gate")
	attached, acl := c.submit("ok-stub", "hold")
	acl.printed(t, "holding")
	c.stop()
	g.Open(t, "through") // while nobody owns it
	if err := c.start().Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	o, err := c.ended(running)
	if err != nil || o.Status != owner.Complete || string(o.Result) != "through" || o.Attempt != 1 {
		t.Errorf("headless: %v, %v", o, err)
	}
	o, err = c.ended(attached)
	if err != nil || o.Status != owner.Cancelled || !strings.Contains(o.Error.Hint, "headless") {
		t.Errorf("attached: %v, %v", o, err)
	}
	if got := g.Runs(t); len(got) != 1 {
		t.Errorf("the headless task ran as %q", got)
	}
	if n, _ := c.journal.endsOf(running); n != 1 {
		t.Errorf("%d ends of it are journalled", n)
	}
	// The container that was taken over is a warm one.
	_, cl = c.submit("ok-stub", "echo x")
	if o := cl.wait(t); o.Status != owner.Complete || !o.Warm {
		t.Errorf("after a restart: %v", o)
	}
	c.mustBeKept(t, running, false)
}

// Several tasks at several containers go on where they are, not at each other's.
func TestRestartWithManyHeadlessTasks(t *testing.T) {
	c := newCluster(t, "one", "two")
	c.plans.set("ok-many", stub.Config{KeepWarmSec: -1, CPUMillis: 1000, MemoryMiB: 64, MaxContainers: 8})
	const n = 6
	gates := map[string]*workertest.Gate{}
	var clients []*client
	for range n {
		g := workertest.NewGate(t)
		id, cl := c.submit("ok-many", string(g.Args()), headless)
		gates[id] = g
		clients = append(clients, cl)
	}
	for _, cl := range clients {
		cl.printed(t, "at the gate")
	}
	for life := range 3 {
		c.stop()
		if err := c.start().Restore(t.Context()); err != nil {
			t.Fatal(err)
		}
		if life < 2 {
			continue
		}
		for id, g := range gates {
			g.Open(t, id)
		}
	}
	for id, g := range gates {
		o, err := c.ended(id)
		if err != nil || string(o.GetResult()) != id || o.Attempt != 1 {
			t.Errorf("%s: %v, %v", id, o, err)
		}
		if runs := g.Runs(t); len(runs) != 1 {
			t.Errorf("%s ran as %q", id, runs)
		}
		if k, _ := c.journal.endsOf(id); k != 1 {
			t.Errorf("%s has %d ends in the journal", id, k)
		}
	}
}

// A task that the journal has at a container which never got it runs there.
func TestRestartBeforeTheCallWasSent(t *testing.T) {
	c := newCluster(t, "box")
	_, cl := c.submit("ok-stub", "echo warm", headless)
	cl.wait(t)
	block, there := make(chan struct{}), make(chan struct{}, 1)
	c.journal.hook(func() {
		c.journal.attempted = func(id string, a owner.AttemptRecord) error {
			c.journal.mu.Lock()
			c.journal.tasks[id].Attempt = &a
			c.journal.mu.Unlock()
			there <- struct{}{}
			<-block
			return errors.New("killed")
		}
	})
	g := workertest.NewGate(t)
	id, _ := c.submit("ok-stub", string(g.Args()), headless)
	<-there
	// The old life ends here; its Close waits for the journal.
	old := c.current.Swap(nil)
	closed := make(chan struct{})
	go func() { old.Close(); close(closed) }()
	c.journal.hook(func() { c.journal.attempted = nil })
	if err := c.start().Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.Open(t, "late")
	if o, err := c.ended(id); err != nil || string(o.GetResult()) != "late" {
		t.Errorf("%v, %v", o, err)
	}
	close(block)
	<-closed
	if runs := g.Runs(t); len(runs) != 1 {
		t.Errorf("it ran as %q", runs)
	}
}

func TestRestartAfterTheWorkerIsGone(t *testing.T) {
	c := newCluster(t, "one", "two")
	g := workertest.NewGate(t)
	id, cl := c.submit("ok-stub", string(g.Args()), headless)
	cl.printed(t, "at the gate")
	info, err := c.owner().Get("ws", id)
	if err != nil {
		t.Fatal(err)
	}
	c.stop()
	gone := c.boxes[info.NodeName]
	gone.Close()
	_ = gone.Mesh.Close()
	c.mu.Lock()
	for n := range c.adverts {
		if string(n) == string(gone.Mesh.PeerID()) {
			delete(c.adverts, n)
		}
	}
	c.mu.Unlock()
	if err := c.start().Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitRuns(t, g, 2)
	g.OpenAll(t, "again")
	o, err := c.ended(id)
	if err != nil || string(o.GetResult()) != "again" || o.Attempt != 2 || o.NodeName == info.NodeName {
		t.Errorf("%v, %v", o, err)
	}
}

// What cannot be planned at once, since the ledger does not answer, is taken up
// when a node comes.
func TestRestartWithoutTheLedger(t *testing.T) {
	c := newCluster(t, "box")
	g := workertest.NewGate(t)
	id, cl := c.submit("ok-stub", string(g.Args()), headless)
	cl.printed(t, "at the gate")
	c.stop()
	c.plans.failWith(errors.New("the founder cannot be reached"))
	if err := c.start().Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.plans.failWith(nil)
	c.box("founder", workertest.Options{})
	g.Open(t, "kept")
	deadline := time.Now().Add(workertest.Patience)
	for {
		if n, st := c.journal.endsOf(id); n == 1 && st == owner.Complete {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it was not taken up")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if runs := g.Runs(t); len(runs) != 1 {
		t.Errorf("it ran as %q", runs)
	}
}

func TestRestoreOfDamagedTask(t *testing.T) {
	c := newCluster(t, "box")
	c.stop()
	c.journal.tasks["bad"] = &owner.StoredTask{TaskRecord: owner.TaskRecord{ID: "bad", Workspace: "ws", StubID: "ok-stub", Headless: true}, Damaged: fmt.Errorf("blob is damaged")}
	c.journal.order = append(c.journal.order, "bad")
	if err := c.start().Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	o, err := c.ended("bad")
	if err != nil || o.Status != owner.Error || !strings.Contains(o.Error.Message, "blob is damaged") {
		t.Errorf("%v, %v", o, err)
	}
}

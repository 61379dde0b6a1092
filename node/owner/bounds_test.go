package owner_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/node/owner"
	"github.com/beammesh/beammesh/node/stub"
	"github.com/beammesh/beammesh/node/wire"
	"github.com/beammesh/beammesh/node/worker/workertest"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/proto/fault"
)

func TestLargeResultsAreReadFromTheJournal(t *testing.T) {
	c := newCluster(t, "box")
	id, cl := c.submit("ok-stub", "big 1000000")
	if o := cl.wait(t); len(o.Result) != 1_000_000 {
		t.Fatalf("the client got %d bytes", len(o.Result))
	}
	for range 2 {
		if o, err := c.ended(id); err != nil || len(o.GetResult()) != 1_000_000 {
			t.Errorf("asked again: %d bytes, %v", len(o.GetResult()), err)
		}
		if i, err := c.owner().Get("ws", id); err != nil || len(i.GetOutcome().GetResult()) != 1_000_000 {
			t.Errorf("info: %v", err)
		}
	}
	l, err := c.owner().List("ws", owner.Complete, "ok-stub", 10)
	if err != nil || len(l) != 1 || l[0].Outcome == nil || l[0].Outcome.Result != nil {
		t.Errorf("list %v, %v", l, err)
	}
}

// A headless call that is cancelled while the journal still writes where it will
// run never begins.
func TestCancelBeforeACallIsSent(t *testing.T) {
	c := newCluster(t, "box")
	_, cl := c.submit("ok-stub", "echo warm")
	warm := cl.wait(t)
	there, release := make(chan struct{}), make(chan struct{})
	c.journal.hook(func() {
		c.journal.attempted = func(string, owner.AttemptRecord) error {
			close(there)
			<-release
			return nil
		}
	})
	g := workertest.NewGate(t)
	id, _ := c.submit("ok-stub", string(g.Args()), headless)
	<-there
	if err := c.owner().Cancel(id, "no"); err != nil {
		t.Fatal(err)
	}
	if o, err := c.ended(id); err != nil || o.Status != owner.Cancelled {
		t.Errorf("%v, %v", o, err)
	}
	c.journal.hook(func() { c.journal.attempted = nil })
	close(release)
	// Its place is free, and nothing of it comes to the container.
	_, cl = c.submit("ok-stub", "echo x")
	if o := cl.wait(t); o.Status != owner.Complete || o.ContainerId != warm.ContainerId {
		t.Errorf("after it: %v", o)
	}
	if r := g.Runs(t); len(r) != 0 {
		t.Errorf("it ran: %q", r)
	}
}

// A client that leaves while the journal writes its task leaves nothing open.
func TestClientLeavesDuringSubmit(t *testing.T) {
	c := newCluster(t, "box")
	ctx, cancel := context.WithCancel(t.Context())
	c.journal.hook(func() {
		c.journal.submitted = func(owner.TaskRecord) error { cancel(); return nil }
	})
	id, err := c.owner().Submit(ctx, owner.Request{Workspace: "ws", StubID: "ok-stub", Args: []byte("echo x")})
	if err != nil {
		t.Fatal(err) // the caller then forgets it, as any other
	}
	c.owner().Forget(id)
	if o, err := c.ended(id); err != nil || !owner.Ended(o.Status) {
		t.Errorf("%v, %v", o, err)
	}
}

func TestCloseWithOpenTasks(t *testing.T) {
	c := newCluster(t, "box")
	var ids []string
	for range 3 {
		id, cl := c.submit("ok-stub", "flood", headless)
		cl.printed(t, "xxx")
		ids = append(ids, id)
	}
	o := c.owner()
	c.stop()
	if _, err := o.Submit(t.Context(), owner.Request{Workspace: "ws", StubID: "ok-stub"}); fault.CodeOf(err) != fault.Unreachable {
		t.Errorf("a closed owner answers %v", err)
	}
	if info, err := o.Get("ws", ids[0]); err != nil || info.Outcome != nil {
		t.Errorf("a task ended with the owner: %v, %v", info, err)
	}
}

func TestContainersAreLetGo(t *testing.T) {
	c := newCluster(t, "box")
	c.plans.set("ok-cold", stub.Config{KeepWarmSec: 0})
	_, cl := c.submit("ok-cold", "echo x")
	o := cl.wait(t)
	b := c.boxes["box"]
	deadline := time.Now().Add(workertest.Patience)
	for {
		// Gone at the worker, and with the last acknowledgement forgotten there.
		_, kept := b.Order(o.ContainerId)
		if len(b.Engine.List()) == 0 && len(b.Leases()) == 0 && !kept {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("containers %v, leases %v, kept %v", b.Engine.List(), b.Leases(), kept)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if leases, offers := c.owner().Held(); leases != 0 || offers != 0 {
		t.Errorf("the owner holds %d leases and %d offers", leases, offers)
	}
	// The next call starts another one.
	_, cl = c.submit("ok-cold", "echo y")
	if o2 := cl.wait(t); o2.Status != owner.Complete || o2.ContainerId == o.ContainerId {
		t.Errorf("%v", o2)
	}
}

// A container that was released while its node cannot be reached is forgotten.
func TestReleaseOfAnUnreachableContainer(t *testing.T) {
	if testing.Short() {
		t.Skip("waits half a minute")
	}
	c := newCluster(t, "box")
	c.plans.set("ok-brief", stub.Config{KeepWarmSec: 1})
	_, cl := c.submit("ok-brief", "echo x")
	cl.wait(t)
	// Only the streams fail: nobody says that the node is down.
	refuse := errors.New("no route")
	c.dialer.refuse.Store(&refuse)
	c.breakStreams("box")
	deadline := time.Now().Add(2 * workertest.Patience)
	for {
		leases, offers := c.owner().Held()
		if leases == 0 && offers == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d leases and %d offers are held", leases, offers)
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.dialer.refuse.Store(nil)
}

// rogue lets a test speak to the owner in a worker's place.
type rogue struct {
	mesh.Dialer
	tap    atomic.Pointer[func(mesh.Stream) mesh.Stream]
	refuse atomic.Pointer[error]
}

func (r *rogue) Open(ctx context.Context, to mesh.PeerID, protocol string) (mesh.Stream, error) {
	if err := r.refuse.Load(); err != nil {
		return nil, *err
	}
	s, err := r.Dialer.Open(ctx, to, protocol)
	if f := r.tap.Load(); err == nil && f != nil {
		return (*f)(s), nil
	}
	return s, err
}

// injected adds messages to what a stream's reader gets.
type injected struct {
	mesh.Stream
	extra chan []byte
	rest  []byte
}

func (i *injected) Read(b []byte) (int, error) {
	if len(i.rest) == 0 {
		select {
		case i.rest = <-i.extra:
		default:
		}
	}
	if len(i.rest) > 0 {
		n := copy(b, i.rest)
		i.rest = i.rest[n:]
		return n, nil
	}
	return i.Stream.Read(b)
}

// A worker that speaks of calls that it was not given changes nothing.
func TestWorkerSpeaksOfOthersCalls(t *testing.T) {
	c := newCluster(t, "box", "liar")
	g := workertest.NewGate(t)
	c.plans.set("ok-victim", stub.Config{KeepWarmSec: -1, CPUMillis: 3000, MemoryMiB: 64})
	victim, vcl := c.submit("ok-victim", string(g.Args()))
	vcl.printed(t, "at the gate")
	lies := &injected{extra: make(chan []byte, 1)}
	var raw rawMessages
	conn := wire.New(&raw)
	for i, m := range []*peerv1.LeaseUp{
		{What: &peerv1.LeaseUp_Ready{Ready: &peerv1.Ready{ContainerId: "x"}}},
		{What: &peerv1.LeaseUp_Started{Started: &peerv1.CallStarted{TaskId: victim, Attempt: 9}}},
		{What: &peerv1.LeaseUp_Output{Output: &peerv1.Output{TaskId: victim, Attempt: 1, Fd: 1, Data: []byte("forged\n")}}},
		{What: &peerv1.LeaseUp_Ended{Ended: &peerv1.CallEnded{TaskId: victim, Attempt: 1, Kind: peerv1.CallEnded_OK, Payload: []byte("forged")}}},
		{What: &peerv1.LeaseUp_Ended{Ended: &peerv1.CallEnded{TaskId: "nobody", Attempt: 1, Kind: peerv1.CallEnded_OK}}},
	} {
		m.Event = uint64(i + 1)
		if err := conn.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	lies.extra <- raw
	tap := func(s mesh.Stream) mesh.Stream { lies.Stream = s; return lies }
	c.dialer.tap.Store(&tap)
	_, cl := c.submit("ok-other", "echo x")
	// Its own events were overtaken by the forged numbers; a stream that breaks
	// is resumed, so only the forged ones count here.
	_ = cl
	deadline := time.Now().Add(workertest.Patience)
	for len(lies.extra) > 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	g.Open(t, "true")
	o := vcl.wait(t)
	if string(o.Result) != "true" || strings.Contains(vcl.text(), "forged") {
		t.Errorf("outcome %v, output %q", o, vcl.text())
	}
}

// rawMessages collects what is written.
type rawMessages []byte

func (r *rawMessages) Write(b []byte) (int, error) { *r = append(*r, b...); return len(b), nil }
func (r *rawMessages) Read([]byte) (int, error)    { return 0, nil }

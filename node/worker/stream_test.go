package worker_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/meshtest"
	"github.com/beammesh/beammesh/node/wire"
	"github.com/beammesh/beammesh/node/worker"
	"github.com/beammesh/beammesh/node/worker/workertest"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
)

func TestStreamIsResumed(t *testing.T) {
	b := newBench(t, workertest.Options{})
	lease := b.grant(workertest.Order("ok:f"), false)
	s := b.attach(lease, 1)
	g := workertest.NewGate(t)
	s.call("t", 1, string(g.Args()))
	up, _ := s.until("started", func(u *peerv1.LeaseUp) bool { return u.GetStarted() != nil })
	s.printed("at the gate")
	s.close()
	g.Open(t, "kept")
	// From the event after the last one that was read; nothing was acknowledged.
	s = b.attach(lease, up.Event+1)
	next := up.Event + 1
	for {
		u := s.next()
		if u == nil || u.Event != next {
			t.Fatalf("event is %v, want number %d", u, next)
		}
		next++
		if e := u.GetEnded(); e != nil {
			if e.Kind != peerv1.CallEnded_OK || string(e.Payload) != "kept" {
				t.Errorf("ended as %v", e)
			}
			break
		}
	}
	// What was acknowledged is not sent again, whatever is asked for.
	s.ack(next - 1)
	s.call("t2", 1, "echo 2")
	s.ended("t2")
	s.close()
	s = b.attach(lease, 1)
	if u := s.next(); u == nil || u.Event != next {
		t.Errorf("the first event is %v, want number %d", u, next)
	}
}

func TestRepeatedCallsRunOnce(t *testing.T) {
	b := newBench(t, workertest.Options{})
	lease := b.grant(workertest.Order("ok:f"), false)
	g := workertest.NewGate(t)
	s := b.attach(lease, 1)
	again := func() { // all that an owner does not know the end of
		s.call("runs", 3, string(g.Args()))
		s.call("waits", 1, string(g.Args()))
	}
	again()
	s.printed("at the gate")
	s.close()
	s = b.attach(lease, 1)
	again()
	again()
	g.Open(t, "1")
	s.ended("runs")
	s.call("runs", 3, string(g.Args())) // its end is not acknowledged
	g.Open(t, "2")
	s.ended("waits")
	s.call("mark", 1, "echo done")
	e, before := s.endedAfter("mark")
	if e.Kind != peerv1.CallEnded_OK {
		t.Errorf("mark ended as %v", e)
	}
	for _, u := range before {
		if u.GetEnded() != nil {
			t.Errorf("a second end: %v", u)
		}
	}
	if got := g.Runs(t); !slices.Equal(got, []string{"runs 3", "waits 1"}) {
		t.Errorf("calls ran as %q", got)
	}
}

// The end of a call and a repeat of the call meet at all times.
func TestRepeatedCallRacesWithItsEnd(t *testing.T) {
	b := newBench(t, workertest.Options{})
	s := b.attach(b.grant(workertest.Order("ok:f"), false), 1)
	g := workertest.NewGate(t)
	for i := range 50 {
		task := fmt.Sprint("t", i)
		s.call(task, 1, string(g.Args()))
		s.started(task)
		var wg sync.WaitGroup
		wg.Go(func() { g.Open(t, task) })
		for range 20 {
			s.call(task, 1, string(g.Args()))
		}
		wg.Wait()
		s.ended(task)
	}
	s.call("mark", 1, "echo x")
	s.ended("mark")
	if n := len(g.Runs(t)); n != 50 {
		t.Errorf("50 calls ran %d times", n)
	}
}

func TestStrangersAndOldFencesGetNothing(t *testing.T) {
	b := newBench(t, workertest.Options{})
	lease := b.grant(workertest.Order("ok:f"), false)
	ask := func(from *meshtest.Node, lease string, fence uint64) *peerv1.LeaseGone {
		s, err := from.Open(context.Background(), b.Mesh.PeerID(), worker.LeaseProtocol)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		conn := wire.New(s)
		if err := conn.Write(&peerv1.LeaseDown{What: &peerv1.LeaseDown_Attach{Attach: &peerv1.Attach{LeaseId: lease, Fence: fence, FromEvent: 1}}}); err != nil {
			t.Fatal(err)
		}
		up := new(peerv1.LeaseUp)
		if err := conn.Read(up); err != nil {
			t.Fatal(err)
		}
		return up.GetGone()
	}
	other := b.net.Join("other")
	other.Start()
	t.Cleanup(func() { _ = other.Close() })
	for what, g := range map[string]*peerv1.LeaseGone{
		"another peer": ask(other, lease, 1), "another fence": ask(b.owner, lease, 2), "another lease": ask(b.owner, "x-1", 1),
	} {
		if g.GetReason() != "unknown" {
			t.Errorf("%s was told %v", what, g)
		}
	}
	// The first message must be Attach.
	s, err := b.owner.Open(context.Background(), b.Mesh.PeerID(), worker.LeaseProtocol)
	if err != nil {
		t.Fatal(err)
	}
	conn := wire.New(s)
	if err := conn.Write(&peerv1.LeaseDown{What: &peerv1.LeaseDown_Ack{Ack: 1}}); err != nil {
		t.Fatal(err)
	}
	if err := conn.Read(new(peerv1.LeaseUp)); err == nil {
		t.Error("a stream without Attach was answered")
	}
}

func TestOwnerThatSendsTooMuch(t *testing.T) {
	b := newBench(t, workertest.Options{})
	lease := b.grant(workertest.Order("ok:f"), false)
	s := b.attach(lease, 1)
	s.call("hold", 1, "hold")
	s.printed("holding")
	for i := range 65 { // 64 may wait
		s.call(fmt.Sprint("t", i), 1, "echo")
	}
	for u := s.next(); u != nil; u = s.next() {
		if u.GetEnded() != nil {
			t.Errorf("unexpected %v", u)
		}
	}
	// The lease itself lives on.
	s = b.attach(lease, 1)
	s.say(&peerv1.LeaseDown{What: &peerv1.LeaseDown_Cancel{Cancel: &peerv1.Cancel{TaskId: "hold", Attempt: 1, Kill: true}}})
	if e := s.ended("t63"); e.Kind != peerv1.CallEnded_OK {
		t.Errorf("the last call ended as %v", e)
	}
}

func TestDetachedOutputIsBounded(t *testing.T) {
	b := newBench(t, workertest.Options{})
	lease := b.grant(workertest.Order("ok:f"), true)
	s := b.attach(lease, 1)
	s.ready()
	s.call("t", 1, "flood")
	s.printed("xxx")
	s.close()
	// Nobody reads: the program goes on, and its log file grows to its bound.
	if err := readLog(t, b, &peerv1.LogsRequest{TaskId: "t", Attempt: 1, Follow: true}, func(n int) bool { return n > 7<<20 }); err != nil {
		t.Fatal(err)
	}
	s = b.attach(lease, 1)
	s.say(&peerv1.LeaseDown{What: &peerv1.LeaseDown_Cancel{Cancel: &peerv1.Cancel{TaskId: "t", Attempt: 1, Kill: true}}})
	e, before := s.endedAfter("t")
	if e.Kind != peerv1.CallEnded_CANCELLED {
		t.Errorf("ended as %v", e)
	}
	if len(output(before)) == 0 {
		t.Error("nothing of the output was kept")
	}
}

// An owner that stays attached and does not acknowledge slows the program down,
// and ending the call works all the same.
func TestOwnerThatDoesNotAcknowledge(t *testing.T) {
	b := newBench(t, workertest.Options{})
	lease := b.grant(workertest.Order("ok:f"), false)
	s := b.attach(lease, 1)
	s.ready()
	s.call("t", 1, "flood")
	got := 0
	for got < 60<<20 {
		u := s.next()
		if u == nil {
			t.Fatal("the stream ended")
		}
		got += len(u.GetOutput().GetData())
		if got > 80<<20 {
			t.Fatalf("%d bytes came without an acknowledgement", got)
		}
	}
	s.say(&peerv1.LeaseDown{What: &peerv1.LeaseDown_Cancel{Cancel: &peerv1.Cancel{TaskId: "t", Attempt: 1, Kill: true}}})
	if e := s.ended("t"); e.Kind != peerv1.CallEnded_CANCELLED {
		t.Errorf("ended as %v", e)
	}
	// The next call waits for room.
	s.call("next", 1, "echo x")
	s.ack(1 << 40)
	if e := s.ended("next"); e.Kind != peerv1.CallEnded_OK {
		t.Errorf("the next call ended as %v", e)
	}
}

func TestEndedLeaseIsKeptUntilAcknowledged(t *testing.T) {
	b := newBench(t, workertest.Options{})
	lease := b.grant(workertest.Order("ok:f"), false)
	s := b.attach(lease, 1)
	s.call("t", 1, "echo result")
	s.ended("t")
	s.close()
	b.release(lease)
	s = b.attach(lease, 1)
	if e := s.ended("t"); string(e.Payload) != "result" {
		t.Errorf("the result is %v", e)
	}
	up, _ := s.until("gone", func(u *peerv1.LeaseUp) bool { return u.GetGone() != nil })
	if g := up.GetGone(); g.Reason != "released" {
		t.Errorf("gone is %v", g)
	}
	if _, ok := b.Order(lease); !ok {
		t.Error("the lease was forgotten before it was acknowledged")
	}
	s.ack(up.Event)
	if u := s.next(); u != nil {
		t.Errorf("%v came after gone", u)
	}
	_ = s.s.CloseWrite()
	// The worker reads the acknowledgement some time before it ends the stream.
	waitFor(t, "the worker forgets the lease", func() bool { _, ok := b.Order(lease); return !ok })
}

func TestEndedLeasesAreBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	b := newBench(t, workertest.Options{Pull: func(context.Context, []string) error { return fmt.Errorf("no such root") }})
	var first, last string
	for i := range 300 {
		last = b.grant(workertest.Order("ok:f"), false)
		if i == 0 {
			first = last
		}
		await[market.Ended](b)
		b.Step(market.EndedAck{Owner: b.ownerID(), Lease: market.LeaseID(last)}, nil)
	}
	if _, ok := b.Order(first); ok {
		t.Error("300 ended leases are kept")
	}
	if _, ok := b.Order(last); !ok {
		t.Error("the last ended lease is not kept")
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	b := newBench(t, workertest.Options{})
	var leases []string
	var streams []*stream
	for i := range 3 {
		l := b.grant(workertest.Order("ok:f"), i == 0)
		s := b.attach(l, 1)
		s.call("t", 1, "hold")
		leases, streams = append(leases, l), append(streams, s)
	}
	var pids []int
	for _, s := range streams {
		p, err := strconv.Atoi(strings.Fields(s.printed("holding"))[1])
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, p)
	}
	b.Close()
	for i, s := range streams {
		if g := s.gone(); g.Reason != string(market.EndDrained) {
			t.Errorf("%s is gone as %v", leases[i], g)
		}
	}
	for _, p := range pids {
		if !workertest.Gone(p) {
			t.Errorf("process %d is left", p)
		}
	}
	if l := b.Engine.List(); len(l) != 0 {
		t.Errorf("containers %v are left", l)
	}
	// An award that comes too late starts nothing.
	b.Step(market.Award{Owner: b.ownerID(), Offer: "late", Lease: "late-1", Fence: market.Fence{Epoch: 1, Attempt: 1},
		Demand: scheduler.Demand{CPUMillis: 1, MemoryMiB: 1}, LeaseFor: time.Second}, nil)
	if l := b.Engine.List(); len(l) != 0 {
		t.Errorf("containers %v were started after Close", l)
	}
}

func TestStopByUser(t *testing.T) {
	b := newBench(t, workertest.Options{})
	lease := b.grant(workertest.Order("ok:f"), false)
	s := b.attach(lease, 1)
	s.ready()
	if b.Stop(lease, "another workspace") {
		t.Error("stopped for another workspace")
	}
	if b.Stop("nothing-1", "ws") {
		t.Error("stopped what is not there")
	}
	if !b.Stop(lease, "ws") {
		t.Error("was not stopped")
	}
	if g := s.gone(); g.Reason != "exited" || !strings.Contains(g.Message, "stopped by the user") {
		t.Errorf("gone is %v", g)
	}
}

func TestLogsOfACall(t *testing.T) {
	b := newBench(t, workertest.Options{})
	lease := b.grant(workertest.Order("ok:f"), false)
	s := b.attach(lease, 1)
	s.call("t", 1, "print 3")
	s.ended("t")
	s.call("t", 2, "both")
	s.ended("t")
	get := func(r *peerv1.LogsRequest) string {
		var text strings.Builder
		if err := readLogText(t, b, r, func(c *peerv1.LogsChunk) bool { text.Write(c.Data); return false }); err != nil {
			text.WriteString("error: " + err.Error())
		}
		return text.String()
	}
	if got := get(&peerv1.LogsRequest{TaskId: "t", Attempt: 1}); got != "line 0\nline 1\nline 2\n" {
		t.Errorf("first attempt: %q", got)
	}
	for _, r := range []*peerv1.LogsRequest{{TaskId: "t"}, {ContainerId: lease}, {TaskId: "t", Follow: true}} {
		if got := get(r); !strings.Contains(got, "out\n") || !strings.Contains(got, "err\n") {
			t.Errorf("%v: %q", r, got)
		}
	}
	for _, r := range []*peerv1.LogsRequest{{TaskId: "nobody"}, {TaskId: "../../etc/passwd"}, {TaskId: ""}} {
		if got := get(r); !strings.HasPrefix(got, "error: ") {
			t.Errorf("%v: %q", r, got)
		}
	}
	// Following ends with the call.
	g := workertest.NewGate(t)
	s.call("live", 1, string(g.Args()))
	s.printed("at the gate")
	done := make(chan string)
	go func() { done <- get(&peerv1.LogsRequest{TaskId: "live", Follow: true}) }()
	g.Open(t, "")
	select {
	case got := <-done:
		if got != "at the gate\n" {
			t.Errorf("followed %q", got)
		}
	case <-time.After(workertest.Patience):
		t.Error("following did not end with the call")
	}
	if _, err := os.Stat(b.LogDir + "/live.1.log"); err != nil {
		t.Error(err)
	}
}

// readLog reads a log until enough says so or it ends.
func readLog(t *testing.T, b *bench, r *peerv1.LogsRequest, enough func(bytes int) bool) error {
	n := 0
	return readLogText(t, b, r, func(c *peerv1.LogsChunk) bool {
		n += len(c.Data)
		return enough(n)
	})
}

func readLogText(t *testing.T, b *bench, r *peerv1.LogsRequest, enough func(*peerv1.LogsChunk) bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), workertest.Patience)
	defer cancel()
	s, err := b.owner.Open(ctx, b.Mesh.PeerID(), worker.LogsProtocol)
	if err != nil {
		return err
	}
	defer func(s mesh.Stream) { _ = s.Reset() }(s)
	_ = s.SetDeadline(time.Now().Add(workertest.Patience))
	conn := wire.New(s)
	if err := conn.Write(r); err != nil {
		return err
	}
	for {
		c := new(peerv1.LogsChunk)
		if err := conn.Read(c); err != nil {
			if err.Error() == "EOF" {
				return nil
			}
			return err
		}
		if c.Error != "" {
			return fmt.Errorf("%s", c.Error)
		}
		if enough(c) {
			return nil
		}
	}
}

// waitFor looks again and again for something that no event tells.
func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(workertest.Patience)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

package worker_test

import (
	"context"
	"fmt"
	"os"
	"strings"
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
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) {
	workertest.Main()
	os.Exit(m.Run())
}

// bench is an owner's node and a worker.
type bench struct {
	*workertest.Worker
	t     testing.TB
	net   *meshtest.Network
	owner *meshtest.Node
	sent  chan any
	seq   int
}

func newBench(t testing.TB, o workertest.Options) *bench {
	t.Helper()
	workertest.NoLeaks(t)
	b := &bench{t: t, net: meshtest.NewNetwork(), sent: make(chan any, 1024)}
	o.Send = func(_ scheduler.NodeID, m any) { b.sent <- m }
	b.owner = b.net.Join("owner")
	box := b.net.Join("box")
	t.Cleanup(func() { _ = box.Close() })
	t.Cleanup(func() { _ = b.owner.Close() })
	b.Worker = workertest.New(t, box, o)
	b.owner.Start()
	box.Start()
	return b
}

// grant starts a lease and gives its id.
func (b *bench) grant(order *peerv1.WorkOrder, headless bool) string {
	b.t.Helper()
	b.seq++
	raw, err := proto.Marshal(order)
	if err != nil {
		b.t.Fatal(err)
	}
	offer := fmt.Sprintf("function-%d", b.seq)
	lease := offer + "-1"
	b.Step(market.Award{Owner: b.ownerID(), Offer: market.OfferID(offer), Lease: market.LeaseID(lease), Fence: market.Fence{Epoch: 1, Attempt: 1},
		Demand: scheduler.Demand{CPUMillis: 100, MemoryMiB: 64}, LeaseFor: 15 * time.Second, Headless: headless}, raw)
	r := await[market.AwardReply](b)
	if !r.OK {
		b.t.Fatalf("award refused: %+v", r.Refusals)
	}
	return lease
}

func (b *bench) ownerID() market.OwnerID {
	return market.OwnerID{Peer: scheduler.NodeID(b.owner.PeerID()), Epoch: 1}
}

func (b *bench) release(lease string) {
	offer := lease[:strings.LastIndex(lease, "-")]
	b.Step(market.Release{Owner: b.ownerID(), Offer: market.OfferID(offer), Lease: market.LeaseID(lease), Fence: market.Fence{Epoch: 1, Attempt: 1}}, nil)
}

// await gives the next message of one kind that the worker sends.
func await[M any](b *bench) M {
	b.t.Helper()
	limit := time.After(workertest.Patience)
	for {
		select {
		case m := <-b.sent:
			if v, ok := m.(M); ok {
				return v
			}
		case <-limit:
			var none M
			b.t.Fatalf("no %T was sent", none)
		}
	}
}

// stream is the owner's end of a lease, as plain as can be.
type stream struct {
	t    testing.TB
	s    mesh.Stream
	conn *wire.Conn
	ups  chan *peerv1.LeaseUp
}

func (b *bench) attach(lease string, from uint64) *stream {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), workertest.Patience)
	defer cancel()
	s, err := b.owner.Open(ctx, b.Mesh.PeerID(), worker.LeaseProtocol)
	if err != nil {
		b.t.Fatal(err)
	}
	st := &stream{t: b.t, s: s, conn: wire.New(s), ups: make(chan *peerv1.LeaseUp, 1<<16)}
	b.t.Cleanup(st.close)
	st.say(&peerv1.LeaseDown{What: &peerv1.LeaseDown_Attach{Attach: &peerv1.Attach{LeaseId: lease, Fence: 1, FromEvent: from}}})
	go func() {
		defer close(st.ups)
		for {
			up := new(peerv1.LeaseUp)
			if st.conn.Read(up) != nil {
				return
			}
			st.ups <- up
		}
	}()
	return st
}

func (s *stream) close() { _ = s.s.Reset() }

func (s *stream) say(m *peerv1.LeaseDown) {
	s.t.Helper()
	if err := s.conn.Write(m); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stream) call(task string, attempt uint32, args string) { s.callFor(task, attempt, args, 0) }

func (s *stream) callFor(task string, attempt uint32, args string, limit time.Duration) {
	s.t.Helper()
	s.say(&peerv1.LeaseDown{What: &peerv1.LeaseDown_Call{Call: &peerv1.Call{TaskId: task, Attempt: attempt, Args: []byte(args),
		Format: "pickle", TimeoutMs: limit.Milliseconds()}}})
}

func (s *stream) ack(n uint64) {
	s.t.Helper()
	s.say(&peerv1.LeaseDown{What: &peerv1.LeaseDown_Ack{Ack: n}})
}

// next gives the next event, nil when the stream is over.
func (s *stream) next() *peerv1.LeaseUp {
	s.t.Helper()
	select {
	case up := <-s.ups:
		return up
	case <-time.After(workertest.Patience):
		s.t.Fatal("no event came")
		return nil
	}
}

// until reads to the event that match takes, and gives all before it too.
func (s *stream) until(what string, match func(*peerv1.LeaseUp) bool) (last *peerv1.LeaseUp, before []*peerv1.LeaseUp) {
	s.t.Helper()
	for {
		up := s.next()
		if up == nil {
			s.t.Fatalf("the stream ended before %s; got %v", what, before)
		}
		if match(up) {
			return up, before
		}
		before = append(before, up)
	}
}

func (s *stream) ready() {
	s.t.Helper()
	s.until("ready", func(u *peerv1.LeaseUp) bool { return u.GetReady() != nil })
}

func (s *stream) started(task string) {
	s.t.Helper()
	s.until("started "+task, func(u *peerv1.LeaseUp) bool { return u.GetStarted().GetTaskId() == task })
}

func (s *stream) ended(task string) *peerv1.CallEnded {
	s.t.Helper()
	e, _ := s.endedAfter(task)
	return e
}

func (s *stream) endedAfter(task string) (*peerv1.CallEnded, []*peerv1.LeaseUp) {
	s.t.Helper()
	up, before := s.until("the end of "+task, func(u *peerv1.LeaseUp) bool { return u.GetEnded().GetTaskId() == task })
	return up.GetEnded(), before
}

func (s *stream) gone() *peerv1.LeaseGone {
	s.t.Helper()
	up, _ := s.until("gone", func(u *peerv1.LeaseUp) bool { return u.GetGone() != nil })
	return up.GetGone()
}

// printed reads until the program has printed text.
func (s *stream) printed(text string) string {
	s.t.Helper()
	var all strings.Builder
	s.until(text, func(u *peerv1.LeaseUp) bool {
		all.Write(u.GetOutput().GetData())
		return strings.Contains(all.String(), text) && strings.HasSuffix(all.String(), "\n")
	})
	return all.String()
}

func output(ups []*peerv1.LeaseUp) string {
	var b strings.Builder
	for _, u := range ups {
		b.Write(u.GetOutput().GetData())
	}
	return b.String()
}

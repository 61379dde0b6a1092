package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/meshtest"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
)

const patience = time.Minute

func message(n int) *peerv1.MarketMessage {
	return &peerv1.MarketMessage{What: &peerv1.MarketMessage_Ask{Ask: &peerv1.Ask{Offer: "o", Round: int64(n)}}}
}

type inbox struct {
	ch chan *peerv1.MarketMessage
}

func (i *inbox) take(_ mesh.PeerID, m *peerv1.MarketMessage) { i.ch <- m }

func (i *inbox) next(t *testing.T) int {
	t.Helper()
	select {
	case m := <-i.ch:
		return int(m.GetAsk().GetRound())
	case <-time.After(patience):
		t.Fatal("nothing came")
		return 0
	}
}

func newLinks(t *testing.T, n *meshtest.Node, d mesh.Dialer) (*Links, *inbox) {
	t.Helper()
	in := &inbox{make(chan *peerv1.MarketMessage, 1<<16)}
	l := New(n.PeerID(), d, in.take, slog.New(slog.DiscardHandler))
	n.Handle(Protocol, l.Serve)
	t.Cleanup(func() { _ = n.Close() })
	t.Cleanup(func() { _ = l.Close() })
	return l, in
}

func noLeaks(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for end := time.Now().Add(patience); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
				return
			}
		}
	})
}

func TestOrderIsKept(t *testing.T) {
	noLeaks(t)
	w := meshtest.NewNetwork()
	a, b := w.Join("a"), w.Join("b")
	la, own := newLinks(t, a, a)
	_, in := newLinks(t, b, b)
	a.Start()
	b.Start()
	for round := range 20 {
		for i := range maxQueued / 2 {
			la.Send(b.PeerID(), message(i), func(err error) { t.Errorf("message %d: %v", i, err) })
			la.Send(a.PeerID(), message(i), func(err error) { t.Errorf("own message %d: %v", i, err) })
		}
		for i := range maxQueued / 2 {
			if n := in.next(t); n != i {
				t.Fatalf("round %d: message %d comes as %d", round, i, n)
			}
			if n := own.next(t); n != i {
				t.Fatalf("round %d: own message %d comes as %d", round, i, n)
			}
		}
	}
}

// What cannot be sent is told, once each, and nothing else is.
func TestUnreachablePeer(t *testing.T) {
	noLeaks(t)
	w := meshtest.NewNetwork()
	a, b := w.Join("a"), w.Join("b")
	la, _ := newLinks(t, a, a)
	a.Start()
	const n = 3 * maxQueued
	var told [n]atomic.Int32
	var wg sync.WaitGroup
	wg.Add(n)
	for i := range n {
		la.Send(b.PeerID(), message(i), func(err error) {
			if err == nil || told[i].Add(1) != 1 {
				t.Errorf("message %d was told %d times, %v", i, told[i].Load(), err)
				return
			}
			wg.Done()
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("not all failures were told")
	}
	_ = b.Close()
}

// A peer that does not take anything holds its own queue only.
func TestQueueIsBounded(t *testing.T) {
	noLeaks(t)
	w := meshtest.NewNetwork()
	a, b, slow := w.Join("a"), w.Join("b"), w.Join("slow")
	blocked := &blockingDialer{Dialer: a, slow: slow.PeerID(), there: make(chan struct{}, 1)}
	la, _ := newLinks(t, a, blocked)
	_, in := newLinks(t, b, b)
	a.Start()
	b.Start()
	var full, other atomic.Int32
	var wg sync.WaitGroup
	failed := func(err error) {
		if errors.Is(err, ErrQueueFull) {
			full.Add(1)
			wg.Done()
		} else {
			other.Add(1)
		}
	}
	la.Send(slow.PeerID(), message(0), failed)
	<-blocked.there // it is being opened: the queue behind it is empty
	for i := range maxQueued {
		la.Send(slow.PeerID(), message(i), failed)
	}
	wg.Add(10)
	for i := range 10 {
		la.Send(slow.PeerID(), message(i), failed)
	}
	wg.Wait()
	la.Send(b.PeerID(), message(7), nil)
	if n := in.next(t); n != 7 {
		t.Errorf("the other peer got %d", n)
	}
	if full.Load() != 10 {
		t.Errorf("%d messages were over the bound, want 10", full.Load())
	}
	_ = slow.Close()
}

type blockingDialer struct {
	mesh.Dialer
	slow  mesh.PeerID
	there chan struct{}
}

func (d *blockingDialer) Open(ctx context.Context, to mesh.PeerID, p string) (mesh.Stream, error) {
	if to == d.slow {
		d.there <- struct{}{}
		<-ctx.Done()
		return nil, fmt.Errorf("%w: %w", mesh.ErrUnreachable, ctx.Err())
	}
	return d.Dialer.Open(ctx, to, p)
}

// After a broken stream the next message opens a new one.
func TestStreamBreaks(t *testing.T) {
	w := meshtest.NewNetwork()
	a, b := w.Join("a"), w.Join("b")
	la, _ := newLinks(t, a, a)
	_, in := newLinks(t, b, b)
	a.Start()
	b.Start()
	la.Send(b.PeerID(), message(1), nil)
	if n := in.next(t); n != 1 {
		t.Fatalf("got %d", n)
	}
	w.BreakStreams(a, b)
	// The first one after the break may be lost with its stream.
	for i := 2; ; i++ {
		la.Send(b.PeerID(), message(i), nil)
		select {
		case <-in.ch:
			return
		case <-time.After(20 * time.Millisecond):
			if i > 2000 {
				t.Fatal("nothing comes any more")
			}
		}
	}
}

func TestAfterClose(t *testing.T) {
	w := meshtest.NewNetwork()
	a := w.Join("a")
	la, _ := newLinks(t, a, a)
	a.Start()
	if err := la.Close(); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	la.Send("anybody", message(1), func(err error) { got <- err })
	select {
	case err := <-got:
		if !errors.Is(err, mesh.ErrClosed) {
			t.Errorf("got %v", err)
		}
	case <-time.After(patience):
		t.Error("not told")
	}
	la.Send("anybody", message(1), nil)
	if err := la.Close(); err != nil {
		t.Error(err)
	}
}

// Bytes that are no message end the stream and nothing else.
func TestGarbage(t *testing.T) {
	w := meshtest.NewNetwork()
	a, b := w.Join("a"), w.Join("b")
	la, _ := newLinks(t, a, a)
	_, in := newLinks(t, b, b)
	a.Start()
	b.Start()
	for _, garbage := range [][]byte{{0x02, 0xff, 0xff}, {0xff, 0xff, 0xff, 0xff, 0x7f}, {0x05, 1}} {
		s, err := a.Open(t.Context(), b.PeerID(), Protocol)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write(garbage); err != nil {
			t.Fatal(err)
		}
		_ = s.CloseWrite()
		_ = s.SetReadDeadline(time.Now().Add(patience))
		if n, err := s.Read(make([]byte, 1)); err == nil {
			t.Errorf("%x was answered with %d bytes", garbage, n)
		}
	}
	la.Send(b.PeerID(), message(3), nil)
	if n := in.next(t); n != 3 {
		t.Errorf("got %d", n)
	}
}

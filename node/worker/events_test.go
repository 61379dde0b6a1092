package worker

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
)

func outputOf(n int) *peerv1.LeaseUp {
	return &peerv1.LeaseUp{What: &peerv1.LeaseUp_Output{Output: &peerv1.Output{TaskId: "t", Data: bytes.Repeat([]byte("x"), n)}}}
}

func endOf(task string) *peerv1.LeaseUp {
	return &peerv1.LeaseUp{What: &peerv1.LeaseUp_Ended{Ended: &peerv1.CallEnded{TaskId: task, Attempt: 1, Kind: peerv1.CallEnded_OK}}}
}

func TestEventLogNumbersAndAcks(t *testing.T) {
	l := newEventLog()
	for i := range 5 {
		l.add(endOf(fmt.Sprint(i)))
	}
	for _, c := range []struct{ ack, from, first, n uint64 }{
		{0, 0, 1, 5}, {0, 3, 3, 3}, {2, 1, 3, 3}, {1, 1, 3, 3}, {4, 0, 5, 1},
	} {
		l.ack(c.ack)
		evs, ok := l.next(t.Context(), c.from)
		if !ok || uint64(len(evs)) != c.n || evs[0].Event != c.first {
			t.Errorf("after ack %d, from %d: %d events from %v", c.ack, c.from, len(evs), evs[0].Event)
		}
	}
	if l.hasEnd("1", 1) || !l.hasEnd("4", 1) || l.hasEnd("4", 2) {
		t.Error("ends are not known as they should")
	}
	l.ack(1 << 60) // beyond the last is all
	if l.size() != 0 {
		t.Errorf("%d bytes are kept of nothing", l.size())
	}
	l.close()
	l.add(endOf("late"))
	if _, ok := l.next(t.Context(), 6); ok {
		t.Error("a closed log goes on")
	}
	if over, _ := l.drained(); !over {
		t.Error("not drained")
	}
}

func TestEventLogOutputIsBounded(t *testing.T) {
	l := newEventLog()
	for range 100 { // nobody is attached: it drops and never waits
		l.addOutput(t.Context(), outputOf(1<<20))
	}
	if n := l.size(); n > maxDetachedLogs {
		t.Errorf("%d bytes are kept without a reader", n)
	}
	l.attach(+1)
	for l.size() < maxUnacked-(2<<20) {
		l.addOutput(t.Context(), outputOf(1<<20))
	}
	l.addOutput(t.Context(), outputOf(1<<20))
	// The next one waits: for an acknowledgement, for the reader to leave, for
	// its context.
	wait := func(what string, free func()) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan struct{})
		before := l.size()
		go func() { defer close(done); l.addOutput(ctx, outputOf(2<<20)) }()
		select {
		case <-done:
			t.Fatalf("%s: did not wait at %d bytes", what, before)
		case <-time.After(20 * time.Millisecond):
		}
		if free == nil {
			cancel()
		} else {
			free()
		}
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatalf("%s: waits on", what)
		}
	}
	wait("context", nil)
	wait("reader leaves", func() { l.attach(-1) })
	l.attach(+1)
	wait("acknowledgement", func() { l.ack(10) })
	l.close()
}

func TestEventLogIsCompleteForReaders(t *testing.T) {
	l := newEventLog()
	const n = 2000
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range n {
				l.add(endOf(fmt.Sprint(w, "-", i)))
			}
		})
	}
	go func() { wg.Wait(); l.close() }()
	seen, from := map[string]bool{}, uint64(1)
	for {
		evs, ok := l.next(t.Context(), from)
		if !ok {
			break
		}
		for _, e := range evs {
			if e.Event != from {
				t.Fatalf("event %d comes as %d", from, e.Event)
			}
			from++
			seen[e.GetEnded().TaskId] = true
		}
		l.ack(from - 1)
	}
	if len(seen) != 4*n {
		t.Errorf("%d events of %d came", len(seen), 4*n)
	}
}

package worker

import (
	"context"
	"sync"

	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"google.golang.org/protobuf/proto"
)

const (
	// maxUnacked bounds what a lease keeps for its owner. A result may be
	// 16 MiB, so a few of them and their logs fit.
	maxUnacked = 64 << 20
	// maxDetachedLogs bounds log output kept while no owner reads: beyond it
	// only the log file on this node has the lines.
	maxDetachedLogs = 4 << 20
	// maxEvents bounds the number of unacknowledged events: an owner that sends
	// on and on without acknowledging is not one of ours.
	maxEvents = 1 << 20
)

// eventLog is a lease's outbox: numbered events, kept until acknowledged.
type eventLog struct {
	mu       sync.Mutex
	first    uint64 // number of events[0]
	events   []*peerv1.LeaseUp
	bytes    int
	attached int // streams reading now
	closed   bool
	wake     chan struct{} // closed and replaced on every change
	dropped  int64         // log bytes not kept, since no owner read them
}

func newEventLog() *eventLog {
	return &eventLog{first: 1, wake: make(chan struct{})}
}

func (l *eventLog) changedLocked() {
	close(l.wake)
	l.wake = make(chan struct{})
}

// add appends an event that must not be lost: it never blocks and never drops.
// What it can hold is bounded by the calls a lease may have in flight, because
// the next call begins only when there is room again.
func (l *eventLog) add(ev *peerv1.LeaseUp) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addLocked(ev)
}

func (l *eventLog) addLocked(ev *peerv1.LeaseUp) {
	if l.closed {
		return
	}
	ev.Event = l.first + uint64(len(l.events))
	l.events = append(l.events, ev)
	l.bytes += proto.Size(ev)
	l.changedLocked()
}

// addOutput appends log output. With a reader attached it waits for room, which
// slows the program down; without one it drops what is over the bound.
func (l *eventLog) addOutput(ctx context.Context, ev *peerv1.LeaseUp) {
	size := proto.Size(ev)
	for {
		l.mu.Lock()
		switch {
		case l.closed:
			l.mu.Unlock()
			return
		case l.attached == 0 && l.bytes+size > maxDetachedLogs:
			l.dropped += int64(size)
			l.mu.Unlock()
			return
		case l.bytes+size <= maxUnacked:
			l.addLocked(ev)
			l.mu.Unlock()
			return
		}
		wake := l.wake
		l.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
}

// room waits until less than the bound is unacknowledged.
func (l *eventLog) room(ctx context.Context) {
	for {
		l.mu.Lock()
		full, wake := l.bytes >= maxUnacked && !l.closed, l.wake
		l.mu.Unlock()
		if !full {
			return
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
}

// full tells whether the owner must acknowledge before it may say more.
func (l *eventLog) full() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.events) >= maxEvents
}

// size is what is kept now.
func (l *eventLog) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}

// hasEnd tells whether the end of a call is among the events that are kept.
func (l *eventLog) hasEnd(task string, attempt uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ev := range l.events {
		if e := ev.GetEnded(); e != nil && e.TaskId == task && e.Attempt == attempt && e.Kind != peerv1.CallEnded_RECALLED {
			return true
		}
	}
	return false
}

// ack forgets all events up to and including n.
func (l *eventLog) ack(n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.events) > 0 && l.first <= n {
		l.bytes -= proto.Size(l.events[0])
		l.events[0] = nil
		l.events = l.events[1:]
		l.first++
	}
	l.changedLocked()
}

// next gives the events from number from on, waiting until there is at least
// one. ok is false when the log is closed and read to its end, or ctx is over.
func (l *eventLog) next(ctx context.Context, from uint64) (evs []*peerv1.LeaseUp, ok bool) {
	for {
		l.mu.Lock()
		if from < l.first {
			from = l.first
		}
		if i := from - l.first; i < uint64(len(l.events)) {
			evs = append(evs, l.events[i:]...)
			l.mu.Unlock()
			return evs, true
		}
		closed, wake := l.closed, l.wake
		l.mu.Unlock()
		if closed {
			return nil, false
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, false
		}
	}
}

// close ends the log after its last event; what is unacknowledged stays.
func (l *eventLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.changedLocked()
}

// drained tells whether the log is closed and everything was acknowledged, and
// gives a channel that closes on the next change.
func (l *eventLog) drained() (bool, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed && len(l.events) == 0, l.wake
}

func (l *eventLog) attach(delta int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attached += delta
	l.changedLocked()
}

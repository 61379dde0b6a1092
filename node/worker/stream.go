package worker

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/node/wire"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"google.golang.org/protobuf/proto"
)

// LeaseProtocol carries calls to a lease and events back.
const LeaseProtocol = "lease/1"

// LogsProtocol reads the log of an attempt.
const LogsProtocol = "logs/1"

// attachLimit bounds the time until a new stream has said which lease it wants.
const attachLimit = 10 * time.Second

// maxEventBatch bounds the messages written with one flush.
const maxEventBatch = 256

// ServeLease is the mesh handler of LeaseProtocol.
func (w *Worker) ServeLease(ctx context.Context, s mesh.Stream) {
	defer s.Close()
	conn := wire.New(s)
	var first peerv1.LeaseDown
	_ = s.SetReadDeadline(time.Now().Add(attachLimit))
	if err := conn.Read(&first); err != nil || first.GetAttach() == nil {
		_ = s.Reset()
		return
	}
	_ = s.SetReadDeadline(time.Time{})
	at := first.GetAttach()
	l := w.lookup(at.LeaseId)
	if l == nil || l.owner != string(s.Peer()) || l.fence != at.Fence {
		// Either it ended and was acknowledged, or it was never granted to this peer.
		_ = conn.Write(&peerv1.LeaseUp{What: &peerv1.LeaseUp_Gone{Gone: &peerv1.LeaseGone{
			Reason: "unknown", Message: "the worker has no such lease"}}})
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.out.attach(+1)
	defer l.out.attach(-1)
	go func() {
		// The reader ends when the stream does, which ends the writer too.
		defer cancel()
		if err := l.readDown(conn); err != nil && !errors.Is(err, io.EOF) {
			w.log.Debug("lease stream ended", "lease", l.id, "err", err)
		}
	}()
	from := at.FromEvent
	for {
		evs, ok := l.out.next(ctx, from)
		if !ok {
			break
		}
		for len(evs) > 0 {
			n := min(len(evs), maxEventBatch)
			batch := make([]proto.Message, n)
			for i, ev := range evs[:n] {
				batch[i] = ev
			}
			if err := conn.Write(batch...); err != nil {
				_ = s.Reset()
				return
			}
			from = evs[n-1].Event + 1
			evs = evs[n:]
		}
	}
	if ctx.Err() != nil {
		_ = s.Reset()
		return
	}
	// The log is closed and written: wait for the owner's last acknowledgement.
	_ = s.CloseWrite()
	<-ctx.Done()
}

// errGreedy ends the stream of an owner that sends more than it may. Ours never
// does: its window is a few calls, and it acknowledges what it reads.
var errGreedy = errors.New("too many calls, or too few acknowledgements")

// readDown carries out what the owner says until the stream ends.
func (l *lease) readDown(conn *wire.Conn) error {
	for {
		var m peerv1.LeaseDown
		if err := conn.Read(&m); err != nil {
			return err
		}
		switch what := m.What.(type) {
		case *peerv1.LeaseDown_Call:
			if l.out.full() {
				return errGreedy
			}
			if !l.enqueue(what.Call) {
				return errGreedy
			}
		case *peerv1.LeaseDown_Cancel:
			l.cancelCall(what.Cancel.TaskId, what.Cancel.Attempt, what.Cancel.Kill)
		case *peerv1.LeaseDown_Recall:
			l.recall(what.Recall.TaskId, what.Recall.Attempt)
		case *peerv1.LeaseDown_Ack:
			l.out.ack(what.Ack)
			if over, _ := l.out.drained(); over {
				l.onDrained()
			}
		default:
			return errors.New("unexpected message")
		}
	}
}

// ServeLogs is the mesh handler of LogsProtocol.
func (w *Worker) ServeLogs(ctx context.Context, s mesh.Stream) {
	defer s.Close()
	conn := wire.New(s)
	var req peerv1.LogsRequest
	_ = s.SetReadDeadline(time.Now().Add(attachLimit))
	if err := conn.Read(&req); err != nil {
		_ = s.Reset()
		return
	}
	_ = s.SetReadDeadline(time.Time{})
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		var none peerv1.LogsRequest
		_ = conn.Read(&none) // returns when the reader hangs up
	}()
	if req.TaskId == "" {
		// A container's log is that of the call it ran last.
		if l := w.lookup(req.ContainerId); l != nil {
			l.mu.Lock()
			req.TaskId = l.last
			l.mu.Unlock()
		}
	}
	err := w.env.logs.read(req.TaskId, req.Attempt, req.Follow, stop, func(fd int, p []byte) error {
		return conn.Write(&peerv1.LogsChunk{Fd: uint32(fd), Data: p})
	})
	if err != nil {
		_ = conn.Write(&peerv1.LogsChunk{Error: err.Error()})
	}
	_ = s.CloseWrite()
}

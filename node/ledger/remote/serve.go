package remote

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/proto/fault"
)

// heartbeat is how often a quiet watch says that it lives; silence is three of
// them, two missed and one for a slow path.
const (
	heartbeat = 10 * time.Second
	silence   = 3 * heartbeat
)

// Serve answers one stream from l until the peer closes it, ctx ends or the
// peer breaks the protocol (the error says how; the peer going away is no
// error). It closes the stream and returns when all of its work has ended.
func Serve(ctx context.Context, l ledger.Ledger, stream io.ReadWriteCloser) error {
	ctx, cancel := context.WithCancel(ctx)
	var closed sync.Once
	closeStream := func() { closed.Do(func() { _ = stream.Close() }) }
	stopClosing := context.AfterFunc(ctx, closeStream)
	s := &server{l: l, stream: stream, cancel: cancel}
	defer func() {
		cancel()
		stopClosing()
		closeStream()
		s.work.Wait()
	}()
	slots := make(chan struct{}, maxInFlight)
	for first := true; ; first = false {
		var req request
		if err := readFrame(stream, maxRequest, &req); err != nil {
			if ctx.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
				return nil
			}
			return err
		}
		if req.Op == "watch" {
			if !first || req.Filter == nil {
				return errors.New("watch is not the stream's first request")
			}
			s.watch(ctx, req)
			return nil
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		s.work.Add(1)
		go func() {
			defer s.work.Done()
			defer func() { <-slots }()
			s.send(s.answer(ctx, req))
		}()
	}
}

type server struct {
	l      ledger.Ledger
	stream io.ReadWriteCloser
	cancel context.CancelFunc
	work   sync.WaitGroup
	mu     sync.Mutex // one frame at a time on the stream
}

func (s *server) send(r response) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := writeFrame(s.stream, r); err != nil {
		s.cancel() // the peer is gone
	}
}

func (s *server) answer(ctx context.Context, req request) response {
	r := response{Seq: req.Seq}
	var err error
	switch {
	case req.Op == "get" && req.Key != nil:
		var a ledger.Answer
		if a, err = s.l.Get(ctx, *req.Key, 0); err == nil {
			r.Record = &a.Record
		}
	case req.Op == "list" && req.Query != nil:
		var p ledger.Page
		p, err = s.l.List(ctx, *req.Query)
		r.Records, r.Next, r.Revision = p.Records, p.Next, p.Revision
	case req.Op == "propose":
		var cmd ledger.Command
		if cmd, err = ledger.DecodeCommand(req.Command); err == nil {
			var res ledger.Result
			if res, err = s.l.Propose(ctx, cmd); err == nil {
				r.Record, r.Changed = &res.Record, res.Changed
			}
		}
	default:
		err = fault.New(fault.Unsupported, "ledger request "+req.Op+" is not known here",
			"the nodes run different versions: update the older one")
	}
	if err != nil {
		r.Err = toWire(err)
	}
	if r.Revision == 0 {
		r.Revision = s.l.Status().Revision
	}
	return r
}

func toWire(err error) *wireError {
	f := fault.From(err)
	return &wireError{Code: f.Code, Message: f.Message, Hint: f.Hint, Compacted: errors.Is(err, ledger.ErrCompacted)}
}

// watch feeds the stream until it breaks. The peer sends nothing more; reading
// only notices that it went.
func (s *server) watch(ctx context.Context, req request) {
	s.work.Add(2)
	go func() {
		defer s.work.Done()
		var b [1]byte
		_, _ = s.stream.Read(b[:])
		s.cancel()
	}()
	go func() {
		defer s.work.Done()
		t := time.NewTicker(heartbeat)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				s.send(response{Revision: s.l.Status().Revision})
			case <-ctx.Done():
				return
			}
		}
	}()
	err := s.l.Watch(ctx, *req.Filter, req.From, func(e ledger.Event) error {
		s.send(response{Event: &e, Revision: e.Revision})
		return ctx.Err()
	})
	if err != nil && ctx.Err() == nil {
		s.send(response{Err: toWire(err)})
	}
}

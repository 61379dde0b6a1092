// Package remote is the ledger on every node that does not vote: it forwards to
// the voter over a stream and keeps what it read on disk.
//
//	l, err := remote.Open(dir, opener, remote.Options{Voter: "box1"})
//
// On the voter the node serves the other end:
//
//	dialer.Handle(ledger.Protocol, func(ctx context.Context, s mesh.Stream) { _ = remote.Serve(ctx, l, s) })
//
// While the voter is away: reads answer from the copies (Answer.Cached, Age),
// what has no copy and every write gives fault.Unreachable with a hint. After a
// failed contact the voter is left alone for a while, so that a known function
// does not pay a dial timeout per read; Nudge (on mesh.MemberUp) ends that early.
package remote

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/proto/fault"
)

// Opener opens a byte stream to the voter for ledger.Protocol. Its Close must
// unblock a Read and a Write in progress.
type Opener interface {
	OpenLedger(ctx context.Context) (io.ReadWriteCloser, error)
}

// OpenerFunc makes a function an Opener.
type OpenerFunc func(ctx context.Context) (io.ReadWriteCloser, error)

// OpenLedger implements Opener.
func (f OpenerFunc) OpenLedger(ctx context.Context) (io.ReadWriteCloser, error) { return f(ctx) }

// Options of Open. The zero value works.
type Options struct {
	Logger *slog.Logger
	Voter  string           // name of the voter, for error texts
	Now    func() time.Time // ages of copies; nil = time.Now
	// CallTimeout bounds one request; 0 = 10 s. A read that has a copy to fall
	// back on waits a fifth of it.
	CallTimeout time.Duration
	// MaxCached bounds the copies; 0 = 20,000.
	MaxCached int
	Fatal     func(string) // see kv.Options
}

// Ledger implements ledger.Ledger by forwarding.
type Ledger struct {
	open  Opener
	o     Options
	cache *cache
	dial  chan struct{} // capacity 1: holding it = dialling

	mu       sync.Mutex
	conn     *conn
	closed   bool
	revision uint64
	contact  time.Time     // last word from the voter
	retryAt  time.Time     // no dial before
	backoff  time.Duration // of the next failure
	stop     chan struct{}
	work     sync.WaitGroup // calls in progress
}

var _ ledger.Ledger = (*Ledger)(nil)

// Waits after a failed contact. Short at first: a restart of the voter takes a
// second or two.
const (
	minBackoff = 500 * time.Millisecond
	maxBackoff = 10 * time.Second
)

// Open opens or makes the copies in dir. It does not contact the voter.
func Open(dir string, open Opener, o Options) (*Ledger, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.CallTimeout == 0 {
		o.CallTimeout = 10 * time.Second
	}
	if o.MaxCached == 0 {
		o.MaxCached = maxCached
	}
	if o.Voter == "" {
		o.Voter = "the mesh's founder"
	}
	c, err := openCache(dir, o.MaxCached, o.Now, o.Logger, o.Fatal)
	if err != nil {
		return nil, err
	}
	return &Ledger{open: open, o: o, cache: c, dial: make(chan struct{}, 1), backoff: minBackoff, stop: make(chan struct{})}, nil
}

// Nudge tells that the voter can be reached again: the next call tries at once.
func (l *Ledger) Nudge() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.retryAt, l.backoff = time.Time{}, minBackoff
}

// Get implements ledger.Reader.
func (l *Ledger) Get(ctx context.Context, k ledger.Key, maxAge time.Duration) (ledger.Answer, error) {
	if err := ledger.CheckKey(k); err != nil {
		return ledger.Answer{}, err
	}
	if !l.enter() {
		return ledger.Answer{}, ledger.Closed()
	}
	defer l.work.Done()
	old, have := l.cache.get(k)
	if have && (k.Kind.Immutable() || maxAge > 0 && old.Age <= maxAge) {
		return old, nil
	}
	limit := l.o.CallTimeout
	if have {
		limit /= 5
	}
	resp, err := l.call(ctx, limit, request{Op: "get", Key: &k})
	switch {
	case err == nil && resp.Record != nil:
		l.cache.put(*resp.Record)
		return ledger.Answer{Record: *resp.Record}, nil
	case err == nil:
		return ledger.Answer{}, fault.New(fault.Internal, "the ledger answered without a record", "")
	case fault.CodeOf(err) == fault.NotFound:
		l.cache.drop(k)
		return ledger.Answer{}, err
	case fault.CodeOf(err) == fault.Unreachable && ctx.Err() == nil:
		if old, have = l.cache.get(k); have {
			return old, nil
		}
	}
	return ledger.Answer{}, err
}

// List implements ledger.Reader.
func (l *Ledger) List(ctx context.Context, q ledger.Query) (ledger.Page, error) {
	if err := ledger.CheckQuery(q); err != nil {
		return ledger.Page{}, err
	}
	if !l.enter() {
		return ledger.Page{}, ledger.Closed()
	}
	defer l.work.Done()
	resp, err := l.call(ctx, l.o.CallTimeout, request{Op: "list", Query: &q})
	if err == nil {
		l.cache.put(resp.Records...)
		return ledger.Page{Records: resp.Records, Next: resp.Next, Revision: resp.Revision}, nil
	}
	if fault.CodeOf(err) == fault.Unreachable && ctx.Err() == nil {
		if p := l.cache.list(q); len(p.Records) > 0 {
			return p, nil
		}
	}
	return ledger.Page{}, err
}

// Propose implements ledger.Ledger.
func (l *Ledger) Propose(ctx context.Context, cmd ledger.Command) (ledger.Result, error) {
	raw, err := ledger.EncodeCommand(cmd)
	if err != nil {
		return ledger.Result{}, err
	}
	if !l.enter() {
		return ledger.Result{}, ledger.Closed()
	}
	defer l.work.Done()
	resp, err := l.call(ctx, l.o.CallTimeout, request{Op: "propose", Command: raw})
	if err != nil {
		return ledger.Result{}, err
	}
	if resp.Record == nil {
		return ledger.Result{}, fault.New(fault.Internal, "the ledger answered without a record", "")
	}
	res := ledger.Result{Record: *resp.Record, Changed: resp.Changed}
	switch cmd.(type) {
	case ledger.Delete:
		l.cache.drop(res.Record.Key)
	case ledger.Expire:
		// Whether it is gone the answer does not say; the next read will.
	default:
		l.cache.put(res.Record)
	}
	return res, nil
}

// Watch implements ledger.Reader.
func (l *Ledger) Watch(ctx context.Context, f ledger.Filter, from uint64, fn func(ledger.Event) error) error {
	if !l.enter() {
		return ledger.Closed()
	}
	defer l.work.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with cancel above
		select {
		case <-l.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	dctx, dcancel := context.WithTimeout(ctx, l.o.CallTimeout)
	stream, err := l.open.OpenLedger(dctx)
	dcancel()
	if err != nil {
		return l.away(err)
	}
	defer func() { _ = stream.Close() }()
	defer context.AfterFunc(ctx, func() { _ = stream.Close() })()
	quiet := time.AfterFunc(silence, func() { _ = stream.Close() })
	defer quiet.Stop()
	if err := writeFrame(stream, request{Op: "watch", Filter: &f, From: from}); err != nil {
		return l.watchEnd(ctx, err)
	}
	for {
		quiet.Reset(silence)
		var r response
		if err := readFrame(stream, maxResponse, &r); err != nil {
			return l.watchEnd(ctx, err)
		}
		quiet.Stop() // fn may take its time
		l.heard(r.Revision)
		switch {
		case r.Err != nil:
			return r.Err.fault()
		case r.Event != nil:
			if r.Event.Deleted {
				l.cache.drop(r.Event.Record.Key)
			} else {
				l.cache.put(r.Event.Record)
			}
			if err := ctx.Err(); err != nil {
				return l.watchEnd(ctx, err)
			}
			if err := fn(*r.Event); err != nil {
				return err
			}
		}
	}
}

func (l *Ledger) watchEnd(ctx context.Context, err error) error {
	select {
	case <-l.stop:
		return ledger.Closed()
	default:
	}
	if ctx.Err() != nil {
		return fault.From(ctx.Err())
	}
	return l.away(err)
}

// Status implements ledger.Ledger.
func (l *Ledger) Status() ledger.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := ledger.Status{
		Role: ledger.RoleFollower, Revision: l.revision, LastContact: -1,
		Connected: l.conn != nil && l.conn.alive(), CachedCount: l.cache.count(),
	}
	if !l.contact.IsZero() {
		s.LastContact = max(l.o.Now().Sub(l.contact), 0)
	}
	return s
}

// Close implements ledger.Ledger.
func (l *Ledger) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	c := l.conn
	l.mu.Unlock()
	close(l.stop)
	if c != nil {
		c.close()
	}
	l.work.Wait()
	return errors.Join(l.cache.close())
}

// enter counts a call in; false after Close.
func (l *Ledger) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.work.Add(1)
	return true
}

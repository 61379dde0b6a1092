package remote

import (
	"context"
	"errors"
	"time"

	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/proto/fault"
)

// call does one request within limit. When the stream breaks under it, it is
// repeated once on a new one: every command is idempotent by content.
func (l *Ledger) call(ctx context.Context, limit time.Duration, r request) (response, error) {
	tctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for try := 0; ; try++ {
		c, err := l.connect(tctx)
		if err != nil {
			return response{}, l.failed(ctx, err)
		}
		resp, err := c.call(tctx, r)
		switch {
		case err == nil:
			l.heard(resp.Revision)
			if resp.Err != nil {
				return response{}, resp.Err.fault()
			}
			return resp, nil
		case errors.Is(err, errBroken) && try == 0 && tctx.Err() == nil:
			continue
		case tctx.Err() != nil && ctx.Err() == nil:
			// The voter had the request for the whole limit and said nothing:
			// the next caller shall not wait on the same stream.
			c.fail(err)
		}
		return response{}, l.failed(ctx, err)
	}
}

// failed turns an error of the transport into what the caller gets.
func (l *Ledger) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fault.From(ctx.Err())
	}
	var f *fault.Error
	if errors.As(err, &f) {
		return f
	}
	l.mu.Lock()
	l.retryAt = time.Now().Add(l.backoff)
	l.backoff = min(2*l.backoff, maxBackoff)
	l.mu.Unlock()
	return l.away(err)
}

func (l *Ledger) away(err error) error {
	return fault.Wrap(fault.Unreachable, err, "the ledger on "+l.o.Voter+" does not answer",
		"what this node knows still runs; registering something new waits for that node: start it, or look at 'beam node ls'")
}

var errBackoff = errors.New("it did not answer a moment ago")

// connect gives the live stream or makes one; only one dial runs at a time.
func (l *Ledger) connect(ctx context.Context) (*conn, error) {
	select {
	case l.dial <- struct{}{}:
		defer func() { <-l.dial }()
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-l.stop:
		return nil, ledger.Closed()
	}
	l.mu.Lock()
	c, closed, wait := l.conn, l.closed, time.Until(l.retryAt)
	l.mu.Unlock()
	switch {
	case closed:
		return nil, ledger.Closed()
	case c != nil && c.alive():
		return c, nil
	case wait > 0:
		return nil, l.away(errBackoff)
	}
	if c != nil {
		c.close()
	}
	dctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stopped := make(chan struct{})
	defer close(stopped)
	go func() {
		select {
		case <-l.stop:
			cancel()
		case <-stopped:
		}
	}()
	stream, err := l.open.OpenLedger(dctx)
	if err != nil {
		return nil, err
	}
	c = newConn(stream)
	l.mu.Lock()
	l.conn = c
	closed = l.closed
	l.mu.Unlock()
	if closed { // Close may have looked before we stored it
		c.close()
		return nil, ledger.Closed()
	}
	return c, nil
}

// heard notes a sign of life.
func (l *Ledger) heard(rev uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.contact = l.o.Now()
	l.revision = max(l.revision, rev)
	l.retryAt, l.backoff = time.Time{}, minBackoff
}

package remote

import (
	"context"
	"errors"
	"io"
	"sync"
)

// conn is one stream to the voter with many requests under way.
type conn struct {
	stream io.ReadWriteCloser
	out    chan request
	done   chan struct{} // closed when the stream is finished; err is valid then
	work   sync.WaitGroup

	mu      sync.Mutex
	seq     uint64
	waiting map[uint64]chan response // capacity 1 each
	err     error
	once    sync.Once
}

var errBroken = errors.New("stream to the ledger broke")

func newConn(stream io.ReadWriteCloser) *conn {
	c := &conn{
		stream:  stream,
		out:     make(chan request), // unbuffered: a request is sent or still its caller's
		done:    make(chan struct{}),
		waiting: map[uint64]chan response{},
	}
	c.work.Add(2)
	go c.write()
	go c.read()
	return c
}

func (c *conn) write() {
	defer c.work.Done()
	for {
		select {
		case r := <-c.out:
			if err := writeFrame(c.stream, r); err != nil {
				c.fail(err)
				return
			}
		case <-c.done:
			return
		}
	}
}

func (c *conn) read() {
	defer c.work.Done()
	for {
		var r response
		if err := readFrame(c.stream, maxResponse, &r); err != nil {
			c.fail(err)
			return
		}
		c.mu.Lock()
		ch := c.waiting[r.Seq]
		delete(c.waiting, r.Seq)
		c.mu.Unlock()
		if ch != nil {
			ch <- r
		}
	}
}

// fail ends the stream; it does not wait.
func (c *conn) fail(err error) {
	c.once.Do(func() {
		c.mu.Lock()
		c.err = errors.Join(errBroken, err)
		c.mu.Unlock()
		close(c.done)
		_ = c.stream.Close()
	})
}

// close ends the stream and waits for its goroutines.
func (c *conn) close() {
	c.fail(errors.New("closed here"))
	c.work.Wait()
}

func (c *conn) alive() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// call sends one request and waits for its answer. An error wraps errBroken
// when the stream ended, else it is ctx's.
func (c *conn) call(ctx context.Context, r request) (response, error) {
	ch := make(chan response, 1)
	c.mu.Lock()
	c.seq++
	r.Seq = c.seq
	c.waiting[r.Seq] = ch
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, r.Seq)
		c.mu.Unlock()
	}()
	select {
	case c.out <- r:
	case <-c.done:
		return response{}, c.cause()
	case <-ctx.Done():
		return response{}, ctx.Err()
	}
	select {
	case a := <-ch:
		return a, nil
	case <-c.done:
		return response{}, c.cause()
	case <-ctx.Done():
		return response{}, ctx.Err()
	}
}

func (c *conn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

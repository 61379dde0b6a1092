// Package loopback lets a node be its own peer: streams to one's own id go over
// a socket pair to the handler that serves the others' streams.
package loopback

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/beammesh/beammesh/mesh"
)

// Dialer is a mesh.Dialer that also dials self. Safe for concurrent use.
type Dialer struct {
	mesh.Dialer
	self mesh.PeerID
	ctx  context.Context

	mu       sync.Mutex
	handlers map[string]mesh.Handler
}

// New wraps d. ctx ends the handlers of streams to self.
func New(ctx context.Context, self mesh.PeerID, d mesh.Dialer) *Dialer {
	return &Dialer{Dialer: d, self: self, ctx: ctx, handlers: map[string]mesh.Handler{}}
}

// Handle registers a handler for peers and for self.
func (d *Dialer) Handle(protocol string, h mesh.Handler) {
	d.mu.Lock()
	d.handlers[protocol] = h
	d.mu.Unlock()
	d.Dialer.Handle(protocol, h)
}

// Open opens a stream to a peer or to self.
func (d *Dialer) Open(ctx context.Context, to mesh.PeerID, protocol string) (mesh.Stream, error) {
	if to != d.self {
		return d.Dialer.Open(ctx, to, protocol)
	}
	return d.open(protocol)
}

// OpenBulk is Open where it is self.
func (d *Dialer) OpenBulk(ctx context.Context, to mesh.PeerID, protocol string) (mesh.Stream, error) {
	if to != d.self {
		return d.Dialer.OpenBulk(ctx, to, protocol)
	}
	return d.open(protocol)
}

func (d *Dialer) open(protocol string) (mesh.Stream, error) {
	d.mu.Lock()
	h := d.handlers[protocol]
	d.mu.Unlock()
	if h == nil {
		return nil, fmt.Errorf("open %s to self: no such protocol", protocol)
	}
	a, b, err := pair()
	if err != nil {
		return nil, err
	}
	go h(d.ctx, &stream{UnixConn: b, peer: d.self})
	return &stream{UnixConn: a, peer: d.self}, nil
}

type stream struct {
	*net.UnixConn
	peer mesh.PeerID
}

var _ mesh.Stream = (*stream)(nil)

// Reset closes both ends at once: there is nothing in flight on a socket pair
// that could be told apart from data.
func (s *stream) Reset() error      { return s.Close() }
func (s *stream) Peer() mesh.PeerID { return s.peer }

func pair() (a, b *net.UnixConn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open stream to self: %w", err)
	}
	conn := func(fd int) (*net.UnixConn, error) {
		f := os.NewFile(uintptr(fd), "loopback")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			return nil, fmt.Errorf("open stream to self: %w", err)
		}
		return c.(*net.UnixConn), nil
	}
	if a, err = conn(fds[0]); err != nil {
		_ = syscall.Close(fds[1])
		return nil, nil, err
	}
	if b, err = conn(fds[1]); err != nil {
		_ = a.Close()
		return nil, nil, err
	}
	return a, b, nil
}

package libp2p

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	msmux "github.com/multiformats/go-multistream"

	"github.com/beammesh/beammesh/mesh"
)

// openTimeout bounds Open when its context has no deadline of its own.
const openTimeout = 30 * time.Second

// Open is mesh.Dialer's.
func (m *Mesh) Open(ctx context.Context, to mesh.PeerID, protocol string) (mesh.Stream, error) {
	return m.open(ctx, to, protocol, false)
}

// OpenBulk is mesh.Dialer's.
func (m *Mesh) OpenBulk(ctx context.Context, to mesh.PeerID, protocol string) (mesh.Stream, error) {
	return m.open(ctx, to, protocol, true)
}

func (m *Mesh) open(ctx context.Context, to mesh.PeerID, name string, bulk bool) (mesh.Stream, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, openTimeout)
		defer cancel()
	}
	fail := func(err error) (mesh.Stream, error) {
		if m.ctx.Err() != nil {
			err = mesh.ErrClosed
		}
		return nil, fmt.Errorf("open %s to %s: %w", name, to, err)
	}
	if m.gate == nil || to == m.self {
		return fail(fmt.Errorf("not started, or own id: %w", mesh.ErrUnreachable))
	}
	// A connection may close between the choice and the open: try again once.
	for try := 0; ; try++ {
		l, err := m.reach(ctx, to)
		if err != nil {
			return fail(err)
		}
		l = m.choose(ctx, l, bulk)
		s, err := l.conn.NewStream(ctx)
		if err != nil {
			if try == 0 && ctx.Err() == nil {
				continue
			}
			return fail(fmt.Errorf("%w: %w", mesh.ErrUnreachable, err))
		}
		pid := m.protocolID(name)
		if err := s.SetProtocol(pid); err != nil {
			s.Reset()
			return fail(err)
		}
		// Negotiation travels with the first write: no round trip of its own.
		return &stream{Stream: s, lazy: msmux.NewMSSelect(s, pid), peer: to}, nil
	}
}

// reach gives a proven connection to a member, dialling it if need be.
func (m *Mesh) reach(ctx context.Context, to mesh.PeerID) (*link, error) {
	l, err := m.gate.await(ctx, to)
	if err == nil || errors.Is(err, mesh.ErrNotMember) {
		return l, err
	}
	if err := m.dial(ctx, to); err != nil {
		return nil, err
	}
	return m.gate.await(ctx, to)
}

// dial connects to a peer at its known addresses and waits for hello.
func (m *Mesh) dial(ctx context.Context, to mesh.PeerID) error {
	id, err := peer.Decode(string(to))
	if err != nil {
		return fmt.Errorf("%w: %w", mesh.ErrUnreachable, err)
	}
	info := peer.AddrInfo{ID: id}
	if known, ok := m.table.get(to); ok {
		info.Addrs = parseAddrs(known.Addrs)
	}
	if s, ok := m.host.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(id) // our own back-off is in the member table
	}
	if err := m.gate.Connect(ctx, info); err != nil {
		if errors.Is(err, mesh.ErrNotMember) || errors.Is(err, mesh.ErrUnreachable) {
			return err
		}
		return fmt.Errorf("%w: %w", mesh.ErrUnreachable, err)
	}
	return nil
}

// serve turns a Handler into a stream handler of the host.
func (m *Mesh) serve(h mesh.Handler) network.StreamHandler {
	return func(s network.Stream) {
		m.mu.Lock()
		if m.closed {
			m.mu.Unlock()
			s.Reset()
			return
		}
		m.wg.Add(1)
		m.mu.Unlock()
		defer m.wg.Done()
		h(m.ctx, &stream{Stream: s, peer: mesh.PeerID(s.Conn().RemotePeer().String())})
	}
}

// stream is a mesh.Stream. lazy is set on our side of an open: it writes the
// protocol's name before the first byte and checks the answer before the first
// byte read.
type stream struct {
	network.Stream
	lazy msmux.LazyConn
	peer mesh.PeerID
}

func (s *stream) Peer() mesh.PeerID { return s.peer }

func (s *stream) Read(b []byte) (n int, err error) {
	if s.lazy == nil {
		n, err = s.Stream.Read(b)
	} else {
		n, err = s.lazy.Read(b)
	}
	if err == nil || err == io.EOF {
		return n, err
	}
	var unsupported msmux.ErrNotSupported[protocol.ID]
	switch {
	case errors.As(err, &unsupported):
		err = fmt.Errorf("%w: %w", mesh.ErrNotServed, err)
	case errors.Is(err, io.EOF):
		// A broken TCP connection is "reset: EOF" inside; who asks errors.Is
		// must not take half a message for a whole one.
		err = fmt.Errorf("%w: %v", io.ErrUnexpectedEOF, err)
	}
	return n, err
}

func (s *stream) Write(b []byte) (int, error) {
	if s.lazy == nil {
		return s.Stream.Write(b)
	}
	return s.lazy.Write(b)
}

func (s *stream) CloseWrite() error {
	if s.lazy != nil {
		if err := s.lazy.Flush(); err != nil {
			return err
		}
	}
	return s.Stream.CloseWrite()
}

// Close ends both directions. With a negotiation still open it must not wait
// for a silent peer.
func (s *stream) Close() error {
	if s.lazy == nil {
		return s.Stream.Close()
	}
	s.Stream.SetReadDeadline(time.Now().Add(helloTimeout))
	return s.lazy.Close()
}

func (s *stream) Reset() error { return s.Stream.Reset() }

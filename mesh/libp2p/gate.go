package libp2p

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/beammesh/beammesh/mesh"
)

// helloTimeout bounds one hello, and with it how long anything waits for one.
const helloTimeout = 10 * time.Second

// strangerLife is how long a connection may live without a good hello: time
// for hello, for join, and for an expired member to renew.
const strangerLife = 20 * time.Second

// maxWaiting bounds the streams of one connection that wait for its hello.
const maxWaiting = 64

// gate is the host that the DHT, gossip and all product protocols see. The
// streams of a connection pass once its hello is done and are reset otherwise.
// Only identify, ping, hello and join are registered on the bare host.
//
//	connected ──hello──► proven ──close──► gone
//	    └── no good hello within strangerLife ──► closed
type gate struct {
	host.Host
	m *Mesh

	mu    sync.Mutex
	conns map[string]*link // by connection id; bounded by limitConns
	moved chan struct{}    // closed and replaced whenever a link changes
}

// link is one connection and what is known of it.
type link struct {
	conn   network.Conn
	peer   mesh.PeerID
	dialer bool // we run hello
	since  time.Time
	settle chan struct{} // closed when hello ended, well or not, or the connection closed
	gone   chan struct{} // closed when the connection closed
	expel  *time.Timer   // closes a stranger

	// under gate.mu
	greeting bool // a hello runs or ran
	settled  bool
	proven   bool
	waiting  int
	boot     string
	notAfter time.Time // of the peer's certificate
	open     bool      // a refusal at its address means that the process is gone
	refused  bool      // which has happened
}

func newGate(h host.Host, m *Mesh) *gate {
	return &gate{Host: h, m: m, conns: map[string]*link{}, moved: make(chan struct{})}
}

// add registers a connection; the same one twice gives the first link.
func (g *gate) add(c network.Conn, dialer bool) (l *link, fresh bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if l, ok := g.conns[c.ID()]; ok {
		return l, false
	}
	l = &link{conn: c, peer: mesh.PeerID(c.RemotePeer().String()), dialer: dialer, since: time.Now(), settle: make(chan struct{}), gone: make(chan struct{})}
	l.expel = time.AfterFunc(strangerLife, func() {
		g.m.log.Debug("closing a connection without membership", "peer", l.peer, "addr", c.RemoteMultiaddr())
		c.Close()
		g.drop(c) // usually done by the notification already
	})
	g.conns[c.ID()] = l
	return l, true
}

// drop forgets a closed connection. last says it was the peer's last proven one.
func (g *gate) drop(c network.Conn) (l *link, last bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l, ok := g.conns[c.ID()]
	if !ok {
		return nil, false
	}
	delete(g.conns, c.ID())
	close(l.gone)
	l.expel.Stop()
	g.settleLocked(l)
	if !l.proven {
		return l, false
	}
	l.proven = false
	for _, o := range g.conns {
		if o.peer == l.peer && o.proven {
			return l, false
		}
	}
	return l, true
}

// changes gives a channel that closes at the next change of any link.
func (g *gate) changes() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.moved
}

func (g *gate) settleLocked(l *link) {
	close(g.moved)
	g.moved = make(chan struct{})
	if !l.settled {
		l.settled = true
		close(l.settle)
	}
}

// begin claims the one hello of a connection.
func (g *gate) begin(l *link) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if l.greeting {
		return false
	}
	l.greeting = true
	return true
}

// prove ends a good hello. It reports false when the connection closed meanwhile.
func (g *gate) prove(l *link, boot string, notAfter time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conns[l.conn.ID()] != l {
		return false
	}
	l.proven, l.boot, l.notAfter = true, boot, notAfter
	l.expel.Stop()
	g.settleLocked(l)
	return true
}

// fail ends a bad hello; streams that waited are refused now.
func (g *gate) fail(l *link) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.settleLocked(l)
}

// link finds the record of a connection.
func (g *gate) link(c network.Conn) *link {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.conns[c.ID()]
}

// links gives the connections of a peer, oldest first, only proven ones if asked.
func (g *gate) links(p mesh.PeerID, proven bool) []*link {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []*link
	for _, l := range g.conns {
		if l.peer == p && (l.proven || !proven) {
			out = append(out, l)
		}
	}
	for i := 1; i < len(out); i++ { // a handful at most
		for j := i; j > 0 && out[j].since.Before(out[j-1].since); j-- {
			out[j], out[j-1] = out[j-1], out[j]
		}
	}
	return out
}

// speaks says whether l is the oldest of its peer's proven connections.
func (g *gate) speaks(l *link) bool {
	all := g.links(l.peer, true)
	return len(all) == 0 || all[0] == l
}

func (g *gate) hasTCP(p mesh.PeerID) bool { return slices.ContainsFunc(g.links(p, true), isTCP) }

func (g *gate) open(l *link) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return l.open
}

func (g *gate) setOpen(l *link) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l.open = true
}

func (g *gate) refused(l *link) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return l.refused
}

func (g *gate) setRefused(l *link) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l.refused = true
}

func (g *gate) member(p mesh.PeerID) bool { return len(g.links(p, true)) > 0 }

// bootOf is the boot id a peer showed on its proven connections.
func (g *gate) bootOf(p mesh.PeerID) (boot string, ok bool) {
	if l := g.links(p, true); len(l) > 0 {
		return l[len(l)-1].boot, true
	}
	return "", false
}

// admit decides about one incoming stream: at once for a proven connection,
// after hello when one runs, never otherwise. A known member's further
// connection may be a moment ahead of its hello.
func (g *gate) admit(c network.Conn) bool {
	g.mu.Lock()
	l, ok := g.conns[c.ID()]
	if !ok {
		// The swarm announces a connection before its streams, but to us
		// asynchronously to the muxer: register it here, the notification
		// finds it.
		g.mu.Unlock()
		if c.IsClosed() {
			return false
		}
		l = g.m.connected(c)
		g.mu.Lock()
	}
	if l.proven {
		g.mu.Unlock()
		return true
	}
	known := false
	for _, o := range g.conns {
		known = known || (o.peer == l.peer && o.proven)
	}
	if l.settled || (!l.greeting && !known) || l.waiting >= maxWaiting {
		g.mu.Unlock()
		return false
	}
	l.waiting++
	g.mu.Unlock()
	timer := time.NewTimer(helloTimeout)
	defer timer.Stop()
	select {
	case <-l.settle:
	case <-timer.C:
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	l.waiting--
	return l.proven
}

func (g *gate) guard(h network.StreamHandler) network.StreamHandler {
	return func(s network.Stream) {
		if !g.admit(s.Conn()) {
			s.Reset()
			return
		}
		h(s)
	}
}

// SetStreamHandler is host.Host's, behind the gate.
func (g *gate) SetStreamHandler(p protocol.ID, h network.StreamHandler) {
	g.Host.SetStreamHandler(p, g.guard(h))
}

// SetStreamHandlerMatch is host.Host's, behind the gate.
func (g *gate) SetStreamHandlerMatch(p protocol.ID, match func(protocol.ID) bool, h network.StreamHandler) {
	g.Host.SetStreamHandlerMatch(p, match, g.guard(h))
}

// Connect is host.Host's: done only when the peer proved itself.
func (g *gate) Connect(ctx context.Context, p peer.AddrInfo) error {
	if err := g.Host.Connect(ctx, p); err != nil {
		return err
	}
	_, err := g.await(ctx, mesh.PeerID(p.ID.String()))
	return err
}

// NewStream is host.Host's, for members only. It is what the DHT and gossip
// use; product streams are opened in stream.go.
func (g *gate) NewStream(ctx context.Context, p peer.ID, pids ...protocol.ID) (network.Stream, error) {
	if err := g.Connect(ctx, peer.AddrInfo{ID: p}); err != nil {
		return nil, err
	}
	return g.Host.NewStream(ctx, p, pids...)
}

// await gives a proven connection of a connected peer, waiting for hellos that
// run. Its error wraps ErrNotMember or ErrUnreachable.
func (g *gate) await(ctx context.Context, p mesh.PeerID) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	for {
		if l := g.links(p, true); len(l) > 0 {
			return l[0], nil
		}
		var pending *link
		for _, l := range g.links(p, false) {
			g.mu.Lock()
			if !l.settled {
				pending = l
			}
			g.mu.Unlock()
		}
		if pending == nil {
			for _, c := range g.Network().ConnsToPeer(mustPeer(p)) {
				if l := g.link(c); l == nil && !c.IsClosed() {
					pending = g.m.connected(c) // ahead of its notification
				}
			}
		}
		if pending == nil {
			if len(g.links(p, false)) > 0 {
				return nil, fmt.Errorf("%s: %w", p, mesh.ErrNotMember)
			}
			return nil, fmt.Errorf("%s: %w", p, mesh.ErrUnreachable)
		}
		select {
		case <-pending.settle:
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: hello: %w: %w", p, mesh.ErrUnreachable, ctx.Err())
		}
	}
}

// closePeer closes all connections of a peer.
func (g *gate) closePeer(p mesh.PeerID) {
	for _, l := range g.links(p, false) {
		l.conn.Close()
	}
}

// gater keeps us from dialling denied peers. One that dials us is turned away
// in hello, where it can be told why.
type gater struct{ m *Mesh }

func (g gater) InterceptPeerDial(p peer.ID) bool {
	if g.m.hasLeft() {
		return false
	}
	id := mesh.PeerID(p.String())
	if _, known := g.m.table.via(id); g.m.cfg.DialKnownOnly && !known && g.m.Joined() {
		return false
	}
	_, denied := g.m.cfg.Deny(id)
	return !denied
}
func (g gater) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return true }
func (g gater) InterceptAccept(network.ConnMultiaddrs) bool  { return true }
func (g gater) InterceptSecured(network.Direction, peer.ID, network.ConnMultiaddrs) bool {
	return true
}
func (g gater) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

package libp2p

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sync/singleflight"

	"github.com/beammesh/beammesh/mesh"
)

// beside is a transport with one more door. The swarm never dials a peer it is
// connected to, so a TCP connection beside a QUIC one, or a second QUIC one,
// cannot be asked of it. dial makes one with the transport itself, which
// authenticates and multiplexes it, and hands it to the swarm through a
// listener's Accept.
type beside struct {
	namedTransport
	dialled chan transport.CapableConn // unbuffered: taken by a listener or closed by the dialler

	mu   sync.Mutex
	ours map[string]bool // connections we dialled that the swarm has not announced yet, by both ends
}

// namedTransport is what both transports are.
type namedTransport interface {
	transport.Transport
	fmt.Stringer
}

func newBeside(t namedTransport) *beside {
	return &beside{namedTransport: t, dialled: make(chan transport.CapableConn), ours: map[string]bool{}}
}

// besideTCP keeps the TCP transport's ability to report its progress, which the
// swarm uses to pace dials.
type besideTCP struct {
	*beside
	transport.DialUpdater
}

// ends names a connection by its two addresses.
func ends(c interface {
	LocalMultiaddr() ma.Multiaddr
	RemoteMultiaddr() ma.Multiaddr
}) string {
	return c.LocalMultiaddr().String() + " " + c.RemoteMultiaddr().String()
}

// dialledHere says, once, that the swarm's "inbound" connection is one of ours.
func (t *beside) dialledHere(key string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.ours[key]
	delete(t.ours, key)
	return was
}

// Listen adds the door to a real listener.
func (t *beside) Listen(a ma.Multiaddr) (transport.Listener, error) {
	l, err := t.namedTransport.Listen(a)
	if err != nil {
		return nil, err
	}
	b := &besideListener{Listener: l, dialled: t.dialled, accepted: make(chan accepted), done: make(chan struct{})}
	go b.pump()
	return b, nil
}

// dial adds a connection to p; the swarm announces it as inbound.
func (t *beside) dial(ctx context.Context, p peer.ID, addrs []ma.Multiaddr) error {
	err := errors.New("no address for this transport")
	for _, a := range addrs {
		if !t.CanDial(a) {
			continue
		}
		var c transport.CapableConn
		if c, err = t.namedTransport.Dial(ctx, a, p); err != nil {
			continue
		}
		key := ends(c)
		t.mu.Lock()
		t.ours[key] = true
		t.mu.Unlock()
		select {
		case t.dialled <- c:
			return nil
		case <-ctx.Done():
			t.dialledHere(key)
			c.Close()
			return ctx.Err()
		}
	}
	return err
}

type accepted struct {
	conn transport.CapableConn
	err  error
}

// besideListener merges accepted and dialled connections.
type besideListener struct {
	transport.Listener
	dialled  chan transport.CapableConn
	accepted chan accepted
	done     chan struct{}
	once     sync.Once
}

func (l *besideListener) pump() {
	for {
		c, err := l.Listener.Accept()
		select {
		case l.accepted <- accepted{c, err}:
		case <-l.done:
			if c != nil {
				c.Close()
			}
			return
		}
		if err != nil {
			return
		}
	}
}

func (l *besideListener) Accept() (transport.CapableConn, error) {
	select {
	case a := <-l.accepted:
		return a.conn, a.err
	case c := <-l.dialled:
		return c, nil
	case <-l.done:
		return nil, transport.ErrListenerClosed
	}
}

func (l *besideListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

const (
	// besideTimeout bounds one further dial; a peer that did not answer on a
	// transport is not tried on it again for besideRetry.
	besideTimeout = 2 * time.Second
	besideRetry   = time.Minute
	// quicStreams is when a QUIC connection counts as full: the transport
	// allows 256 streams each way and the next open would wait for an end.
	quicStreams = 192
)

func isTCP(l *link) bool { return l.conn.ConnState().Transport == "tcp" }

func roomy(l *link) bool { return isTCP(l) || l.conn.Stat().NumStreams < quicStreams }

// choose picks among a member's connections, of which there is one at least:
// TCP for bulk, else the oldest that has room. It dials a further one when none
// will do, and falls back to what there is.
func (m *Mesh) choose(ctx context.Context, l *link, bulk bool) *link {
	good := roomy
	if bulk {
		good = isTCP
	}
	if o := m.linkTo(l.peer, good); o != nil {
		return o
	}
	for _, t := range []*beside{m.tcp, m.quic} { // TCP has no limit of its own
		if t == nil || (bulk && t != m.tcp) {
			continue
		}
		select {
		case <-m.besideDial(l.peer, t, good):
		case <-ctx.Done():
			return l
		}
		if o := m.linkTo(l.peer, good); o != nil {
			return o
		}
	}
	if bulk {
		return m.choose(ctx, l, false)
	}
	return l
}

// linkTo gives the oldest proven connection to a peer that will do.
func (m *Mesh) linkTo(p mesh.PeerID, good func(*link) bool) *link {
	for _, o := range m.gate.links(p, true) {
		if good(o) {
			return o
		}
	}
	return nil
}

// besideDial dials one more connection unless there is one that will do. All
// that wait for the same one share one dial, which must not end with the first
// of them to give up.
func (m *Mesh) besideDial(p mesh.PeerID, t *beside, good func(*link) bool) <-chan singleflight.Result {
	name := t.namedTransport.String()
	return m.besides.DoChan(name+string(p), func() (any, error) {
		if m.linkTo(p, good) == nil {
			m.addBeside(p, name, t)
		}
		return nil, nil
	})
}

// addBeside dials one more connection and waits for its hello.
func (m *Mesh) addBeside(p mesh.PeerID, name string, t *beside) {
	key := name + string(p)
	m.mu.Lock()
	until := m.unanswered[key]
	m.mu.Unlock()
	if time.Now().Before(until) {
		return
	}
	ctx, cancel := context.WithTimeout(m.ctx, besideTimeout)
	defer cancel()
	before := len(m.gate.links(p, true))
	known, _ := m.table.get(p)
	addrs := append(parseAddrs(known.Addrs), m.host.Peerstore().Addrs(mustPeer(p))...)
	err := t.dial(ctx, mustPeer(p), ma.Unique(addrs))
	for err == nil && len(m.gate.links(p, true)) <= before {
		moved := m.gate.changes()
		if len(m.gate.links(p, true)) > before {
			break
		}
		select {
		case <-moved:
		case <-ctx.Done():
			err = fmt.Errorf("hello: %w", ctx.Err())
		}
	}
	if err != nil && m.ctx.Err() == nil {
		m.log.Debug("no further connection", "peer", p, "transport", name, "err", err)
		m.mu.Lock()
		if len(m.unanswered) >= maxMembers {
			clear(m.unanswered)
		}
		m.unanswered[key] = time.Now().Add(besideRetry)
		m.mu.Unlock()
	}
}

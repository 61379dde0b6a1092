package libp2p

import (
	"context"
	"fmt"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
)

// bulkTransport is the TCP transport with one more door. The swarm never dials
// a peer it is connected to, so a TCP connection beside a QUIC one cannot be
// asked of it; dialBeside dials, authenticates and multiplexes one with the
// transport itself and hands it to the swarm through a listener's Accept.
type bulkTransport struct {
	*tcp.TcpTransport
	dialled chan transport.CapableConn // unbuffered: taken by a listener or closed by the dialler

	mu   sync.Mutex
	ours map[string]bool // connections we dialled that the swarm has not announced yet, by both ends
}

// ends names a connection by its two addresses.
func ends(c interface {
	LocalMultiaddr() ma.Multiaddr
	RemoteMultiaddr() ma.Multiaddr
}) string {
	return c.LocalMultiaddr().String() + " " + c.RemoteMultiaddr().String()
}

// dialledHere says, once, that the swarm's "inbound" connection is one of ours.
func (t *bulkTransport) dialledHere(key string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.ours[key]
	delete(t.ours, key)
	return was
}

// Listen adds the door to a real listener.
func (t *bulkTransport) Listen(a ma.Multiaddr) (transport.Listener, error) {
	l, err := t.TcpTransport.Listen(a)
	if err != nil {
		return nil, err
	}
	b := &bulkListener{Listener: l, dialled: t.dialled, accepted: make(chan accepted), done: make(chan struct{})}
	go b.pump()
	return b, nil
}

// dialBeside adds a TCP connection to p; the swarm announces it as inbound.
func (t *bulkTransport) dialBeside(ctx context.Context, p peer.ID, addrs []ma.Multiaddr) error {
	err := fmt.Errorf("%s has no TCP address", p)
	for _, a := range addrs {
		if !t.CanDial(a) {
			continue
		}
		var c transport.CapableConn
		if c, err = t.Dial(ctx, a, p); err != nil {
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

// bulkListener merges accepted and dialled connections.
type bulkListener struct {
	transport.Listener
	dialled  chan transport.CapableConn
	accepted chan accepted
	done     chan struct{}
	once     sync.Once
}

func (l *bulkListener) pump() {
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

func (l *bulkListener) Accept() (transport.CapableConn, error) {
	select {
	case a := <-l.accepted:
		return a.conn, a.err
	case c := <-l.dialled:
		return c, nil
	case <-l.done:
		return nil, transport.ErrListenerClosed
	}
}

func (l *bulkListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

package libp2p

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/beammesh/beammesh/mesh"
)

// When a process ends, however it ends, the kernel of its machine answers for
// it: a new TCP connection is reset, a UDP packet is answered by ICMP "port
// unreachable". Such a refusal decides at once what a re-dial would have to
// wait for. It is evidence only where a sound process is known to be let in:
// at an address that we reached ourselves, or that did not refuse while the
// peer was answering (a firewall may refuse strangers and let the peer's own
// connections pass).
//
//	TCP   breaks with its process: that is when the others are asked
//	QUIC  says nothing: without a TCP connection beside it, a canary asks

const (
	// canaryEvery is the time between packets of one byte to a peer that only
	// QUIC reaches: with the answer of its kernel well within a second.
	canaryEvery = 400 * time.Millisecond
	// maxCanaries bounds the peers that are asked so, and the idle traffic with
	// it (0.1 KiB/s each). Others are found out by their silence.
	maxCanaries = 32
	// baselineWait is how long a refusal may take to arrive before an address
	// counts as open.
	baselineWait = time.Second
	// firstAgain is the pause before a probe is repeated; it doubles. A dying
	// process closes its sockets one after the other.
	firstAgain = 20 * time.Millisecond
)

// errRefused ends a wait for a sign of life.
var errRefused = errors.New("the machine lives and nothing listens there")

// lives waits for a sign of life of a peer, for RedialWait at most. A refusal at
// one of its links' addresses ends the wait with errRefused.
func (m *Mesh) lives(links []*link, sign func(context.Context) error) error {
	wait, cancel := context.WithTimeout(m.ctx, m.cfg.RedialWait)
	defer cancel()
	ctx, found := context.WithCancelCause(wait)
	probes := 0
	ended := make(chan struct{}, len(links))
	for _, l := range links {
		if !m.gate.open(l) {
			continue
		}
		probes++
		go func() {
			if refusedSoon(ctx, l) {
				found(errRefused)
			}
			ended <- struct{}{}
		}()
	}
	err := sign(ctx)
	found(err)
	for range probes {
		<-ended
	}
	if err != nil && errors.Is(context.Cause(ctx), errRefused) {
		return errRefused
	}
	return err
}

// refusedSoon asks the machine at a link's far end until it refuses or ctx ends.
func refusedSoon(ctx context.Context, l *link) bool {
	for pause := firstAgain; ; pause *= 2 {
		try, cancel := context.WithTimeout(ctx, pause)
		no := refusedOnce(try, l)
		if !no {
			<-try.Done() // it was silent, or let us in
		}
		cancel()
		if no || ctx.Err() != nil {
			return no
		}
	}
}

// refusedOnce asks once; false is any other answer, or none until ctx ends.
func refusedOnce(ctx context.Context, l *link) bool {
	ap, ok := addrPort(l.conn.RemoteMultiaddr())
	if !ok {
		return false
	}
	if isTCP(l) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", ap.String())
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	}
	c, err := dialUDP(ctx, ap)
	if err != nil {
		return false
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer c.Close()
	return errors.Is(knock(c), syscall.ECONNREFUSED) || hearRefusal(c)
}

// dialUDP connects a socket, which is what makes the kernel hand ICMP errors to
// it.
func dialUDP(ctx context.Context, ap netip.AddrPort) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "udp", ap.String())
}

// knock sends one byte that no QUIC packet starts with: receivers drop it.
func knock(c net.Conn) error {
	_, err := c.Write([]byte{0})
	return err
}

// hearRefusal waits until the kernel at the other end refuses a knock, or c is
// closed.
func hearRefusal(c net.Conn) bool {
	for b := make([]byte, 1); ; {
		_, err := c.Read(b)
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			return true
		case errors.Is(err, net.ErrClosed):
			return false
		}
	}
}

// tcpTurn is how long the side with the greater id leaves it to the other one to
// add the TCP connection when both may have dialled.
const tcpTurn = time.Second

// addTCP puts a TCP connection beside a QUIC one that we dialled: it breaks when
// the peer's process ends, and bulk transfers want it anyway.
func (m *Mesh) addTCP(l *link) {
	turn := time.NewTimer(tcpTurn)
	defer turn.Stop()
	for waiting := m.self > l.peer; waiting; {
		moved := m.gate.changes()
		if m.gate.hasTCP(l.peer) {
			return
		}
		select {
		case <-moved:
		case <-turn.C:
			waiting = false
		case <-l.gone:
			return
		case <-m.ctx.Done():
			return
		}
	}
	<-m.besideDial(l.peer, m.tcp, isTCP)
}

// watchRefusal finds out whether a refusal at a proven link's address would mean
// anything, and then, as long as only QUIC reaches the peer, asks for one.
func (m *Mesh) watchRefusal(l *link) {
	if m.cfg.Simulated {
		return
	}
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	m.spawn(func() {
		select {
		case <-l.gone:
			cancel()
		case <-ctx.Done():
		}
	})
	if !l.dialer {
		base, stop := context.WithTimeout(ctx, baselineWait)
		no := refusedOnce(base, l)
		stop()
		if no || ctx.Err() != nil {
			return
		}
	}
	m.gate.setOpen(l)
	if isTCP(l) {
		return
	}
	select {
	case m.canaries <- struct{}{}:
		defer func() { <-m.canaries }()
	default:
		return
	}
	m.canary(ctx, l)
}

// canary asks a QUIC link's machine every canaryEvery and closes the link at
// the first refusal. It rests while a TCP connection would tell.
func (m *Mesh) canary(ctx context.Context, l *link) {
	ap, ok := addrPort(l.conn.RemoteMultiaddr())
	if !ok {
		return
	}
	c, err := dialUDP(ctx, ap)
	if err != nil {
		m.log.Debug("no canary", "peer", l.peer, "err", err)
		return
	}
	defer c.Close()
	refused := make(chan struct{})
	m.spawn(func() {
		if hearRefusal(c) {
			close(refused)
		}
	})
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		moved := m.gate.changes()
		due := tick.C
		if m.gate.hasTCP(l.peer) {
			due = nil
		}
		select {
		case <-due:
			if errors.Is(knock(c), syscall.ECONNREFUSED) {
				m.convict(l)
				return
			}
			tick.Reset(canaryEvery)
		case <-refused:
			m.convict(l)
			return
		case <-moved:
		case <-ctx.Done():
			return
		}
	}
}

// convict closes a link whose process is gone: no re-dial is needed any more.
func (m *Mesh) convict(l *link) {
	m.log.Debug("the peer's machine refuses: its process is gone", "peer", l.peer, "addr", l.conn.RemoteMultiaddr())
	m.gate.setRefused(l)
	l.conn.Close()
}

// suspect asks a peer's other connections after one of them broke: a process
// that was killed leaves a TCP connection at once and says nothing on QUIC.
func (m *Mesh) suspect(broken *link) {
	for _, l := range m.gate.links(broken.peer, true) {
		m.spawn(func() {
			err := m.lives([]*link{broken, l}, func(ctx context.Context) error { return m.ping(ctx, l) })
			switch {
			case err == nil || m.ctx.Err() != nil:
			case errors.Is(err, errRefused):
				m.convict(l)
			default:
				m.log.Debug("connection does not answer after another one broke", "peer", l.peer, "addr", l.conn.RemoteMultiaddr(), "err", err)
				l.conn.Close()
			}
		})
	}
}

// lost runs when a member's last proven connection ended: one re-dial, and if
// that fails or is refused the member is down.
func (m *Mesh) lost(l *link, reason string) {
	p := l.peer
	if known, ok := m.table.get(p); !ok || !known.Connected || m.hasLeft() {
		return
	}
	err := errRefused
	if !m.gate.refused(l) && !m.table.isLeaving(p) {
		err = m.lives([]*link{l}, func(ctx context.Context) error { return m.dial(ctx, p) })
	}
	if m.ctx.Err() != nil || m.gate.member(p) {
		return // back, perhaps because it dialled us
	}
	m.down(p, reason, err)
}

func (m *Mesh) down(p mesh.PeerID, reason string, err error) {
	m.dir.memberDown(mustPeer(p))
	m.table.down(p, reason, m.cfg.Clock())
	m.log.Info("member is down", "peer", p, "reason", reason, "err", err)
}

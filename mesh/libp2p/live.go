package libp2p

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	msmux "github.com/multiformats/go-multistream"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/membership"
)

// answerWait is how long an old connection may take to prove that an older
// process with the same identity still lives.
const answerWait = 2 * time.Second

// pingStreamLife is how long one ping stream is used: the answering side of
// libp2p's ping ends a stream after 30 s whatever happens on it.
const pingStreamLife = 20 * time.Second

// pinger is one ping stream of one connection.
type pinger struct {
	s  network.Stream
	rw io.ReadWriter // negotiates with the first ping
}

func openPing(ctx context.Context, c network.Conn) (*pinger, error) {
	s, err := c.NewStream(ctx)
	if err != nil {
		return nil, fmt.Errorf("open ping: %w", err)
	}
	if err := s.SetProtocol(ping.ID); err != nil {
		s.Reset()
		return nil, fmt.Errorf("open ping: %w", err)
	}
	return &pinger{s, msmux.NewMSSelect(s, ping.ID)}, nil
}

// once sends one ping and waits for its echo.
func (p *pinger) once(until time.Time) (time.Duration, error) {
	p.s.SetDeadline(until)
	var out, in [ping.PingSize]byte
	rand.Read(out[:])
	sent := time.Now()
	if _, err := p.rw.Write(out[:]); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(p.rw, in[:]); err != nil {
		return 0, err
	}
	if !bytes.Equal(in[:], out[:]) {
		return 0, fmt.Errorf("ping: wrong echo")
	}
	return time.Since(sent), nil
}

// answers asks one connection whether its peer still lives.
func (m *Mesh) answers(l *link) bool { return m.answersWithin(l, answerWait) }

func (m *Mesh) answersWithin(l *link, wait time.Duration) bool {
	ctx, cancel := context.WithTimeout(m.ctx, wait)
	defer cancel()
	p, err := openPing(ctx, l.conn)
	if err != nil {
		return false
	}
	defer p.s.Reset()
	_, err = p.once(time.Now().Add(wait))
	return err == nil
}

// suspect asks a peer's other connections after one of them broke: a process
// that was killed leaves a TCP connection at once and says nothing on QUIC.
func (m *Mesh) suspect(p mesh.PeerID) {
	for _, l := range m.gate.links(p, true) {
		m.spawn(func() {
			if !m.answersWithin(l, m.cfg.RedialWait) && m.ctx.Err() == nil {
				m.log.Debug("connection does not answer after another one broke", "peer", p, "addr", l.conn.RemoteMultiaddr())
				l.conn.Close()
			}
		})
	}
}

// keepAlive pings one proven connection until it ends, and ends it when the
// peer has been silent for SilentAfter or its certificate ran out. What follows
// (one re-dial, then MemberDown) is lost's.
//
//	pong ── PingEvery ──► ping ── no pong until SilentAfter since the last ──► close
func (m *Mesh) keepAlive(l *link, p *pinger) {
	defer l.conn.Close()
	defer func() { p.s.Reset() }()
	last := time.Now()
	opened := last
	tick := time.NewTimer(m.cfg.PingEvery)
	defer tick.Stop()
	for {
		if time.Since(opened) > pingStreamLife {
			ctx, cancel := context.WithDeadline(m.ctx, last.Add(m.cfg.SilentAfter))
			fresh, err := openPing(ctx, l.conn)
			cancel()
			if err != nil {
				return
			}
			p.s.Close()
			p, opened = fresh, time.Now()
		}
		rtt, err := p.once(last.Add(m.cfg.SilentAfter))
		if err != nil {
			m.log.Debug("connection is silent", "peer", l.peer, "addr", l.conn.RemoteMultiaddr(), "since", last, "err", err)
			return
		}
		last = time.Now()
		m.table.measured(l.peer, rtt, m.cfg.Clock())
		if m.cfg.Clock().After(l.notAfter.Add(membership.Leeway)) {
			m.log.Info("certificate ran out, asking for a new hello", "peer", l.peer)
			return
		}
		tick.Reset(m.cfg.PingEvery)
		select {
		case <-tick.C:
		case <-m.ctx.Done():
			return
		}
	}
}

// lost runs when a member's last proven connection ended: one re-dial, and if
// that fails the member is down.
func (m *Mesh) lost(p mesh.PeerID, reason string) {
	ctx, cancel := context.WithTimeout(m.ctx, m.cfg.RedialWait)
	defer cancel()
	if known, ok := m.table.get(p); !ok || !known.Connected {
		return
	}
	err := m.dial(ctx, p)
	if m.ctx.Err() != nil || m.gate.member(p) {
		return // back, perhaps because it dialled us
	}
	m.dir.memberDown(mustPeer(p))
	m.table.down(p, reason, m.cfg.Clock())
	m.log.Info("member is down", "peer", p, "reason", reason, "err", err)
}

// dialWait bounds one background dial, hello included.
const dialWait = helloTimeout + 5*time.Second

// keepConnected dials known members that are not connected, with growing
// pauses. It wakes on changes of the table and when a dial is due.
func (m *Mesh) keepConnected() {
	room := make(chan struct{}, dialsAtOnce)
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		dials, next := m.table.due(m.cfg.Clock(), cap(room)-len(room), m.cfg.WantConnected)
		for _, k := range dials {
			room <- struct{}{} // due gave at most what is free
			m.spawn(func() {
				defer func() { <-room; m.table.touchDial() }()
				ctx, cancel := context.WithTimeout(m.ctx, dialWait)
				defer cancel()
				err := m.dial(ctx, k.ID)
				if err != nil {
					m.log.Debug("cannot reach a member", "peer", k.ID, "name", k.Name, "err", err)
				}
				m.table.dialled(k.ID, err == nil, m.cfg.Clock(), mrand.Float64())
			})
		}
		wait := time.Hour
		if !next.IsZero() && len(room) < cap(room) {
			wait = max(next.Sub(m.cfg.Clock()), 10*time.Millisecond)
		}
		wake.Reset(wait)
		select {
		case <-wake.C:
		case <-m.table.dialSoon:
		case <-m.ctx.Done():
			return
		}
	}
}

// saveEvery bounds how often a busy table is written.
const saveEvery = time.Second

// keepSaved writes the member table after changes.
func (m *Mesh) keepSaved() {
	pause := time.NewTimer(saveEvery)
	defer pause.Stop()
	for {
		select {
		case <-m.table.saveSoon:
		case <-m.ctx.Done():
			return // Close saves once more
		}
		if err := m.saveTable(); err != nil {
			m.log.Error("cannot store the member table", "err", err)
		}
		pause.Reset(saveEvery)
		select {
		case <-pause.C:
		case <-m.ctx.Done():
			return
		}
	}
}

func (m *Mesh) saveTable() error {
	m.saving.Lock() // keepSaved, Join and Close; and Leave must have the last word
	defer m.saving.Unlock()
	if m.hasLeft() {
		return nil
	}
	b, err := m.table.marshal()
	if err == nil {
		err = m.store.write(fileMembers, b)
	}
	if err != nil {
		return fmt.Errorf("store members: %w", err)
	}
	return nil
}

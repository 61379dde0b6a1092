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

	"github.com/beammesh/beammesh/mesh/membership"
)

// answerWait is how long an old connection may take to prove that an older
// process with the same identity still lives.
const answerWait = 2 * time.Second

// pingStreamLife is how long one ping stream is used: the answering side of
// libp2p's ping ends a stream after 30 s whatever happens on it, and after 10 s
// without a ping.
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
func (m *Mesh) answers(l *link) bool {
	ctx, cancel := context.WithTimeout(m.ctx, answerWait)
	defer cancel()
	return m.ping(ctx, l) == nil
}

// ping asks once over one connection, until ctx ends.
func (m *Mesh) ping(ctx context.Context, l *link) error {
	p, err := openPing(ctx, l.conn)
	if err != nil {
		return err
	}
	defer p.s.Reset()
	defer context.AfterFunc(ctx, func() { p.s.Reset() })()
	_, err = p.once(time.Time{})
	return err
}

// besidePings is how many times longer the pause between pings is on a
// connection beside the one that speaks for its peer: when that one breaks or
// falls silent, the others are asked at once. The product with PingEvery stays
// below the 10 s after which a ping stream ends.
const besidePings = 3

// keepAlive pings one proven connection until it ends, and ends it when the
// peer has been silent for SilentAfter or its certificate ran out. What follows
// (one re-dial, then MemberDown) is lost's.
//
//	pong ── PingEvery ──► ping ── no pong until SilentAfter since the last ──► close
func (m *Mesh) keepAlive(l *link, p *pinger) {
	defer l.conn.Close()
	defer func() { p.s.Reset() }()
	opened := time.Now()
	for {
		sent := time.Now()
		until := sent.Add(m.cfg.SilentAfter - m.cfg.PingEvery)
		if sent.Sub(opened) > pingStreamLife {
			ctx, cancel := context.WithDeadline(m.ctx, until)
			fresh, err := openPing(ctx, l.conn)
			cancel()
			if err != nil {
				return
			}
			p.s.Close()
			p, opened = fresh, sent
		}
		rtt, err := p.once(until)
		if err != nil {
			m.log.Debug("connection is silent", "peer", l.peer, "addr", l.conn.RemoteMultiaddr(), "since", sent, "err", err)
			return
		}
		m.table.measured(l.peer, rtt, m.cfg.Clock())
		if m.cfg.Clock().After(l.notAfter.Add(membership.Leeway)) {
			m.log.Info("certificate ran out, asking for a new hello", "peer", l.peer)
			return
		}
		if !m.untilPing(l, time.Now()) {
			return
		}
	}
}

// untilPing waits from a pong to the next ping of a link; false: it is over.
func (m *Mesh) untilPing(l *link, pong time.Time) bool {
	for {
		moved := m.gate.changes()
		every := m.cfg.PingEvery
		if !m.gate.speaks(l) {
			every *= besidePings
		}
		wait := time.Until(pong.Add(every))
		if wait <= 0 {
			return true
		}
		tick := time.NewTimer(wait)
		select {
		case <-tick.C:
		case <-moved: // it may be the one that speaks now
		case <-l.gone:
			tick.Stop()
			return false
		case <-m.ctx.Done():
			tick.Stop()
			return false
		}
		tick.Stop()
	}
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
	if err == nil {
		b, err = m.table.marshalLeft(m.cfg.Clock())
	}
	if err == nil {
		err = m.store.write(fileLeft, b)
	}
	if err != nil {
		return fmt.Errorf("store members: %w", err)
	}
	return nil
}

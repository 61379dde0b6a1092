package libp2p

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	msmux "github.com/multiformats/go-multistream"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/membership"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
)

// The protocols a stranger may open, beside identify and ping.
const (
	protoHello = "hello/1"
	protoJoin  = "join/1"
)

// The exchange on every new connection (docs/protocols/hello.md):
//
//	dialler  Hello ─────►  listener     chain, boot id, versions, clock
//	         ◄───── Hello               or a refusal, and nothing more
//	         Greeting ──►               the node's payload, known members
//	         ◄── Greeting               or a refusal
//
// The listener counts the dialler as proven before its Greeting leaves, so the
// dialler may open streams as soon as it has read it.

// connected runs on the swarm's notification, or ahead of it when a stream of
// the connection is seen first.
func (m *Mesh) connected(c network.Conn) *link {
	dialer := c.Stat().Direction == network.DirOutbound
	for _, t := range []*beside{m.tcp, m.quic} {
		dialer = dialer || (t != nil && t.dialledHere(ends(c)))
	}
	l, fresh := m.gate.add(c, dialer)
	if !fresh {
		return l
	}
	if dialer {
		m.gate.begin(l)
		m.spawn(func() {
			if err := m.sayHello(l); err != nil {
				m.gate.fail(l)
				m.log.Debug("hello failed", "peer", l.peer, "err", err)
				if !expiredHere(err) { // an expired member still renews on this connection
					l.conn.Close()
				}
			}
		})
	}
	return l
}

func (m *Mesh) disconnected(c network.Conn) {
	l, last := m.gate.drop(c)
	if l == nil || m.ctx.Err() != nil {
		return
	}
	if !last {
		m.spawn(func() { m.suspect(l) })
		return
	}
	m.spawn(func() { m.lost(l, "the connection broke") })
}

// theirs is what a hello proved about the other side.
type theirs struct {
	hello  *peerv1.Hello
	member membership.Member
	skew   time.Duration
	rtt    time.Duration
}

func (m *Mesh) sayHello(l *link) (err error) {
	ctx, cancel := context.WithTimeout(m.ctx, helloTimeout)
	defer cancel()
	s, err := l.conn.NewStream(ctx)
	if err != nil {
		return fmt.Errorf("open hello: %w", err)
	}
	s.SetDeadline(time.Now().Add(helloTimeout))
	defer func() { finish(s, err) }()
	if err := s.SetProtocol(m.protocolID(protoHello)); err != nil {
		return err
	}
	st := msmux.NewMSSelect(s, m.protocolID(protoHello))
	r := bufio.NewReader(st)

	sent := time.Now()
	mine := m.ownHello()
	sentClock := time.Unix(0, mine.ClockUnixNanos)
	if err := writeFrame(st, mine, maxHelloFrame); err != nil {
		return err
	}
	t := &theirs{hello: new(peerv1.Hello)}
	if err := readFrame(r, t.hello, maxHelloFrame); err != nil {
		return err
	}
	t.rtt = time.Since(sent)
	t.skew = time.Unix(0, t.hello.ClockUnixNanos).Sub(sentClock.Add(t.rtt / 2))
	if err := m.refusedBy(l, t.hello, t.hello.Refusal); err != nil {
		return err
	}
	if no := m.judge(l, t); no != nil {
		if writeFrame(st, &peerv1.Greeting{Refusal: no}, maxGreetingFrame) == nil {
			s.CloseWrite()
			r.ReadByte() // until the peer has read it and closes, or the deadline
		}
		return m.refuse(l, t, no)
	}
	if err := writeFrame(st, m.ownGreeting(l.peer), maxGreetingFrame); err != nil {
		return err
	}
	g := new(peerv1.Greeting)
	if err := readFrame(r, g, maxGreetingFrame); err != nil {
		return err
	}
	if err := m.refusedBy(l, t.hello, g.Refusal); err != nil {
		return err
	}
	if err := m.take(g); err != nil {
		return err
	}
	return m.welcome(l, t, g)
}

// finish ends a stream of ours: Close after a good exchange, which lets the
// peer read all of it, else Reset.
func finish(s network.Stream, err error) {
	if err != nil {
		s.Reset()
		return
	}
	s.Close()
}

func (m *Mesh) serveHello(s network.Stream) {
	l := m.connected(s.Conn())
	if l.dialer || !m.gate.begin(l) { // one hello a connection, started by its dialler
		s.Reset()
		return
	}
	s.SetDeadline(time.Now().Add(helloTimeout))
	err := m.answerHello(l, s)
	finish(s, err)
	if err != nil {
		m.gate.fail(l)
		m.log.Debug("hello failed", "peer", l.peer, "err", err)
		if !expiredThere(err) {
			l.conn.Close()
		}
	}
}

func (m *Mesh) answerHello(l *link, s network.Stream) error {
	r := bufio.NewReader(s)
	t := &theirs{hello: new(peerv1.Hello)}
	if err := readFrame(r, t.hello, maxHelloFrame); err != nil {
		return err
	}
	mine := m.ownHello()
	if mine.Refusal = m.judge(l, t); mine.Refusal != nil {
		// A stranger learns the reason and no more: no chain, no names.
		err := writeFrame(s, &peerv1.Hello{Refusal: mine.Refusal, ClockUnixNanos: mine.ClockUnixNanos}, maxHelloFrame)
		s.CloseWrite()
		r.ReadByte() // until the peer has read it and closes, or the deadline
		return errors.Join(m.refuse(l, t, mine.Refusal), err)
	}
	sent := time.Now()
	sentClock := time.Unix(0, mine.ClockUnixNanos)
	if err := writeFrame(s, mine, maxHelloFrame); err != nil {
		return err
	}
	g := new(peerv1.Greeting)
	if err := readFrame(r, g, maxGreetingFrame); err != nil {
		return err
	}
	t.rtt = time.Since(sent)
	t.skew = time.Unix(0, g.ClockUnixNanos).Sub(sentClock.Add(t.rtt / 2))
	if err := m.refusedBy(l, t.hello, g.Refusal); err != nil {
		return err
	}
	if err := m.take(g); err != nil {
		return err
	}
	greeting := m.ownGreeting(l.peer)
	if err := m.welcome(l, t, g); err != nil {
		return err
	}
	return writeFrame(s, greeting, maxGreetingFrame)
}

func (m *Mesh) ownHello() *peerv1.Hello {
	m.mu.Lock()
	protocols := make([]string, 0, len(m.handlers))
	for p := range m.handlers {
		protocols = append(protocols, p)
	}
	m.mu.Unlock()
	slices.Sort(protocols)
	return &peerv1.Hello{Chain: m.credentials().chain, BootId: m.boot, Version: m.cfg.Version, Name: m.cfg.Name, Protocols: protocols,
		Features: m.features(), ClockUnixNanos: m.cfg.Clock().UnixNano(), Addrs: encodeAddrs(m.addrTexts(maxAddrs))}
}

func (m *Mesh) ownGreeting(to mesh.PeerID) *peerv1.Greeting {
	g := &peerv1.Greeting{Members: m.records(to), Left: m.table.farewellsToTell(m.cfg.Clock(), maxLeftTold)}
	if m.cfg.Hello != nil {
		if g.Payload = m.cfg.Hello.Local(to); len(g.Payload) > maxPayload {
			m.log.Error("hello payload is too large, sending none", "bytes", len(g.Payload), "limit", maxPayload)
			g.Payload = nil
		}
	}
	g.ClockUnixNanos = m.cfg.Clock().UnixNano()
	return g
}

// take checks a greeting and learns the members it names.
func (m *Mesh) take(g *peerv1.Greeting) error {
	if len(g.Payload) > maxPayload || len(g.Members) > maxRecords || len(g.Left) > maxLeftTold {
		return fmt.Errorf("greeting out of bounds: %d bytes, %d members, %d farewells", len(g.Payload), len(g.Members), len(g.Left))
	}
	return nil
}

// welcome makes the connection's peer a connected member.
func (m *Mesh) welcome(l *link, t *theirs, g *peerv1.Greeting) error {
	ctx, cancel := context.WithTimeout(m.ctx, helloTimeout)
	defer cancel()
	p, err := openPing(ctx, l.conn) // now: product streams may use up what the transport allows
	if err != nil {
		return err
	}
	m.heardLeft(g.Left)
	m.learn(g.Members)
	via := m.howMet(l)
	if m.cfg.Hello != nil {
		m.cfg.Hello.Remote(l.peer, via, g.Payload)
	}
	if !m.gate.prove(l, t.hello.BootId, t.member.NotAfter) {
		p.s.Reset()
		return errors.New("the connection closed during hello")
	}
	m.spawn(func() { m.keepAlive(l, p) })
	m.spawn(func() { m.watchRefusal(l) })
	addrs := decodeAddrs(t.hello.Addrs)
	if l.dialer {
		addrs = mergeAddrs([]string{l.conn.RemoteMultiaddr().String()}, addrs) // it worked from here
	}
	m.table.up(mesh.Member{ID: l.peer, Name: t.hello.Name, Tier: t.member.Tier, Connected: true, Path: mesh.PathDirect, Addrs: addrs,
		RTT: t.rtt, ClockSkew: t.skew, Version: t.hello.Version, Features: t.hello.Features, BootID: t.hello.BootId, LastSeen: m.cfg.Clock(), Via: via})
	m.table.holds(l.peer, t.member.NotAfter.Add(membership.Leeway))
	if !m.gate.member(l.peer) {
		// It broke between prove and up, when there was nobody to take down yet.
		m.spawn(func() { m.lost(l, "the connection broke") })
		return nil
	}
	m.dir.memberUp(mustPeer(l.peer), slices.Contains(t.hello.Features, featDirectory))
	if slices.Contains(t.hello.Features, featRoot) {
		m.certifyNow()
	}
	if l.dialer && !isTCP(l) && m.tcp != nil && slices.Contains(t.hello.Features, featTCP) {
		m.spawn(func() { m.addTCP(l) })
	}
	m.log.Info("member connected", "peer", l.peer, "name", t.hello.Name, "addr", l.conn.RemoteMultiaddr(), "rtt", t.rtt, "skew", t.skew)
	return nil
}

// howMet says how the peer of a link was found. Besides us only the directory
// dials, and it dials peers that nobody told us of. One that nobody could have
// told of us has it from there too.
func (m *Mesh) howMet(l *link) mesh.Via {
	via, known := m.table.via(l.peer)
	alone := m.cfg.NoGossip && m.cfg.NoMDNS && !m.cfg.NoDirectory
	if !known && (l.dialer || alone) {
		return mesh.ViaDirectory
	}
	return via
}

// records are the members we tell others about: that is gossip too, so a node
// without gossip names none.
func (m *Mesh) records(to mesh.PeerID) []*peerv1.PeerRecord {
	if m.cfg.NoGossip {
		return nil
	}
	var out []*peerv1.PeerRecord
	members := m.table.list()
	slices.SortStableFunc(members, func(a, b mesh.Member) int { // connected ones first
		switch {
		case a.Connected == b.Connected:
			return 0
		case a.Connected:
			return -1
		}
		return 1
	})
	for _, k := range members {
		if k.ID == m.self || k.ID == to || len(k.Addrs) == 0 || len(out) == maxRecords {
			continue
		}
		if key, err := membership.KeyOf(k.ID); err == nil {
			out = append(out, &peerv1.PeerRecord{Key: key, Name: k.Name, Tier: k.Tier, Addrs: encodeAddrs(k.Addrs[:min(len(k.Addrs), maxRecordAddrs)])})
		}
	}
	return out
}

// maxRecordAddrs keeps 256 records well inside a frame.
const maxRecordAddrs = 6

func (m *Mesh) learn(in []*peerv1.PeerRecord) {
	for _, r := range in {
		if len(r.Key) != 32 || len(r.Name) > maxName || (r.Tier != "" && !membership.ValidTier(r.Tier)) {
			continue
		}
		m.table.learn(membership.PeerOf(r.Key), r.Name, r.Tier, decodeAddrs(r.Addrs), mesh.ViaMember, m.cfg.Clock())
	}
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

package libp2p

import (
	"cmp"
	"errors"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/membership"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/proto/fault"
)

// judge decides whether the peer may come in.
func (m *Mesh) judge(l *link, t *theirs) *peerv1.Refusal {
	if m.hasLeft() {
		return refusal(fault.Conflict, "this machine is leaving the mesh", "nothing: it will not be back")
	}
	h := t.hello
	if len(h.Protocols) > maxProtocols || len(h.Features) > maxFeatures || len(h.Name) > maxName || len(h.BootId) > 64 || len(h.Version) > 64 {
		return refusal(fault.Invalid, "hello is out of bounds", "update the older of the two machines")
	}
	c := m.credentials()
	var err error
	if t.member, err = membership.Verify(c.root, h.Chain, l.peer, m.cfg.Clock()); err != nil {
		switch {
		case errors.Is(err, membership.ErrExpired):
			return refusal(fault.Expired, "the membership expired", "the node renews it by itself at any issuer of the mesh; if the clock of the machine is wrong, set it")
		case errors.Is(err, membership.ErrNotYetValid):
			return refusal(fault.Unauthorized, err.Error(), "set the clock of both machines, for example with NTP")
		}
		return refusal(fault.Unauthorized, err.Error(), "join with a ticket: 'beam node join <ticket>'")
	}
	if reason, denied := m.cfg.Deny(l.peer); denied {
		return refusal(fault.Forbidden, "denied: "+reason, "ask the owner of the mesh")
	}
	if where, twice := m.livesElsewhere(l, h.BootId); twice {
		return refusal(fault.Conflict, "this identity already runs at "+where,
			"stop one of the two; to make a copied machine a new one, remove identity.key from its data directory and join with a new ticket")
	}
	return nil
}

// livesElsewhere says whether another process with l's identity answers right
// now. A process that was killed and started again looks the same until its old
// connections are asked.
func (m *Mesh) livesElsewhere(l *link, boot string) (where string, twice bool) {
	if l.peer == m.self {
		return "the machine you asked", true
	}
	var stale []*link
	for _, o := range m.gate.links(l.peer, true) {
		if o == l || o.boot == boot {
			continue
		}
		if m.answers(o) {
			return o.conn.RemoteMultiaddr().String(), true
		}
		stale = append(stale, o)
	}
	if len(stale) > 0 {
		m.table.down(l.peer, restarted, m.cfg.Clock())
		for _, o := range stale {
			m.gate.drop(o.conn)
			o.conn.Close()
		}
	}
	return "", false
}

// refuse records that we turned a peer away.
func (m *Mesh) refuse(l *link, t *theirs, no *peerv1.Refusal) error {
	if t.member.Peer != "" { // strangers are no event: anybody could flood the watchers
		m.table.refused(mesh.Member{ID: l.peer, Name: t.hello.Name, Tier: t.member.Tier, Version: t.hello.Version}, no.Message, "")
		m.log.Warn("refused a member", "peer", l.peer, "addr", l.conn.RemoteMultiaddr(), "reason", no.Message)
	}
	return &refusedError{here: true, fault: fault.New(fault.Code(no.Code), no.Message, no.Hint)}
}

// refusedBy records that a peer turned us away.
func (m *Mesh) refusedBy(l *link, h *peerv1.Hello, no *peerv1.Refusal) error {
	if no == nil {
		return nil
	}
	f := fault.New(fault.Code(clip(no.Code, 64)), clip(no.Message, 512), clip(no.Hint, 512))
	m.table.refused(mesh.Member{ID: l.peer, Name: clip(h.Name, maxName)}, "it refused us: "+f.Message, cmp.Or(f.Hint, "ask the owner of the mesh"))
	m.log.Warn("a peer refused this node", "peer", l.peer, "reason", f.Message, "hint", f.Hint)
	if f.Code == fault.Expired {
		m.certifyNow()
	}
	return &refusedError{fault: f}
}

func refusal(code fault.Code, message, hint string) *peerv1.Refusal {
	return &peerv1.Refusal{Code: string(code), Message: message, Hint: hint}
}

// refusedError ends a hello; here says that we refused.
type refusedError struct {
	here  bool
	fault *fault.Error
}

func (e *refusedError) Error() string { return e.fault.Error() }
func (e *refusedError) Unwrap() error { return e.fault }

// expiredHere: the other side holds our certificate for expired.
func expiredHere(err error) bool {
	var r *refusedError
	return errors.As(err, &r) && !r.here && r.fault.Code == fault.Expired
}

// expiredThere: we hold the other side's certificate for expired.
func expiredThere(err error) bool {
	var r *refusedError
	return errors.As(err, &r) && r.here && r.fault.Code == fault.Expired
}

package libp2p

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	msmux "github.com/multiformats/go-multistream"
	"google.golang.org/protobuf/proto"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/membership"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/proto/fault"
)

const (
	// joinTimeout bounds one join request, fsync at the issuer included.
	joinTimeout = 10 * time.Second
	// maxJoins is how many join requests a node serves at once.
	maxJoins = 32
	// defaultTicketLife is how long a ticket can be redeemed.
	defaultTicketLife = 24 * time.Hour
)

// Found makes a mesh of one: a new root key, and this node its first issuer.
func (m *Mesh) Found(context.Context) error {
	if m.Joined() {
		return m.alreadyIn()
	}
	root, err := m.store.key(fileRoot, true) // a kill between the two files leaves the key for next time
	if err != nil {
		return err
	}
	own := m.key.Public().(ed25519.PublicKey)
	now := m.cfg.Clock()
	c := &credentials{root: root.Public().(ed25519.PublicKey), secret: root, issuer: membership.IssueIssuer(root, own, own, now)}
	if c.chain, err = membership.IssueMember(m.key, c.issuer, own, membership.Own, nil, now); err != nil {
		return fmt.Errorf("found mesh: %w", err)
	}
	if c.member, err = membership.Verify(c.root, c.chain, m.self, now); err != nil {
		return fmt.Errorf("found mesh: %w", err)
	}
	return m.setCredentials(c)
}

func (m *Mesh) alreadyIn() error {
	return fault.New(fault.Conflict, "this machine is already in mesh "+m.ID(), "leave it first with 'beam node leave'")
}

// Join redeems a ticket at its issuer. It needs no Start; errors are *fault.Error.
func (m *Mesh) Join(ctx context.Context, ticket string) error {
	t, err := membership.Decode(ticket, m.cfg.Clock())
	if err != nil {
		return err
	}
	switch {
	case t.Issuer == m.self:
		return fault.New(fault.Conflict, "this machine made the ticket itself", "use it on the machine that is to join")
	case m.Joined():
		return m.alreadyIn()
	}
	ctx, cancel := context.WithTimeout(ctx, 3*joinTimeout)
	defer cancel()
	id := mustPeer(t.Issuer)
	if err := m.host.Connect(ctx, peer.AddrInfo{ID: id, Addrs: parseAddrs(t.Addrs)}); err != nil {
		return fault.Wrap(fault.Unreachable, err, "cannot reach the node that made the ticket",
			"it must run, and one of these must be open from here: "+strings.Join(t.Addrs, " "))
	}
	defer m.host.Network().ClosePeer(id) // Start says hello on a fresh connection
	resp, err := m.ask(ctx, t.Issuer, "/beammesh/"+t.MeshID()+"/"+protoJoin,
		&peerv1.JoinRequest{Kind: &peerv1.JoinRequest_Redeem{Redeem: &peerv1.Redeem{Secret: t.Secret, Name: m.cfg.Name}}})
	if err != nil {
		return err
	}
	c := &credentials{root: t.Root, chain: resp.Chain, issuer: resp.Issuer}
	now := m.cfg.Clock()
	if c.member, err = membership.Verify(c.root, c.chain, m.self, now); err != nil {
		if errors.Is(err, membership.ErrNotYetValid) || errors.Is(err, membership.ErrExpired) {
			return fault.Wrap(fault.Invalid, err, "the clocks of this machine and of the mesh differ too much",
				"set the clock, for example with 'timedatectl set-ntp true', and join again with the same ticket")
		}
		return fault.Wrap(fault.Unauthorized, err, "the issuer's certificate is not valid", "make a new ticket with 'beam node invite'")
	}
	if c.issuer != nil {
		if _, err := membership.VerifyIssuer(c.root, c.issuer, m.self, now); err != nil {
			return fault.Wrap(fault.Unauthorized, err, "the issuer's certificate is not valid", "make a new ticket with 'beam node invite'")
		}
	}
	m.table.learn(t.Issuer, "", membership.Own, t.Addrs, mesh.ViaTicket, now)
	m.learn(resp.Members)
	m.table.proveAll() // the issuer vouches for its list: it must survive a restart
	if err := m.saveTable(); err != nil {
		return err
	}
	return m.setCredentials(c)
}

// ask sends one join request over a connection that exists.
func (m *Mesh) ask(ctx context.Context, to mesh.PeerID, protocol string, req *peerv1.JoinRequest) (resp *peerv1.JoinResponse, err error) {
	unreachable := func(err error) error {
		return fault.Wrap(fault.Unreachable, err, "the issuer "+string(to)+" did not answer", "try again; see 'beam node doctor' if it stays so")
	}
	conns := m.host.Network().ConnsToPeer(mustPeer(to))
	if len(conns) == 0 {
		return nil, unreachable(mesh.ErrUnreachable)
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	s, err := conns[0].NewStream(ctx)
	if err != nil {
		return nil, unreachable(err)
	}
	defer func() { finish(s, err) }()
	d, _ := ctx.Deadline()
	s.SetDeadline(d)
	if err := msmux.SelectProtoOrFail(protocol, s); err != nil {
		if no := (msmux.ErrNotSupported[string]{}); !errors.As(err, &no) {
			return nil, unreachable(err)
		}
		return nil, fault.Wrap(fault.NotFound, err, "the node that made the ticket is not in that mesh any more, or takes no tickets",
			"make a new one with 'beam node invite' on a machine of the mesh")
	}
	if err := writeFrame(s, req, maxJoinFrame); err != nil {
		return nil, unreachable(err)
	}
	resp = new(peerv1.JoinResponse)
	if err := readFrame(bufio.NewReader(s), resp, maxJoinFrame); err != nil {
		return nil, unreachable(err)
	}
	if no := resp.Refusal; no != nil {
		return nil, fault.New(fault.Code(clip(no.Code, 64)), clip(no.Message, 512), clip(no.Hint, 512))
	}
	return resp, nil
}

func (m *Mesh) serveJoin(s network.Stream) {
	select {
	case m.joins <- struct{}{}:
		defer func() { <-m.joins }()
	default:
		s.Reset()
		return
	}
	s.SetDeadline(time.Now().Add(joinTimeout))
	req := new(peerv1.JoinRequest)
	if err := readFrame(bufio.NewReader(s), req, maxHelloFrame); err != nil {
		m.log.Debug("join request", "err", err)
		s.Reset()
		return
	}
	from := mesh.PeerID(s.Conn().RemotePeer().String())
	resp, err := m.grant(from, req)
	if err != nil {
		f := fault.From(err)
		m.log.Info("refused a join request", "peer", from, "addr", s.Conn().RemoteMultiaddr(), "reason", f.Message, "err", f.Err)
		resp = &peerv1.JoinResponse{Refusal: refusal(f.Code, f.Message, f.Hint)}
	}
	finish(s, writeFrame(s, resp, maxJoinFrame))
}

// grant decides about one join request and makes the certificates.
func (m *Mesh) grant(from mesh.PeerID, req *peerv1.JoinRequest) (*peerv1.JoinResponse, error) {
	c, now := m.credentials(), m.cfg.Clock()
	key, err := membership.KeyOf(from)
	if err != nil {
		return nil, fault.Wrap(fault.Unsupported, err, "this identity cannot be a member", "members have Ed25519 identities")
	}
	if reason, denied := m.cfg.Deny(from); denied {
		return nil, fault.New(fault.Forbidden, "denied: "+reason, "ask the owner of the mesh")
	}
	cannotIssue := fault.New(fault.Unsupported, "this node cannot admit members", "ask a node of tier own that has met the founding node")
	switch k := req.Kind.(type) {
	case *peerv1.JoinRequest_Redeem:
		if c.issuer == nil {
			return nil, cannotIssue
		}
		row, err := m.tickets.Redeem(k.Redeem.Secret, from, now)
		if err != nil {
			return nil, err
		}
		resp := &peerv1.JoinResponse{Members: m.records(from)}
		if resp.Chain, err = membership.IssueMember(m.key, c.issuer, key, row.Tier, row.Roles, now); err != nil {
			return nil, err
		}
		if row.Tier == membership.Own && c.secret != nil {
			resp.Issuer = m.delegate(c, key, now)
		}
		m.table.admitted(from)
		m.log.Info("admitted a machine", "peer", from, "name", clip(k.Redeem.Name, maxName), "tier", row.Tier)
		return resp, nil
	case *peerv1.JoinRequest_Renew:
		if c.issuer == nil {
			return nil, cannotIssue
		}
		old, err := membership.Verify(c.root, k.Renew.Chain, from, now)
		if err != nil && !errors.Is(err, membership.ErrExpired) {
			return nil, fault.Wrap(fault.Unauthorized, err, "only members can renew: "+err.Error(), "join with a ticket: 'beam node join <ticket>'")
		}
		resp := new(peerv1.JoinResponse)
		if resp.Chain, err = membership.IssueMember(m.key, c.issuer, key, old.Tier, old.Roles, now); err != nil {
			return nil, err
		}
		if old.Tier == membership.Own && c.secret != nil {
			resp.Issuer = m.delegate(c, key, now)
		}
		return resp, nil
	case *peerv1.JoinRequest_Delegate:
		if c.secret == nil {
			return nil, fault.New(fault.Unsupported, "this node does not hold the root key", "ask the founding node")
		}
		old, err := membership.Verify(c.root, k.Delegate.Chain, from, now)
		if err != nil {
			return nil, fault.Wrap(fault.Unauthorized, err, err.Error(), "")
		}
		if old.Tier != membership.Own {
			return nil, fault.New(fault.Forbidden, "only nodes of tier own may admit others", "")
		}
		return &peerv1.JoinResponse{Issuer: m.delegate(c, key, now)}, nil
	}
	return nil, fault.New(fault.Unsupported, "unknown join request", "update this node")
}

func (m *Mesh) delegate(c *credentials, to ed25519.PublicKey, now time.Time) *peerv1.Certificate {
	return membership.IssueIssuer(c.secret, m.key.Public().(ed25519.PublicKey), to, now)
}

// CanInvite says whether this node holds an issuer certificate.
func (m *Mesh) CanInvite() bool {
	c := m.credentials()
	return c != nil && c.issuer != nil
}

// IssuerCertificate is this node's right to issue, as bytes to show to others
// (for example beside an API token it signed), if it has one.
func (m *Mesh) IssuerCertificate() ([]byte, bool) {
	c := m.credentials()
	if c == nil || c.issuer == nil {
		return nil, false
	}
	b, err := proto.Marshal(c.issuer)
	return b, err == nil
}

// CheckIssuer says whose right to issue in this mesh the bytes prove, offline.
func (m *Mesh) CheckIssuer(cert []byte) (mesh.PeerID, error) {
	c := m.credentials()
	if c == nil {
		return "", errNotStarted
	}
	var in peerv1.Certificate
	if err := proto.Unmarshal(cert, &in); err != nil {
		return "", fmt.Errorf("%w: %w", membership.ErrBadCertificate, err)
	}
	body, err := membership.VerifyIssuer(c.root, &in, "", m.cfg.Clock())
	if err != nil {
		return "", err
	}
	return membership.PeerOf(body.SubjectKey), nil
}

// Invite makes a ticket, on disk before it is returned. The node must be
// started: the ticket carries its addresses.
func (m *Mesh) Invite(_ context.Context, inv Invitation) (string, error) {
	c := m.credentials()
	if c == nil || m.usable() != nil {
		return "", fault.New(fault.Invalid, "this node is not running in a mesh", "start it with 'beam node up'")
	}
	if c.issuer == nil {
		return "", fault.New(fault.Forbidden, "this node cannot make tickets: it is of tier "+c.member.Tier+" or has not met the founding node yet",
			"run 'beam node invite' on a machine of tier own, for example the founding one")
	}
	addrs := m.addrTexts(membership.MaxTicketAddrs)
	if len(addrs) == 0 {
		return "", fault.New(fault.Unreachable, "this node has no address to put into a ticket", "connect it to a network, or start it with --listen")
	}
	if inv.Tier == "" {
		inv.Tier = membership.Own
	}
	if inv.Life == 0 {
		inv.Life = defaultTicketLife
	}
	secret, expires, err := m.tickets.Issue(inv.Tier, inv.Roles, inv.Life, m.cfg.Clock())
	if err != nil {
		return "", err
	}
	return membership.Ticket{Root: c.root, Issuer: m.self, Addrs: addrs, Secret: secret, Tier: inv.Tier, Roles: inv.Roles, Expires: expires}.Encode()
}

// Leave forgets the membership and what came with it, and tells the members that
// are connected, for at most 3 s; the identity stays. The founder's root key is
// kept under another name, because a mesh without it cannot grow issuers any
// more. All connections end; Close the mesh afterwards.
func (m *Mesh) Leave(ctx context.Context) error {
	c := m.credentials()
	if c == nil {
		return fault.New(fault.Invalid, "this machine is in no mesh", "nothing to leave")
	}
	if c.secret != nil {
		b, err := m.store.read(fileRoot)
		if err == nil {
			err = m.store.write(fileRoot+"."+m.ID()+".left", b)
		}
		if err != nil {
			return fmt.Errorf("leave mesh: %w", err)
		}
	}
	if err := m.forget(); err != nil {
		return fmt.Errorf("leave mesh: %w", err)
	}
	if m.usable() == nil {
		m.log.Info("left the mesh", "told", m.sayFarewell(ctx))
		for _, k := range m.table.list() {
			m.gate.closePeer(k.ID)
		}
	}
	return nil
}

// forget removes the files of the membership; none is written after it.
func (m *Mesh) forget() error {
	m.saving.Lock()
	defer m.saving.Unlock()
	m.mu.Lock()
	m.left = true
	m.mu.Unlock()
	return m.store.remove(fileMembership, fileRoot, fileTickets, fileMembers, fileLeft)
}

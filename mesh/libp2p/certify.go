package libp2p

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/membership"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
)

// Pauses of keepCertified.
const (
	certifyEvery    = time.Hour        // clocks jump, so look again even if nothing is due
	certifyRetry    = 30 * time.Second // after a failure
	certifyAtLeast  = time.Second      // between two attempts, however often somebody asks
	certifyAskLimit = 16               // issuers asked in one attempt
)

func (m *Mesh) certifyNow() {
	select {
	case m.renew <- struct{}{}:
	default:
	}
}

// keepCertified renews our certificates in time: by ourselves where we hold the
// right, else at any issuer. It also fetches the issuer certificate that a node
// of tier own lacks when its ticket came from a node without the root key.
func (m *Mesh) keepCertified() {
	for {
		wait := certifyEvery
		m.refreshOwn()
		ctx, cancel := context.WithTimeout(m.ctx, 3*joinTimeout)
		if m.needsMember() && !m.renewAnywhere(ctx) {
			wait = certifyRetry
		}
		if m.needsIssuer() {
			m.fetchIssuer(ctx) // otherwise the next root holder that comes up wakes us
		}
		cancel()
		if !m.rest(certifyAtLeast, nil) || !m.rest(wait, m.renew) {
			return
		}
	}
}

// rest waits for d or wake; false when the mesh closes.
func (m *Mesh) rest(d time.Duration, wake <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-wake:
		return true
	case <-m.ctx.Done():
		return false
	}
}

func (m *Mesh) needsMember() bool {
	return m.cfg.Clock().After(m.credentials().member.RenewAt())
}

func (m *Mesh) needsIssuer() bool {
	c := m.credentials()
	return c.member.Tier == membership.Own && (c.issuer == nil || m.issuerOld(c))
}

// issuerOld says that a third of the issuer certificate's life is over.
func (m *Mesh) issuerOld(c *credentials) bool {
	var b peerv1.CertificateBody
	if proto.Unmarshal(c.issuer.GetBody(), &b) != nil {
		return true
	}
	return m.cfg.Clock().Unix() > b.NotBeforeUnix+(b.NotAfterUnix-b.NotBeforeUnix)/3
}

// refreshOwn renews what needs nobody else: the founder's issuer certificate,
// and any issuer's own membership.
func (m *Mesh) refreshOwn() {
	c, now := m.credentials(), m.cfg.Clock()
	next := *c
	own := m.key.Public().(ed25519.PublicKey)
	if c.secret != nil && m.issuerOld(c) {
		next.issuer = m.delegate(c, own, now)
	}
	if next.issuer != nil && (m.needsMember() || next.issuer != c.issuer) {
		if _, err := membership.VerifyIssuer(c.root, next.issuer, m.self, now); err == nil {
			if chain, err := membership.IssueMember(m.key, next.issuer, own, c.member.Tier, c.member.Roles, now); err == nil {
				next.chain = chain
			}
		}
	}
	if next.issuer != c.issuer || next.chain != c.chain {
		m.adopt(&next)
	}
}

// adopt checks, stores and uses new credentials.
func (m *Mesh) adopt(c *credentials) bool {
	var err error
	if c.member, err = membership.Verify(c.root, c.chain, m.self, m.cfg.Clock()); err == nil {
		err = m.setCredentials(c)
	}
	if err != nil {
		m.log.Error("cannot use a new certificate", "err", err)
		return false
	}
	m.log.Info("certificate renewed", "until", c.member.NotAfter)
	return true
}

// renewAnywhere asks known nodes of tier own, connected ones first. Peers that
// refused the old certificate are greeted again with the new one.
func (m *Mesh) renewAnywhere(ctx context.Context) bool {
	c := m.credentials()
	for _, k := range m.issuers() {
		resp, err := m.askKnown(ctx, k, &peerv1.JoinRequest{Kind: &peerv1.JoinRequest_Renew{Renew: &peerv1.Renew{Chain: c.chain}}})
		if err != nil {
			m.log.Debug("renewing the certificate", "peer", k.ID, "err", err)
			continue
		}
		next := *c
		next.chain = resp.Chain
		if resp.Issuer != nil {
			next.issuer = resp.Issuer
		}
		if !m.adopt(&next) {
			continue
		}
		for _, k := range m.table.all() {
			if !m.gate.member(k.ID) {
				m.gate.closePeer(k.ID)
				m.table.retry(k.ID, m.cfg.Clock())
			}
		}
		return true
	}
	return false
}

// fetchIssuer asks connected holders of the root key for an issuer certificate.
func (m *Mesh) fetchIssuer(ctx context.Context) {
	c := m.credentials()
	for _, k := range m.table.all() {
		if !k.Connected || !slices.Contains(k.Features, featRoot) {
			continue
		}
		resp, err := m.askKnown(ctx, k, &peerv1.JoinRequest{Kind: &peerv1.JoinRequest_Delegate{Delegate: &peerv1.Delegate{Chain: c.chain}}})
		if err == nil {
			_, err = membership.VerifyIssuer(c.root, resp.Issuer, m.self, m.cfg.Clock())
		}
		if err != nil {
			m.log.Warn("cannot get the right to invite", "peer", k.ID, "err", err)
			continue
		}
		next := *c
		next.issuer = resp.Issuer
		if m.adopt(&next) {
			return
		}
	}
}

// issuers are the known nodes that may renew us, the likeliest first.
func (m *Mesh) issuers() []mesh.Member {
	all := slices.DeleteFunc(m.table.all(), func(k mesh.Member) bool { return k.Tier != membership.Own })
	rank := func(k mesh.Member) int {
		switch {
		case k.Connected && slices.Contains(k.Features, featIssuer):
			return 0
		case k.Connected:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(all, func(a, b mesh.Member) int { return cmp.Compare(rank(a), rank(b)) })
	return all[:min(len(all), certifyAskLimit)]
}

// askKnown sends a join request to a known peer over the bare host: an expired
// member has no other way in.
func (m *Mesh) askKnown(ctx context.Context, k mesh.Member, req *peerv1.JoinRequest) (*peerv1.JoinResponse, error) {
	dctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if err := m.host.Connect(dctx, peer.AddrInfo{ID: mustPeer(k.ID), Addrs: parseAddrs(k.Addrs)}); err != nil {
		return nil, err
	}
	return m.ask(ctx, k.ID, string(m.protocolID(protoJoin)), req)
}

package membership

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/beammesh/beammesh/mesh"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
)

// Why a chain is refused. ErrExpired is apart from the rest because an expired
// member may still renew.
var (
	ErrBadCertificate = errors.New("certificate is not valid")
	ErrOtherMesh      = errors.New("certificate is for another mesh")
	ErrExpired        = errors.New("certificate has expired")
	ErrNotYetValid    = errors.New("certificate is not valid yet: the clocks of the two machines differ by more than 15 minutes")
)

// Bounds of a certificate.
const (
	MaxRoles    = 16
	maxRole     = 64
	maxBody     = 4 << 10
	serialBytes = 16
)

// Member is what a verified chain says about its holder.
type Member struct {
	Peer      mesh.PeerID
	Tier      string
	Roles     []string
	NotBefore time.Time
	NotAfter  time.Time
	Serial    string // 32 hex digits
	Issuer    mesh.PeerID
	Founder   mesh.PeerID // the mesh's founding node, by the root's word
}

// RenewAt is when the holder should ask for a new certificate.
func (m Member) RenewAt() time.Time {
	return m.NotBefore.Add(m.NotAfter.Sub(m.NotBefore) / 3)
}

// IssueIssuer lets holder issue member certificates; root is the mesh's
// private key, founder the node that made the mesh.
func IssueIssuer(root ed25519.PrivateKey, founder, holder ed25519.PublicKey, now time.Time) *peerv1.Certificate {
	pub := root.Public().(ed25519.PublicKey)
	return sign(root, &peerv1.CertificateBody{
		Kind: peerv1.CertificateBody_KIND_ISSUER, RootKey: pub, SubjectKey: holder, SignerKey: pub, FounderKey: founder,
		Tier: Own, NotBeforeUnix: now.Unix(), NotAfterUnix: now.Add(IssuerLife).Unix(),
	})
}

// IssueMember signs a member certificate with the issuer's identity key and
// puts the issuer's own certificate beside it.
func IssueMember(issuer ed25519.PrivateKey, issuerCert *peerv1.Certificate, holder ed25519.PublicKey,
	tier string, roles []string, now time.Time) (*peerv1.Chain, error) {
	var ib peerv1.CertificateBody
	if err := proto.Unmarshal(issuerCert.GetBody(), &ib); err != nil {
		return nil, fmt.Errorf("%w: issuer: %v", ErrBadCertificate, err)
	}
	if !ValidTier(tier) {
		return nil, fmt.Errorf("tier %q: want own, invited or public", tier)
	}
	if len(roles) > MaxRoles {
		return nil, fmt.Errorf("%d roles, at most %d", len(roles), MaxRoles)
	}
	c := sign(issuer, &peerv1.CertificateBody{
		Kind: peerv1.CertificateBody_KIND_MEMBER, RootKey: ib.RootKey, SubjectKey: holder,
		SignerKey: issuer.Public().(ed25519.PublicKey), Tier: tier, Roles: roles,
		NotBeforeUnix: now.Unix(), NotAfterUnix: now.Add(MemberLife).Unix(),
	})
	return &peerv1.Chain{Member: c, Issuer: issuerCert}, nil
}

func sign(key ed25519.PrivateKey, b *peerv1.CertificateBody) *peerv1.Certificate {
	b.Serial = make([]byte, serialBytes)
	rand.Read(b.Serial) // never fails since Go 1.24
	body, err := proto.Marshal(b)
	if err != nil {
		panic(fmt.Sprintf("membership: marshal a certificate of ours: %v", err)) // only invalid UTF-8, checked by callers
	}
	return &peerv1.Certificate{Body: body, Signature: ed25519.Sign(key, message(domainCertificate, body))}
}

// Verify checks that c proves membership of holder in root's mesh at now. With
// ErrExpired the Member is returned too, its signatures are good.
func Verify(root ed25519.PublicKey, c *peerv1.Chain, holder mesh.PeerID, now time.Time) (Member, error) {
	ib, err := VerifyIssuer(root, c.GetIssuer(), "", now)
	expired := errors.Is(err, ErrExpired)
	if err != nil && !expired {
		return Member{}, fmt.Errorf("issuer: %w", err)
	}
	b, err := open(c.GetMember(), root, ed25519.PublicKey(ib.SubjectKey), peerv1.CertificateBody_KIND_MEMBER)
	if err != nil {
		return Member{}, err
	}
	if !ValidTier(b.Tier) || len(b.Roles) > MaxRoles {
		return Member{}, fmt.Errorf("%w: tier %q, %d roles", ErrBadCertificate, b.Tier, len(b.Roles))
	}
	for _, r := range b.Roles {
		if len(r) > maxRole {
			return Member{}, fmt.Errorf("%w: role of %d bytes", ErrBadCertificate, len(r))
		}
	}
	m := Member{
		Peer: PeerOf(b.SubjectKey), Tier: b.Tier, Roles: b.Roles, Serial: fmt.Sprintf("%x", b.Serial),
		NotBefore: time.Unix(b.NotBeforeUnix, 0), NotAfter: time.Unix(b.NotAfterUnix, 0),
		Issuer: PeerOf(ib.SubjectKey), Founder: PeerOf(ib.FounderKey),
	}
	if m.Peer != holder {
		return Member{}, fmt.Errorf("%w: it belongs to %s, shown by %s", ErrBadCertificate, m.Peer, holder)
	}
	if err := judge(b, now); err != nil {
		return m, err
	}
	if expired {
		return m, fmt.Errorf("issuer: %w", ErrExpired)
	}
	return m, nil
}

// VerifyIssuer checks an issuer certificate; holder "" accepts any. With
// ErrExpired the body is returned too.
func VerifyIssuer(root ed25519.PublicKey, c *peerv1.Certificate, holder mesh.PeerID, now time.Time) (*peerv1.CertificateBody, error) {
	b, err := open(c, root, root, peerv1.CertificateBody_KIND_ISSUER)
	if err != nil {
		return nil, err
	}
	if len(b.FounderKey) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%w: no founder", ErrBadCertificate)
	}
	if holder != "" && PeerOf(b.SubjectKey) != holder {
		return nil, fmt.Errorf("%w: issuer certificate belongs to %s", ErrBadCertificate, PeerOf(b.SubjectKey))
	}
	return b, judge(b, now)
}

// open checks all of a certificate but its times.
func open(c *peerv1.Certificate, root, signer ed25519.PublicKey, kind peerv1.CertificateBody_Kind) (*peerv1.CertificateBody, error) {
	switch {
	case c == nil:
		return nil, fmt.Errorf("%w: it is missing", ErrBadCertificate)
	case len(c.Body) > maxBody:
		return nil, fmt.Errorf("%w: %d bytes", ErrBadCertificate, len(c.Body))
	case len(root) != ed25519.PublicKeySize || len(signer) != ed25519.PublicKeySize:
		return nil, fmt.Errorf("%w: key size", ErrBadCertificate)
	}
	b := new(peerv1.CertificateBody)
	if err := proto.Unmarshal(c.Body, b); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrBadCertificate, err)
	}
	switch {
	case b.Kind != kind:
		return nil, fmt.Errorf("%w: kind %v, want %v", ErrBadCertificate, b.Kind, kind)
	case len(b.SubjectKey) != ed25519.PublicKeySize || len(b.Serial) != serialBytes:
		return nil, fmt.Errorf("%w: field sizes", ErrBadCertificate)
	case !root.Equal(ed25519.PublicKey(b.RootKey)):
		return nil, ErrOtherMesh
	case !signer.Equal(ed25519.PublicKey(b.SignerKey)):
		return nil, fmt.Errorf("%w: signed by somebody else", ErrBadCertificate)
	case !ed25519.Verify(signer, message(domainCertificate, c.Body), c.Signature):
		return nil, fmt.Errorf("%w: wrong signature", ErrBadCertificate)
	}
	return b, nil
}

func judge(b *peerv1.CertificateBody, now time.Time) error {
	if now.Add(Leeway).Before(time.Unix(b.NotBeforeUnix, 0)) {
		return ErrNotYetValid
	}
	if now.Add(-Leeway).After(time.Unix(b.NotAfterUnix, 0)) {
		return ErrExpired
	}
	return nil
}

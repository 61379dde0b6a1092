package membership

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/beammesh/beammesh/mesh"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
)

// chain is root r, founder f, issuer i, member m.
func chain(t testing.TB, tier string, now time.Time) *peerv1.Chain {
	t.Helper()
	c, err := IssueMember(key("i"), IssueIssuer(key("r"), pub("f"), pub("i"), now), pub("m"), tier, []string{"worker"}, now)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestVerify(t *testing.T) {
	m, err := Verify(pub("r"), chain(t, Invited, t0), PeerOf(pub("m")), t0)
	if err != nil {
		t.Fatal(err)
	}
	if m.Tier != Invited || m.Roles[0] != "worker" || m.Issuer != PeerOf(pub("i")) || m.Founder != PeerOf(pub("f")) || len(m.Serial) != 32 {
		t.Errorf("got %+v", m)
	}
	if got, want := m.RenewAt(), t0.Add(MemberLife/3); !got.Equal(want) {
		t.Errorf("renew at %v, want %v", got, want)
	}
}

func TestVerifyRefuses(t *testing.T) {
	member := PeerOf(pub("m"))
	good := chain(t, Own, t0)
	mine := IssueIssuer(key("x"), pub("x"), pub("i"), t0) // another root
	selfMade, _ := IssueMember(key("m"), good.Issuer, pub("m"), Own, nil, t0)
	flip := func(c *peerv1.Certificate, at int) *peerv1.Certificate {
		c = proto.Clone(c).(*peerv1.Certificate)
		c.Body[at%len(c.Body)] ^= 1
		return c
	}
	for _, c := range []struct {
		name   string
		chain  *peerv1.Chain
		holder mesh.PeerID
		now    time.Time
		want   error
	}{
		{"nothing", nil, member, t0, ErrBadCertificate},
		{"no issuer", &peerv1.Chain{Member: good.Member}, member, t0, ErrBadCertificate},
		{"another mesh", &peerv1.Chain{Member: good.Member, Issuer: mine}, member, t0, ErrOtherMesh},
		{"shown by somebody else", good, PeerOf(pub("z")), t0, ErrBadCertificate},
		{"signed by the member itself", selfMade, member, t0, ErrBadCertificate},
		{"issuer certificate as membership", &peerv1.Chain{Member: good.Issuer, Issuer: good.Issuer}, PeerOf(pub("i")), t0, ErrBadCertificate},
		{"membership as issuer", &peerv1.Chain{Member: good.Member, Issuer: good.Member}, member, t0, ErrBadCertificate},
		{"bit flipped in the signature's body", &peerv1.Chain{Member: flip(good.Member, 90), Issuer: good.Issuer}, member, t0, nil},
		{"too early", good, member, t0.Add(-Leeway - time.Second), ErrNotYetValid},
		{"too late", good, member, t0.Add(MemberLife + Leeway + time.Second), ErrExpired},
		{"issuer too late", good, member, t0.Add(IssuerLife + Leeway + time.Second), ErrExpired},
	} {
		_, err := Verify(pub("r"), c.chain, c.holder, c.now)
		if err == nil || (c.want != nil && !errors.Is(err, c.want)) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	for name, now := range map[string]time.Time{"early": t0.Add(-Leeway + time.Second), "late": t0.Add(MemberLife + Leeway - time.Second)} {
		if _, err := Verify(pub("r"), good, member, now); err != nil {
			t.Errorf("%s within the leeway: %v", name, err)
		}
	}
	// An expired member is still known, so that it can renew.
	m, err := Verify(pub("r"), good, member, t0.Add(2*MemberLife))
	if !errors.Is(err, ErrExpired) || m.Peer != member {
		t.Errorf("expired: got %+v, %v", m, err)
	}
	// A member must not become an issuer by signing with its own key.
	forged, _ := IssueMember(key("m"), good.Issuer, pub("z"), Own, nil, t0)
	if _, err := Verify(pub("r"), forged, PeerOf(pub("z")), t0); !errors.Is(err, ErrBadCertificate) {
		t.Errorf("forged by a member: %v", err)
	}
}

func TestSignDataIsNoCertificate(t *testing.T) {
	good := chain(t, Own, t0)
	// Whoever gets a peer to sign arbitrary data must not hold a certificate then.
	sig := SignData(key("i"), good.Member.Body)
	c := &peerv1.Chain{Member: &peerv1.Certificate{Body: good.Member.Body, Signature: sig}, Issuer: good.Issuer}
	if _, err := Verify(pub("r"), c, PeerOf(pub("m")), t0); !errors.Is(err, ErrBadCertificate) {
		t.Errorf("data signature accepted as a certificate: %v", err)
	}
	if err := VerifyData(PeerOf(pub("i")), good.Member.Body, sig); err != nil {
		t.Error(err)
	}
	if err := VerifyData(PeerOf(pub("i")), []byte("other"), sig); err == nil {
		t.Error("signature over other data accepted")
	}
	if err := VerifyData(PeerOf(pub("m")), good.Member.Body, sig); err == nil {
		t.Error("signature of another peer accepted")
	}
}

func TestPeerID(t *testing.T) {
	p := PeerOf(pub("m"))
	k, err := KeyOf(p)
	if err != nil || !k.Equal(pub("m")) {
		t.Fatalf("got %x, %v", k, err)
	}
	for _, bad := range []mesh.PeerID{"", "x", "12D3", p + "a", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", mesh.PeerID(make([]byte, 100))} {
		if _, err := KeyOf(bad); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
	if id := MeshID(pub("r")); len(id) != 10 {
		t.Errorf("mesh id %q", id)
	}
}

func FuzzVerify(f *testing.F) {
	good := chain(f, Own, t0)
	b, _ := proto.Marshal(good)
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Fuzz(func(t *testing.T, in []byte) {
		var c peerv1.Chain
		if proto.Unmarshal(in, &c) != nil {
			return
		}
		m, err := Verify(pub("r"), &c, PeerOf(pub("m")), t0)
		// The serial is random, all else of the one certificate ever signed is known.
		if err == nil && (m.Tier != Own || m.Issuer != PeerOf(pub("i")) || m.Founder != PeerOf(pub("f")) || !m.NotBefore.Equal(t0)) {
			t.Fatalf("accepted a certificate nobody signed: %+v", m)
		}
	})
}

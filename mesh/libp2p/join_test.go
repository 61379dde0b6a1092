package libp2p

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh/membership"
	"github.com/beammesh/beammesh/mesh/meshtest"
	"github.com/beammesh/beammesh/proto/fault"
)

// wantFault checks code, a part of the message and that there is a hint.
func wantFault(t *testing.T, what string, err error, code fault.Code, says string) {
	t.Helper()
	var f *fault.Error
	if !errors.As(err, &f) {
		t.Errorf("%s: got %v, want a fault", what, err)
		return
	}
	if f.Code != code || !strings.Contains(f.Message, says) || f.Hint == "" {
		t.Errorf("%s: got %s %q (hint %q), want %s with %q", what, f.Code, f.Message, f.Hint, code, says)
	}
}

// otherLetter is a ticket letter that is not c.
func otherLetter(c byte) string {
	if c == 'a' {
		return "b"
	}
	return "a"
}

func TestJoinTickets(t *testing.T) {
	now := time.Now()
	cfg := testConfig(t, "founder")
	cfg.Clock = func() time.Time { return now }
	founder := founded(t, cfg, nil)
	other := founded(t, testConfig(t, "elsewhere"), nil)
	newcomer := opened(t, testConfig(t, "newcomer"))

	good := invited(t, founder, Invitation{Tier: membership.Invited, Roles: []string{"worker"}})
	wantFault(t, "own ticket", opened(t, func() Config {
		// the founder's identity on another directory
		c := testConfig(t, "copy")
		copyFile(t, filepath.Join(cfg.DataDir, fileIdentity), filepath.Join(c.DataDir, fileIdentity))
		return c
	}()).Join(timeout(t), good), fault.Conflict, "made the ticket itself")
	wantFault(t, "damaged", newcomer.Join(timeout(t), good[:100]+otherLetter(good[100])+good[101:]), fault.Invalid, "damaged")
	wantFault(t, "cut", newcomer.Join(timeout(t), good[:100]), fault.Invalid, "cut off")
	if newcomer.Joined() {
		t.Fatal("a bad ticket made a member")
	}

	if err := newcomer.Join(timeout(t), good); err != nil {
		t.Fatal(err)
	}
	if newcomer.ID() != founder.ID() || newcomer.Founder() != founder.PeerID() || newcomer.Tier() != membership.Invited || newcomer.CanInvite() {
		t.Errorf("after join: mesh %s, founder %s, tier %s, can invite %v", newcomer.ID(), newcomer.Founder(), newcomer.Tier(), newcomer.CanInvite())
	}
	wantFault(t, "joining twice", newcomer.Join(timeout(t), good), fault.Conflict, "already in mesh")

	third := opened(t, testConfig(t, "third"))
	wantFault(t, "used", third.Join(timeout(t), good), fault.Conflict, "used already")

	forged, err := membership.Decode(invited(t, other, Invitation{}), now)
	if err != nil {
		t.Fatal(err)
	}
	real, _ := membership.Decode(good, now)
	unknown := real
	unknown.Secret = forged.Secret
	wantFault(t, "secret of another issuer", third.Join(timeout(t), unknown.String()), fault.Unauthorized, "did not make the ticket")
	moved := forged
	moved.Issuer, moved.Addrs = real.Issuer, real.Addrs
	wantFault(t, "issuer in another mesh", third.Join(timeout(t), moved.String()), fault.NotFound, "not in that mesh")
	impostor := real
	impostor.Addrs = forged.Addrs // another node answers there
	wantFault(t, "somebody else at the address", opened(t, testConfig(t, "fresh")).Join(timeout(t), impostor.String()), fault.Unreachable, "cannot reach")

	short := invited(t, founder, Invitation{Life: time.Minute})
	now = now.Add(time.Minute + membership.Leeway + time.Second) // the issuer's clock; ours still holds it for fresh
	wantFault(t, "expired", third.Join(timeout(t), short), fault.Expired, "expired")

	last := invited(t, founder, Invitation{})
	if err := founder.Close(); err != nil {
		t.Fatal(err)
	}
	wantFault(t, "issuer gone", third.Join(timeout(t), last), fault.Unreachable, "cannot reach")
	if third.Joined() {
		t.Error("a bad ticket made a member")
	}
	wantFault(t, "start without a mesh", third.Start(t.Context()), fault.Invalid, "in no mesh")
}

// What the issuer wrote before it answered is what it knows after kill -9: a
// copy of its directory, taken while it runs, is what a kill leaves.
func TestUsedTicketStaysUsedAfterKill(t *testing.T) {
	cfg := testConfig(t, "founder")
	founder := founded(t, cfg, nil)
	ticket := invited(t, founder, Invitation{})
	if err := opened(t, testConfig(t, "a")).Join(timeout(t), ticket); err != nil {
		t.Fatal(err)
	}
	again := testConfig(t, "founder")
	for _, f := range []string{fileIdentity, fileRoot, fileMembership, fileTickets, filePort} {
		copyFile(t, filepath.Join(cfg.DataDir, f), filepath.Join(again.DataDir, f))
	}
	if err := founder.Close(); err != nil {
		t.Fatal(err)
	}
	restarted := started(t, opened(t, again), nil)
	tk, _ := membership.Decode(ticket, time.Now())
	tk.Addrs = restarted.Addrs()
	wantFault(t, "used before the kill", opened(t, testConfig(t, "b")).Join(timeout(t), tk.String()), fault.Conflict, "used already")
}

func TestSecondNodeInvitesAndFounderMayBeGone(t *testing.T) {
	founder := founded(t, testConfig(t, "founder"), nil)
	secondCfg, thirdCfg := testConfig(t, "second"), testConfig(t, "third")
	second := joined(t, founder, secondCfg, Invitation{}, nil)
	if !second.CanInvite() {
		t.Fatal("a node of tier own cannot invite")
	}
	cert, _ := second.IssuerCertificate()
	if who, err := founder.CheckIssuer(cert); err != nil || who != second.PeerID() {
		t.Errorf("issuer certificate of %s, %v", who, err)
	}
	if _, err := founded(t, testConfig(t, "elsewhere"), nil).CheckIssuer(cert); !errors.Is(err, membership.ErrOtherMesh) {
		t.Errorf("issuer certificate in another mesh: %v", err)
	}
	third := joined(t, second, thirdCfg, Invitation{}, nil)
	meshtest.AwaitUp(t, third, founder.PeerID()) // learned from second
	meshtest.AwaitUp(t, third, second.PeerID())
	// third's ticket came from a node without the root key; the founder gives
	// it the right to invite when they meet.
	meshtest.AwaitUp(t, founder, third.PeerID())
	for next := third.certified(); !third.CanInvite(); next = third.certified() {
		select {
		case <-next:
		case <-timeout(t).Done():
			t.Fatal("the founder did not give the right to invite")
		}
	}

	for _, m := range []*Mesh{founder, second, third} {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// Only these two come back, on the same ports or others.
	second, third = started(t, opened(t, secondCfg), nil), started(t, opened(t, thirdCfg), nil)
	meshtest.AwaitUp(t, second, third.PeerID())
	meshtest.AwaitUp(t, third, second.PeerID())
	fourth := joined(t, third, testConfig(t, "fourth"), Invitation{Tier: membership.Invited}, nil)
	meshtest.AwaitUp(t, fourth, second.PeerID())
	meshtest.AwaitUp(t, fourth, third.PeerID())
	if fourth.Founder() != founder.PeerID() {
		t.Errorf("founder %s, want %s", fourth.Founder(), founder.PeerID())
	}
	if _, err := fourth.Invite(t.Context(), Invitation{}); err == nil {
		t.Error("a node of tier invited made a ticket")
	}
}

func TestDataDirectory(t *testing.T) {
	cfg := testConfig(t, "one")
	m := opened(t, cfg)
	_, err := New(t.Context(), cfg)
	wantFault(t, "second process", err, fault.Conflict, "in use")
	id := m.PeerID()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(cfg.DataDir, fileIdentity)
	st, err := os.Stat(key)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("identity key: %v, %v", st, err)
	}
	m = opened(t, cfg)
	if m.PeerID() != id {
		t.Errorf("identity changed from %s to %s", id, m.PeerID())
	}
	m.Close()
	os.Chmod(key, 0o644)
	_, err = New(t.Context(), cfg)
	wantFault(t, "readable key", err, fault.Forbidden, "read by others")
	os.Chmod(key, 0o600)
	os.WriteFile(key, []byte("xyz"), 0o600)
	_, err = New(t.Context(), cfg)
	wantFault(t, "damaged key", err, fault.Invalid, "damaged")
}

func TestLeave(t *testing.T) {
	cfg := testConfig(t, "one")
	m := founded(t, cfg, nil)
	first := m.ID()
	if err := m.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, fileMembers)); err == nil {
		t.Error("the member table came back after leave")
	}
	m = opened(t, cfg)
	if m.Joined() {
		t.Fatal("still joined after leave")
	}
	if err := m.Found(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m.ID() == first {
		t.Error("the new mesh is the old one")
	}
	if left, _ := filepath.Glob(filepath.Join(cfg.DataDir, "root.key.*.left")); len(left) != 1 {
		t.Errorf("the left mesh's root key: %v", left)
	}
}

// An expired member has nothing but the right to renew, and uses it by itself.
func TestExpiredMemberRenews(t *testing.T) {
	later := 2 * membership.MemberLife
	fc, mc := testConfig(t, "founder"), testConfig(t, "member")
	founder := founded(t, fc, nil)
	member := joined(t, founder, mc, Invitation{Tier: membership.Invited}, nil)
	id := member.PeerID()
	meshtest.AwaitUp(t, founder, id)
	member.Close()
	founder.Close()

	clock := func() time.Time { return time.Now().Add(later) }
	fc.Clock, mc.Clock = clock, clock
	founder = started(t, opened(t, fc), nil)
	member = started(t, opened(t, mc), nil)
	meshtest.AwaitUp(t, founder, id)
	meshtest.AwaitUp(t, member, founder.PeerID())
	if until := member.credentials().member.NotAfter; until.Before(clock()) {
		t.Errorf("certificate still ends at %v", until)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

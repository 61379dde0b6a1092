package token

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
)

// world is a mesh with a root and one issuer.
type world struct {
	mesh   string
	root   ed25519.PrivateKey
	issuer *Issuer
	now    time.Time
}

func (w *world) public() ed25519.PublicKey { return w.root.Public().(ed25519.PublicKey) }

func newWorld(t testing.TB, mesh string) *world {
	t.Helper()
	_, root, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{mesh: mesh, root: root, now: time.Now()}
	w.issuer = w.newIssuer(t, w.now.Add(-time.Hour), w.now.Add(7*24*time.Hour))
	return w
}

func (w *world) newIssuer(t testing.TB, from, to time.Time) *Issuer {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	del, err := Delegate(w.root, Delegation{Mesh: w.mesh, Key: pub, Name: "12D3KooWbox1", NotBefore: from, NotAfter: to})
	if err != nil {
		t.Fatal(err)
	}
	i, err := NewIssuer(key, del)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func (w *world) verifier(deny *DenySet) *Verifier {
	v := NewVerifier(w.mesh, w.public(), deny)
	v.now = func() time.Time { return w.now }
	return v
}

func issue(t testing.TB, i *Issuer, c Claims) string {
	t.Helper()
	s, err := i.Issue(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestIssueAndVerify(t *testing.T) {
	w := newWorld(t, "aa11bb22cc")
	s := issue(t, w.issuer, Claims{ID: NewID(), Workspace: "w1", Scopes: []Scope{Invoke}, Expires: w.now.Add(time.Hour)})
	if len(s) < 64 || len(s) > 1024 {
		t.Errorf("token is %d characters", len(s))
	}
	for _, r := range s {
		if r <= ' ' || r > '~' {
			t.Fatalf("character %q in a token", r)
		}
	}
	v := w.verifier(nil)
	for _, bearer := range []string{s, "Bearer " + s, "bearer  " + s + "\n"} {
		c, err := v.Verify(bearer)
		if err != nil || c.Workspace != "w1" || c.IssuerKey != w.issuer.KeyID() {
			t.Fatalf("%+v %v", c, err)
		}
	}
	c, err := v.Verify(s)
	if err != nil {
		t.Fatal(err)
	}
	for scope, ok := range map[Scope]bool{Read: true, Invoke: true, Deploy: false, Admin: false, "task:result": false} {
		err := c.Require(scope)
		if (err == nil) != ok {
			t.Errorf("invoke token for %s: %v", scope, err)
		}
		if err != nil && (fault.CodeOf(err) != fault.Forbidden || fault.From(err).Hint == "") {
			t.Errorf("refusal of %s: %+v", scope, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	w, other := newWorld(t, "aa11bb22cc"), newWorld(t, "dd33ee44ff")
	usurper := newWorld(t, "aa11bb22cc") // same mesh id, another root
	good := Claims{ID: "t1", Workspace: "w1", Scopes: []Scope{Admin}, Issued: w.now}
	s := issue(t, w.issuer, good)
	attempt := good
	attempt.Audience, attempt.Task, attempt.Attempt, attempt.Expires = "peer2", "task1", 1, w.now.Add(time.Hour)
	withTime := func(iat, exp time.Duration) string {
		c := good
		c.Issued, c.Expires = w.now.Add(iat), w.now.Add(exp)
		return issue(t, w.issuer, c)
	}
	revocation, err := w.issuer.Revoke("t9", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	flipped := []byte(s)
	flipped[20] ^= 1
	for name, c := range map[string]struct {
		bearer string
		code   fault.Code
		text   string
	}{
		"missing":         {"", fault.Unauthorized, "no token"},
		"only the scheme": {"Bearer ", fault.Unauthorized, "no token"},
		"a word":          {"hunter2", fault.Unauthorized, "malformed"},
		"other PASETO":    {"v4.local." + s[10:], fault.Unauthorized, "malformed"},
		"too long":        {"v4.public." + strings.Repeat("A", MaxBytes), fault.Unauthorized, "malformed"},
		"cut":             {s[:len(s)-9], fault.Unauthorized, ""},
		"flipped":         {string(flipped), fault.Unauthorized, "altered"},
		"other mesh":      {issue(t, other.issuer, good), fault.Unauthorized, `"dd33ee44ff"`},
		"other root":      {issue(t, usurper.issuer, good), fault.Unauthorized, "not appointed"},
		"expired":         {withTime(-time.Hour, -16*time.Minute), fault.Expired, "expired"},
		"from the future": {withTime(16*time.Minute, time.Hour), fault.Unauthorized, "future"},
		"attempt's":       {issue(t, w.issuer, attempt), fault.Forbidden, "one attempt"},
		"a revocation":    {revocation, fault.Unauthorized, "altered"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.verifier(nil).Verify(c.bearer)
			f := fault.From(err)
			if err == nil || f.Code != c.code || !strings.Contains(f.Message, c.text) || f.Hint == "" {
				t.Fatalf("got %+v, want code %s and %q", f, c.code, c.text)
			}
		})
	}
	// Ten minutes of skew either way are fine.
	for _, s := range []string{withTime(-time.Hour, -10*time.Minute), withTime(10*time.Minute, time.Hour)} {
		if _, err := w.verifier(nil).Verify(s); err != nil {
			t.Errorf("within the leeway: %v", err)
		}
	}
}

func TestEveryFlippedBitIsNoticed(t *testing.T) {
	w := newWorld(t, "aa11bb22cc")
	s := issue(t, w.issuer, Claims{ID: "t1", Workspace: "w1"})
	v := w.verifier(nil)
	for i := range s {
		b := []byte(s)
		b[i] ^= 1
		if c, err := v.Verify(string(b)); err == nil && strings.TrimSpace(string(b)) != s {
			// base64 has unused bits at the end of a part: what they decode to is
			// the same message, so it is the same token.
			if c.ID != "t1" || c.Workspace != "w1" {
				t.Fatalf("byte %d flipped: %+v", i, c)
			}
		}
	}
}

func TestIssuerEndsButItsTokensLive(t *testing.T) {
	w := newWorld(t, "m")
	s := issue(t, w.issuer, Claims{ID: "t", Workspace: "w"})
	w.now = w.now.Add(30 * 24 * time.Hour)
	if _, err := w.verifier(nil).Verify(s); err != nil {
		t.Fatalf("token of an issuer whose time is over: %v", err)
	}
	w.issuer.now = func() time.Time { return w.now }
	if _, err := w.issuer.Issue(Claims{ID: "t", Workspace: "w"}); fault.CodeOf(err) != fault.Expired {
		t.Fatalf("issue after the end: %v", err)
	}
}

func TestAttemptToken(t *testing.T) {
	w := newWorld(t, "m")
	s := issue(t, w.issuer, Claims{ID: NewID(), Workspace: "w", Audience: "peer2", Task: "task1", Attempt: 2,
		Scopes: []Scope{"task:result"}, Expires: w.now.Add(time.Hour)})
	v := w.verifier(nil)
	c, err := v.VerifyAttempt(s, "peer2")
	if err != nil || c.Task != "task1" || c.Attempt != 2 || !c.Has("task:result") || c.Has(Read) {
		t.Fatalf("%+v %v", c, err)
	}
	if _, err := v.VerifyAttempt(s, "peer3"); fault.CodeOf(err) != fault.Forbidden {
		t.Fatalf("at another worker: %v", err)
	}
	api := issue(t, w.issuer, Claims{ID: "t", Workspace: "w", Scopes: []Scope{Admin}})
	if _, err := v.VerifyAttempt(api, "peer2"); fault.CodeOf(err) != fault.Forbidden {
		t.Fatalf("API token as a work order: %v", err)
	}
	if _, err := w.issuer.Issue(Claims{ID: "t", Workspace: "w", Audience: "peer2", Task: "t"}); fault.CodeOf(err) != fault.Invalid {
		t.Fatalf("attempt token without expiry: %v", err)
	}
}

func TestRevocation(t *testing.T) {
	w := newWorld(t, "m")
	path := filepath.Join(t.TempDir(), "deny")
	deny, err := OpenDenySet(path, w.mesh, w.public())
	if err != nil {
		t.Fatal(err)
	}
	v := w.verifier(deny)
	a := issue(t, w.issuer, Claims{ID: "a", Workspace: "w"})
	b := issue(t, w.issuer, Claims{ID: "b", Workspace: "w"})
	if _, err := v.Verify(a); err != nil {
		t.Fatal(err)
	}
	rev, err := w.issuer.Revoke("a", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if len(rev) > 1024 {
		t.Errorf("revocation is %d bytes, gossip takes 1024", len(rev))
	}
	if fresh, err := deny.Add(rev); !fresh || err != nil {
		t.Fatal(fresh, err)
	}
	if fresh, err := deny.Add(rev); fresh || err != nil {
		t.Fatal("the same revocation was news twice", err)
	}
	_, err = v.Verify(a) // remembered as good before
	if fault.CodeOf(err) != fault.Unauthorized || !strings.Contains(err.Error(), "revoked") {
		t.Fatalf("revoked token: %v", err)
	}
	if _, err := v.Verify(b); err != nil {
		t.Fatalf("other token: %v", err)
	}
	// A peer learns it; strangers cannot make it up.
	peer, err := OpenDenySet("", w.mesh, w.public())
	if err != nil {
		t.Fatal(err)
	}
	if peer.Digest() == deny.Digest() {
		t.Fatal("digests of different sets are equal")
	}
	for _, r := range deny.All() {
		if _, err := peer.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	if peer.Digest() != deny.Digest() {
		t.Fatal("digests of equal sets differ")
	}
	stranger, err := newWorld(t, "m").issuer.Revoke("b", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{stranger, b, "", "v4.public.AAAA", strings.Repeat("x", MaxBytes+1)} {
		if fresh, err := deny.Add(bad); fresh || fault.CodeOf(err) != fault.Unauthorized {
			t.Fatalf("%.20q was taken: %v %v", bad, fresh, err)
		}
	}
	// A whole issuer.
	all, err := w.issuer.Revoke(w.issuer.KeyID(), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := deny.Add(all); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(b); fault.CodeOf(err) != fault.Unauthorized {
		t.Fatalf("token of a revoked issuer: %v", err)
	}
	// It survives a restart after a crash that left half a line.
	if err := deny.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(rev[:40]); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	deny, err = OpenDenySet(path, w.mesh, w.public())
	if err != nil || !deny.Denied("a") || !deny.Denied(w.issuer.KeyID()) || deny.Denied("b") {
		t.Fatalf("after a restart: %v", err)
	}
	if err := deny.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDenySetForgetsWhatExpiredAnyway(t *testing.T) {
	w := newWorld(t, "m")
	s, err := OpenDenySet("", w.mesh, w.public())
	if err != nil {
		t.Fatal(err)
	}
	add := func(id string, until time.Time) bool {
		r, err := w.issuer.Revoke(id, until)
		if err != nil {
			t.Fatal(err)
		}
		fresh, err := s.Add(r)
		if err != nil {
			t.Fatal(err)
		}
		return fresh
	}
	add("short", w.now.Add(time.Hour))
	add("always", time.Time{})
	if add("always", w.now.Add(time.Hour)) {
		t.Error("a shorter revocation replaced a longer one")
	}
	if !add("short", time.Time{}) || !add("brief", w.now.Add(time.Minute)) {
		t.Error("a longer revocation was not news")
	}
	s.now = func() time.Time { return w.now.Add(2 * time.Hour) }
	if add("past", w.now.Add(time.Minute)) {
		t.Error("a revocation of an expired token was kept")
	}
	s.mu.Lock()
	s.pruneLocked()
	s.mu.Unlock()
	if s.Denied("brief") || !s.Denied("short") || !s.Denied("always") {
		t.Errorf("after pruning: %v", s.denied)
	}
}

func TestDenySetIsBounded(t *testing.T) {
	w := newWorld(t, "m")
	s, err := OpenDenySet("", w.mesh, w.public())
	if err != nil {
		t.Fatal(err)
	}
	for i := range MaxDenied {
		s.keepLocked(revocation{ID: fmt.Sprint(i)}, "")
	}
	r, err := w.issuer.Revoke("one more", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Add(r); fault.CodeOf(err) != fault.TooLarge {
		t.Fatalf("got %v", err)
	}
}

func TestRememberedTokensAreBounded(t *testing.T) {
	v := newWorld(t, "m").verifier(nil)
	for i := range maxRemembered + 10 {
		v.remember([32]byte{byte(i), byte(i >> 8)}, Claims{})
	}
	if len(v.known) != maxRemembered {
		t.Fatalf("%d remembered", len(v.known))
	}
}

func FuzzVerify(f *testing.F) {
	w := newWorld(f, "m")
	s := issue(f, w.issuer, Claims{ID: "t", Workspace: "w", Scopes: []Scope{Read}})
	f.Add(s)
	f.Add("v4.public.")
	f.Add("v4.public.AAAA.e30")
	f.Add("Bearer " + s[:100])
	f.Fuzz(func(t *testing.T, bearer string) {
		c, err := w.verifier(nil).Verify(bearer)
		if err == nil && (c.ID != "t" || c.Workspace != "w") {
			t.Fatalf("forged: %+v", c)
		}
		if err != nil && fault.From(err).Code == fault.Internal {
			t.Fatalf("internal error for outside bytes: %v", err)
		}
		set, err := OpenDenySet("", w.mesh, w.public())
		if err != nil {
			t.Fatal(err)
		}
		if fresh, _ := set.Add(bearer); fresh {
			t.Fatal("forged revocation")
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	w := newWorld(b, "m")
	s := issue(b, w.issuer, Claims{ID: "t", Workspace: "w"})
	for name, fresh := range map[string]bool{"first": true, "remembered": false} {
		b.Run(name, func(b *testing.B) {
			v := w.verifier(nil)
			for b.Loop() {
				if fresh {
					v = w.verifier(nil)
				}
				if _, err := v.Verify(s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

package node

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/meshtest"
	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/ledger/ledgertest"
	"github.com/beammesh/beammesh/node/token"
	"github.com/beammesh/beammesh/proto/fault"
)

type issuers struct {
	*tokens
	node *meshtest.Node
	tier string // that this node gives to its peers
}

// newIssuers makes the tokens of a founder and of others, which share a ledger.
func newIssuers(t *testing.T, names ...string) []*issuers {
	t.Helper()
	pub, root, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w := meshtest.NewNetwork()
	l := ledgertest.NewFake(nil)
	if _, err := l.Propose(t.Context(), ledger.PutWorkspace{ID: DefaultWorkspace, Name: DefaultWorkspace}); err != nil {
		t.Fatal(err)
	}
	var all []*issuers
	for i, name := range names {
		i := &issuers{node: w.Join(name), tier: map[bool]string{true: "own"}[i == 0]}
		var key ed25519.PrivateKey
		if len(all) == 0 {
			key, i.tier = root, "own"
		}
		i.open(t, t.TempDir(), pub, key)
		i.ledger = l
		i.spread = func(raw string) {
			for _, o := range all {
				o.heard(i.node.PeerID(), []byte(raw))
			}
		}
		i.node.Handle(protoDelegate, i.serve(func(mesh.PeerID) string { return i.tier }))
		i.node.Handle(protoRevoked, i.serveRevoked)
		i.node.Start()
		t.Cleanup(func() { _ = i.node.Close() })
		all = append(all, i)
	}
	return all
}

func (i *issuers) open(t *testing.T, dir string, pub ed25519.PublicKey, root ed25519.PrivateKey) {
	t.Helper()
	var err error
	log := slog.New(slog.DiscardHandler)
	if root != nil {
		i.tokens, err = openTokens(dir, i.node.ID(), i.node.PeerID(), pub, root, log)
	} else {
		i.tokens, err = openTokens(dir, i.node.ID(), i.node.PeerID(), pub, nil, log)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestDelegation(t *testing.T) {
	all := newIssuers(t, "founder", "member", "guest")
	founder, member, guest := all[0], all[1], all[2]
	if _, err := member.current(); fault.CodeOf(err) != fault.Unreachable {
		t.Errorf("a member without a delegation issues: %v", err)
	}
	if member.attempt("ws", "w", "lease") != "" {
		t.Error("made an attempt token without the right")
	}
	if err := member.fetch(t.Context(), member.node, founder.node.PeerID()); err != nil {
		t.Fatal(err)
	}
	_, bearer, err := member.Issue(t.Context(), DefaultWorkspace, "mine", []token.Scope{token.Invoke}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range all { // every node checks it, without asking
		id, err := n.api().Identify(t.Context(), bearer)
		if err != nil || id.Workspace != DefaultWorkspace || id.Require(token.Invoke) != nil || id.Require(token.Admin) == nil {
			t.Errorf("%s: %+v, %v", n.node.Self().Name, id, err)
		}
	}
	// It is still there after a restart, with the same key.
	dir := member.dir
	key := member.key
	member.open(t, dir, founder.rootPub, nil)
	if _, err := member.current(); err != nil || !member.key.Equal(key) {
		t.Errorf("after a restart: %v", err)
	}
	// Only for nodes of tier own, and only from the founder.
	founder.tier = "invited"
	if err := guest.fetch(t.Context(), guest.node, founder.node.PeerID()); fault.CodeOf(err) != fault.Forbidden || !strings.Contains(err.Error(), "tier own") {
		t.Errorf("a guest got %v", err)
	}
	if err := guest.fetch(t.Context(), guest.node, member.node.PeerID()); fault.CodeOf(err) != fault.Forbidden {
		t.Errorf("a member gave %v", err)
	}
	if err := guest.fetch(t.Context(), guest.node, "nobody"); err == nil {
		t.Error("nobody gave a delegation")
	}
}

func TestRevocationSpreads(t *testing.T) {
	all := newIssuers(t, "founder", "member")
	founder, member := all[0], all[1]
	id, bearer, err := founder.Issue(t.Context(), DefaultWorkspace, "x", []token.Scope{token.Admin}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := member.api().Identify(t.Context(), bearer); err != nil {
		t.Fatal(err)
	}
	if err := member.Delete(t.Context(), DefaultWorkspace, id); fault.CodeOf(err) != fault.Unreachable {
		t.Errorf("revoked without the right: %v", err)
	}
	if err := founder.SetActive(t.Context(), DefaultWorkspace, id, false); err != nil {
		t.Fatal(err)
	}
	for _, n := range all {
		if _, err := n.api().Identify(t.Context(), bearer); fault.CodeOf(err) != fault.Unauthorized {
			t.Errorf("%s takes a revoked token: %v", n.node.Self().Name, err)
		}
	}
	if rec, _, err := ledger.Get[ledger.Token](t.Context(), founder.ledger, DefaultWorkspace, id, 0); err != nil || rec.Active {
		t.Errorf("the list says %+v, %v", rec, err)
	}
	if err := founder.SetActive(t.Context(), DefaultWorkspace, id, true); fault.CodeOf(err) != fault.Unsupported {
		t.Errorf("switched on again: %v", err)
	}
	if err := founder.Delete(t.Context(), DefaultWorkspace, "nobody"); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("deleted nobody: %v", err)
	}
	if err := founder.Delete(t.Context(), DefaultWorkspace, id); err != nil {
		t.Error(err)
	}
	member.heard("x", []byte("no revocation")) // does nothing
}

// What a greeting has no room for follows it, and reaches also those that were
// not greeted.
func TestManyRevocations(t *testing.T) {
	const many = 1000
	all := newIssuers(t, "founder", "member", "other")
	founder, member, other := all[0], all[1], all[2]
	issuer, err := founder.current()
	if err != nil {
		t.Fatal(err)
	}
	raws := make([]string, many)
	for i := range raws {
		if raws[i], err = issuer.Revoke(token.NewID(), time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := founder.deny.AddAll(append(raws, raws[0], "nonsense")); n != many || err == nil {
		t.Fatalf("took %d revocations, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	caught := make(chan *issuers, 16)
	for _, i := range all {
		spread := i.spread
		i.spread = func(text string) {
			spread(text)
			caught <- i
		}
		work.Go(func() { i.catchUp(ctx, i.node) })
	}
	greet := func(from, to *issuers) {
		a, b := newAdverts(from.node.PeerID(), from.log), newAdverts(to.node.PeerID(), to.log)
		a.deny, b.deny, b.differs = from.deny, to.deny, to.differs
		b.Remote(from.node.PeerID(), mesh.ViaMember, a.Local(to.node.PeerID()))
	}
	greet(founder, member)
	if n := len(member.deny.All()); n == 0 || n > maxRevocations {
		t.Errorf("%d came with the greeting", n)
	}
	for range 2 { // other is told by member's digest
		select {
		case <-caught:
		case <-time.After(time.Minute):
			t.Fatal("a node does not catch up")
		}
	}
	for _, i := range all {
		if n := len(i.deny.All()); n != many || i.deny.Digest() != founder.deny.Digest() {
			t.Errorf("%s knows %d of %d", i.node.Self().Name, n, many)
		}
	}
	// All know the same: greetings and digests lead to nothing any more.
	greet(founder, other)
	other.heard(member.node.PeerID(), []byte(digestPrefix+member.deny.Digest()))
	if n := len(other.behind); n != 0 {
		t.Errorf("%d peers are to be asked", n)
	}
}

// A container's token is good at its worker's sockets and nowhere else.
func TestAttemptTokens(t *testing.T) {
	all := newIssuers(t, "founder", "worker", "other")
	founder, worker, other := all[0], all[1], all[2]
	bearer := founder.attempt("ws", string(worker.node.PeerID()), "lease-1")
	if bearer == "" {
		t.Fatal("no token")
	}
	id, err := worker.inside().Identify(t.Context(), bearer)
	if err != nil || id.Workspace != "ws" || id.Require(token.Invoke) != nil || id.Require(token.Admin) == nil {
		t.Errorf("at its worker: %+v, %v", id, err)
	}
	for name, v := range map[string]interface{ check() error }{
		"another worker's socket": check(func() error { _, err := other.inside().Identify(t.Context(), bearer); return err }),
		"its worker's port":       check(func() error { _, err := worker.api().Identify(t.Context(), bearer); return err }),
		"the founder's port":      check(func() error { _, err := founder.api().Identify(t.Context(), bearer); return err }),
		"nonsense inside":         check(func() error { _, err := worker.inside().Identify(t.Context(), "nonsense"); return err }),
	} {
		if err := v.check(); err == nil {
			t.Errorf("%s takes it", name)
		}
	}
	_, api, err := founder.Issue(t.Context(), DefaultWorkspace, "x", []token.Scope{token.Read}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := worker.inside().Identify(t.Context(), api); err != nil {
		t.Errorf("a user's own token inside a container: %v", err)
	}
}

type check func() error

func (c check) check() error { return c() }

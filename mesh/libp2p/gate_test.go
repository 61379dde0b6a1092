package libp2p

import (
	"bufio"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	golibp2p "github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	msmux "github.com/multiformats/go-multistream"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/meshtest"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/proto/fault"
)

// stranger is a plain libp2p host with no membership.
func stranger(t *testing.T, opts ...golibp2p.Option) host.Host {
	t.Helper()
	h, err := golibp2p.New(append([]golibp2p.Option{golibp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), golibp2p.DisableRelay(),
		golibp2p.DisableMetrics(), golibp2p.ResourceManager(&network.NullResourceManager{})}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func connect(t *testing.T, h host.Host, m *Mesh) {
	t.Helper()
	if err := h.Connect(timeout(t), peer.AddrInfo{ID: m.host.ID(), Addrs: m.addrs()}); err != nil {
		t.Fatal(err)
	}
}

// tries opens a protocol, writes and reads: what a program behind it would do.
func tries(t *testing.T, h host.Host, to peer.ID, p protocol.ID) (got int, err error) {
	t.Helper()
	s, err := h.Network().NewStream(timeout(t), to)
	if err != nil {
		return 0, err
	}
	defer s.Reset()
	s.SetDeadline(time.Now().Add(meshtest.Patience))
	if err := msmux.SelectProtoOrFail(p, s); err != nil {
		return 0, err
	}
	s.Write(make([]byte, 32))
	return s.Read(make([]byte, 32))
}

// A stranger gets nothing from any protocol but the four, whichever the node
// serves: the list is read from the running node, so a new protocol that
// bypasses the gate fails here.
func TestStrangerGetsNothing(t *testing.T) {
	var handled atomic.Int32
	m := founded(t, testConfig(t, "founder"), map[string]mesh.Handler{"ask/1": func(ctx context.Context, s mesh.Stream) {
		handled.Add(1)
		meshtest.Echo(ctx, s)
	}})
	if _, err := m.Subscribe("offers", func(mesh.PeerID, []byte) { t.Error("a stranger's gossip was delivered") }); err != nil {
		t.Fatal(err)
	}
	prefix := "/beammesh/" + m.ID()
	open := []string{"/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0", prefix + "/hello/1", prefix + "/join/1"}
	served := m.host.Mux().Protocols()
	for _, want := range append([]string{prefix + "/ask/1", prefix + "/kad/1.0.0", "/meshsub/1.1.0", prefix + "/key/1"}, open...) {
		if !slices.Contains(served, protocol.ID(want)) {
			t.Errorf("the node does not serve %s, only %v", want, served)
		}
	}
	h := stranger(t)
	for _, p := range served {
		if slices.Contains(open, string(p)) {
			continue
		}
		connect(t, h, m)
		if n, err := tries(t, h, m.host.ID(), p); err == nil {
			t.Errorf("%s answered a stranger with %d bytes", p, n)
		}
	}
	if handled.Load() != 0 {
		t.Error("a stranger reached a handler")
	}
	if n := m.dir.dht.RoutingTable().Size(); n != 0 {
		t.Errorf("%d strangers in the routing table", n)
	}
	for _, k := range m.Members() {
		if k.ID != m.PeerID() {
			t.Errorf("a stranger is listed as a member: %+v", k)
		}
	}
	// We do not open anything to a stranger either.
	if _, err := m.Open(timeout(t), mesh.PeerID(h.ID().String()), "ask/1"); err == nil {
		t.Error("opened a stream to a stranger")
	}
	if _, err := m.gate.NewStream(timeout(t), h.ID(), "/meshsub/1.1.0"); err == nil {
		t.Error("opened a gossip stream to a stranger")
	}
}

// Without a membership a connection does not live on.
func TestStrangerIsClosed(t *testing.T) {
	m := founded(t, testConfig(t, "founder"), nil)
	h := stranger(t)
	gone := make(chan struct{})
	h.Network().Notify(&network.NotifyBundle{DisconnectedF: func(network.Network, network.Conn) { close(gone) }})
	connect(t, h, m)
	select {
	case <-gone:
	case <-time.After(strangerLife + meshtest.Patience):
		t.Fatal("a connection without membership is still open")
	}
}

// says sends a forged hello and gives the answer.
func says(t *testing.T, h host.Host, m *Mesh, hello *peerv1.Hello) *peerv1.Hello {
	t.Helper()
	connect(t, h, m)
	s, err := h.Network().NewStream(timeout(t), m.host.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	s.SetDeadline(time.Now().Add(meshtest.Patience))
	if err := msmux.SelectProtoOrFail(m.protocolID(protoHello), s); err != nil {
		t.Fatal(err)
	}
	if err := writeFrame(s, hello, maxHelloFrame); err != nil {
		t.Fatal(err)
	}
	var answer peerv1.Hello
	if err := readFrame(bufio.NewReader(s), &answer, maxHelloFrame); err != nil {
		t.Fatal(err)
	}
	return &answer
}

func TestForgedHello(t *testing.T) {
	hook := &hook{}
	cfg := testConfig(t, "founder")
	cfg.Hello = hook
	m := founded(t, cfg, nil)
	member := joined(t, m, testConfig(t, "member"), Invitation{}, nil)
	elsewhere := founded(t, testConfig(t, "elsewhere"), nil)
	for name, hello := range map[string]*peerv1.Hello{
		"no certificate":       {BootId: "x"},
		"another mesh":         {BootId: "x", Chain: elsewhere.credentials().chain},
		"a stolen certificate": {BootId: "x", Chain: member.credentials().chain},
		"out of bounds":        {BootId: "x", Chain: member.credentials().chain, Features: make([]string, maxFeatures+1)},
	} {
		h := stranger(t)
		answer := says(t, h, m, hello)
		if answer.Refusal == nil || answer.Refusal.Message == "" || answer.Refusal.Hint == "" {
			t.Errorf("%s: not refused with a reason: %v", name, answer)
		}
		if answer.Chain != nil || answer.Name != "" || len(answer.Addrs) > 0 || len(answer.Protocols) > 0 || answer.BootId != "" {
			t.Errorf("%s: a refused stranger learned %v", name, answer)
		}
	}
	for id := range hook.told() {
		if id != member.PeerID() {
			t.Errorf("the node's payload was made for %s", id)
		}
	}
}

// hook notes for whom the node's payload was made.
type hook struct {
	mu  sync.Mutex
	ids map[mesh.PeerID]bool
}

func (h *hook) Local(to mesh.PeerID) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ids == nil {
		h.ids = map[mesh.PeerID]bool{}
	}
	h.ids[to] = true
	return []byte("advert")
}

func (h *hook) Remote(mesh.PeerID, mesh.Via, []byte) {}

func (h *hook) told() map[mesh.PeerID]bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.ids)
}

// We dial something that is no member: it learns our certificate, not our payload.
func TestDialledStrangerGetsNoPayload(t *testing.T) {
	cfg := testConfig(t, "founder")
	cfg.Hello = &hook{}
	m := founded(t, cfg, nil)
	h := stranger(t)
	greeted := make(chan *peerv1.Greeting, 1)
	h.SetStreamHandler(m.protocolID(protoHello), func(s network.Stream) {
		defer s.Close()
		r := bufio.NewReader(s)
		var hello peerv1.Hello
		if err := readFrame(r, &hello, maxHelloFrame); err != nil {
			t.Error(err)
			return
		}
		writeFrame(s, &peerv1.Hello{BootId: "x", Chain: hello.Chain}, maxHelloFrame) // the dialler's own, shown back
		var g peerv1.Greeting
		if err := readFrame(r, &g, maxGreetingFrame); err != nil {
			t.Error(err)
		}
		greeted <- &g
	})
	addr := h.Addrs()[0].String()
	m.table.learn(mesh.PeerID(h.ID().String()), "liar", "own", []string{addr}, mesh.ViaMember, time.Now())
	select {
	case g := <-greeted:
		if g.Refusal == nil || g.Payload != nil || len(g.Members) > 0 {
			t.Errorf("a stranger was greeted with %v", g)
		}
	case <-time.After(meshtest.Patience):
		t.Fatal("the node did not dial what it heard of")
	}
}

func TestDenied(t *testing.T) {
	var denied atomic.Value
	denied.Store(mesh.PeerID(""))
	cfg := testConfig(t, "founder")
	cfg.Deny = func(p mesh.PeerID) (string, bool) { return "lost laptop", p == denied.Load() }
	m := founded(t, cfg, nil)
	member := joined(t, m, testConfig(t, "member"), Invitation{}, nil)
	meshtest.AwaitUp(t, m, member.PeerID())
	meshtest.AwaitUp(t, member, m.PeerID())
	here, there := meshtest.NewLog(t, m), meshtest.NewLog(t, member)
	denied.Store(member.PeerID())
	m.Expel(member.PeerID(), "lost laptop")
	here.Await(t, "MemberDown", func(e mesh.Event) bool { return e.Type == mesh.MemberDown && e.Reason == "lost laptop" })
	// It comes back, is refused, and is told why.
	here.Await(t, "MemberRefused", func(e mesh.Event) bool {
		return e.Type == mesh.MemberRefused && e.Member.ID == member.PeerID() && strings.Contains(e.Reason, "lost laptop")
	})
	there.Await(t, "MemberRefused", func(e mesh.Event) bool {
		return e.Type == mesh.MemberRefused && e.Member.ID == m.PeerID() && strings.Contains(e.Reason, "lost laptop")
	})
	if _, err := m.Open(timeout(t), member.PeerID(), "x/1"); err == nil {
		t.Error("opened a stream to a denied peer")
	}
	// A denied machine gets no new certificate with a fresh ticket either.
	if _, err := m.grant(member.PeerID(), &peerv1.JoinRequest{Kind: &peerv1.JoinRequest_Renew{Renew: &peerv1.Renew{Chain: member.credentials().chain}}}); fault.CodeOf(err) != fault.Forbidden {
		t.Errorf("renewal of a denied peer: %v", err)
	}
}

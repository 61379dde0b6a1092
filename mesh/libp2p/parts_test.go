package libp2p

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/membership"
	"github.com/beammesh/beammesh/mesh/meshtest"
)

// The directory suffices alone: no gossip, no mDNS, and the node everybody
// joined at is not the one that is looked for.
func TestDirectoryAlone(t *testing.T) {
	quiet := func(name string) Config {
		c := testConfig(t, name)
		c.NoGossip, c.NoMDNS = true, true
		return c
	}
	founder := founded(t, quiet("founder"), nil)
	provider := joined(t, founder, quiet("provider"), Invitation{}, nil)
	finder := joined(t, founder, quiet("finder"), Invitation{}, nil)
	meshtest.AwaitUp(t, founder, provider.PeerID())
	meshtest.AwaitUp(t, finder, founder.PeerID())
	if err := provider.Provide(timeout(t), "gpu/H100"); err != nil {
		t.Fatal(err)
	}
	found, err := finder.Find(timeout(t), "gpu/H100", 4)
	if err != nil || !slices.Equal(found, []mesh.PeerID{provider.PeerID()}) {
		t.Errorf("found %v, %v, want %s", found, err, provider.PeerID())
	}
	if err := finder.Publish(timeout(t), "offers", nil); !errors.Is(err, mesh.ErrDisabled) {
		t.Errorf("publish without gossip: %v", err)
	}
	if _, err := finder.Subscribe("offers", func(mesh.PeerID, []byte) {}); !errors.Is(err, mesh.ErrDisabled) {
		t.Errorf("subscribe without gossip: %v", err)
	}
}

func TestWithoutDirectory(t *testing.T) {
	cfg := testConfig(t, "blind")
	cfg.NoDirectory = true
	founder := founded(t, testConfig(t, "founder"), nil)
	m := joined(t, founder, cfg, Invitation{}, nil)
	meshtest.AwaitUp(t, founder, m.PeerID())
	if _, err := m.Find(timeout(t), "gpu/H100", 1); !errors.Is(err, mesh.ErrDisabled) {
		t.Errorf("find: %v", err)
	}
	if err := m.Provide(timeout(t), "gpu/H100"); !errors.Is(err, mesh.ErrDisabled) {
		t.Errorf("provide: %v", err)
	}
	if n := founder.dir.dht.RoutingTable().Size(); n != 0 {
		t.Errorf("a member without the directory is in the routing table (%d)", n)
	}
}

// A key announced in a mesh of one is stored with the first member that comes.
func TestProvideBeforeAnybodyJoins(t *testing.T) {
	founder := founded(t, testConfig(t, "founder"), nil)
	if err := founder.Provide(timeout(t), "role/gateway"); err != nil {
		t.Fatal(err)
	}
	if found, err := founder.Find(timeout(t), "role/gateway", 1); err != nil || !slices.Equal(found, []mesh.PeerID{founder.PeerID()}) {
		t.Errorf("own key in a mesh of one: %v, %v", found, err)
	}
	m := joined(t, founder, testConfig(t, "second"), Invitation{}, nil)
	meshtest.AwaitUp(t, m, founder.PeerID())
	// The founder announces the key when it sees the new member, which may be
	// after the member sees the founder: ask until it is there.
	for ctx := timeout(t); ; {
		found, err := m.Find(ctx, "role/gateway", 1)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Equal(found, []mesh.PeerID{founder.PeerID()}) {
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("found %v", found)
		}
	}
}

func TestBulkPrefersTCP(t *testing.T) {
	handlers := map[string]mesh.Handler{"blocks/1": meshtest.Echo}
	founder := founded(t, testConfig(t, "founder"), handlers)
	udp := testConfig(t, "udp")
	udp.NoTCP = true
	transport := func(from, to *Mesh) string {
		t.Helper()
		meshtest.AwaitUp(t, from, to.PeerID())
		s, err := from.OpenBulk(timeout(t), to.PeerID(), "blocks/1")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Reset()
		s.SetDeadline(time.Now().Add(meshtest.Patience))
		s.Write([]byte("x"))
		if _, err := s.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return s.(*stream).Conn().ConnState().Transport
	}
	both := joined(t, founder, testConfig(t, "both"), Invitation{}, nil)
	if got := transport(both, founder); got != "tcp" {
		t.Errorf("bulk to a peer with both went over %s", got)
	}
	only := joined(t, founder, udp, Invitation{}, handlers)
	if got := transport(only, founder); got != "quic-v1" {
		t.Errorf("bulk without TCP went over %s", got)
	}
	if got := transport(founder, only); got != "quic-v1" {
		t.Errorf("bulk to a peer without TCP went over %s", got)
	}
}

// A killed process breaks its connections: no waiting for pings.
func TestBrokenConnection(t *testing.T) {
	cfg := testConfig(t, "founder")
	cfg.RedialWait = 0     // the default
	cfg.SilentAfter = 1e12 // pings find nothing for 1000 s
	founder := founded(t, cfg, nil)
	m := joined(t, founder, testConfig(t, "m"), Invitation{}, nil)
	meshtest.AwaitUp(t, founder, m.PeerID())
	at := meshtest.NewLog(t, founder)
	for _, l := range m.gate.links(founder.PeerID(), true) { // a blip: the re-dial brings it back
		l.conn.Close()
	}
	meshtest.AwaitUp(t, m, founder.PeerID())
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	at.Await(t, "MemberDown", func(e mesh.Event) bool { return e.Type == mesh.MemberDown && e.Member.ID == m.PeerID() })
}

// What mDNS answers say is a hint; only well-formed ones are taken.
func TestMDNSTexts(t *testing.T) {
	m := founded(t, testConfig(t, "founder"), nil)
	other := opened(t, testConfig(t, "other"))
	if len(m.mdnsService()) != len("_beam-0123456789._udp") {
		t.Errorf("service label %q: longer than 15 characters and a dot finds nothing", m.mdnsService())
	}
	texts, ips := m.mdnsTexts()
	if len(texts) == 0 || len(ips) == 0 || !strings.Contains(texts[0], "/p2p/"+string(m.PeerID())) {
		t.Errorf("texts %q, addresses %q", texts, ips)
	}
	at := "a=/ip4/127.0.0.1/tcp/1/p2p/" + string(other.PeerID())
	m.mdnsFound([]string{at, "a=", "a=/ip4/1.2.3.4/tcp/1", "b=/ip4/1.2.3.4/tcp/1", "a=" + strings.Repeat("x", 1000), "a=/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", texts[0]})
	known := m.table.all()
	if len(known) != 1 || known[0].ID != other.PeerID() || !slices.Equal(known[0].Addrs, []string{"/ip4/127.0.0.1/tcp/1"}) {
		t.Errorf("learned %+v", known)
	}
	if len(m.Members()) != 1 {
		t.Error("hearsay is listed as a member")
	}
}

func TestMDNSKeepsOffTenantInterfaces(t *testing.T) {
	up := net.FlagUp | net.FlagMulticast
	for name, want := range map[string]bool{"eth0": true, "wlan0": true, "docker0": false, "veth12": false, "br-abc": false, "virbr0": false} {
		if got := mdnsInterface(net.Interface{Name: name, Flags: up}); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if mdnsInterface(net.Interface{Name: "eth0", Flags: net.FlagUp}) {
		t.Error("an interface without multicast")
	}
	cfg := testConfig(t, "m")
	cfg.Interface = func(i net.Interface) bool { return i.Name != "lo" }
	m := founded(t, cfg, nil)
	if got := m.Addrs(); len(got) != 0 {
		t.Errorf("addresses of a barred interface are announced: %v", got)
	}
	if _, err := m.Invite(t.Context(), Invitation{}); err == nil {
		t.Error("a ticket without an address")
	}
}

// The port chosen for ":0" is the same next time, and one for TCP and UDP.
func TestPortIsKept(t *testing.T) {
	cfg := testConfig(t, "m")
	m := founded(t, cfg, nil)
	first := m.Addrs()
	ports := map[uint16]bool{}
	for _, a := range m.addrs() {
		ap, _ := addrPort(a)
		ports[ap.Port()] = true
	}
	if len(ports) != 1 || len(first) != 2 {
		t.Errorf("addresses %v", first)
	}
	m.Close()
	if again := started(t, opened(t, cfg), nil).Addrs(); !slices.Equal(again, first) {
		t.Errorf("was %v, is %v", first, again)
	}
	taken := testConfig(t, "taken")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken.Listen = []string{l.Addr().String()}
	n := opened(t, taken)
	if err := n.Found(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantFault(t, "port in use", n.Start(t.Context()), "conflict", "cannot listen")
}

func TestConfigRefuses(t *testing.T) {
	for name, c := range map[string]Config{
		"no directory": {}, "no transport": {DataDir: "x", NoTCP: true, NoQUIC: true},
		"bad listen": {DataDir: "x", Listen: []string{"7946"}}, "bad announce": {DataDir: "x", Announce: []string{"host:1"}},
		"features": {DataDir: "x", Features: make([]string, maxFeatures+1)},
	} {
		if _, err := New(context.Background(), c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestHandleMistakesPanic(t *testing.T) {
	m := opened(t, testConfig(t, "m"))
	m.Handle("ask/1", meshtest.Echo)
	defer func() {
		if recover() == nil {
			t.Error("two handlers for one protocol")
		}
	}()
	m.Handle("ask/1", meshtest.Echo)
}

func TestInvitationBounds(t *testing.T) {
	m := founded(t, testConfig(t, "m"), nil)
	for name, inv := range map[string]Invitation{
		"tier": {Tier: "root"}, "life": {Life: membership.MaxTicketLife + time.Second}, "roles": {Roles: make([]string, membership.MaxRoles+1)},
	} {
		_, err := m.Invite(t.Context(), inv)
		wantFault(t, name, err, "invalid_argument", "")
	}
}

// The founder of a large mesh, or a worker with many owners, keeps all of its
// connections: the library's manager cut those above 192 every minute, streams
// and all. The bounds are the resource manager's.
func TestConnectionsAreNotTrimmed(t *testing.T) {
	m := opened(t, testConfig(t, "hub"))
	if cm, ok := m.host.ConnManager().(connmgr.NullConnMgr); !ok {
		t.Errorf("the host has the connection manager %T", cm)
	}
}

// A ping stream with longer pauses would be reset by the other side, and with it
// the connection.
func TestPingsAreOftenEnough(t *testing.T) {
	if _, err := (Config{DataDir: "x", PingEvery: maxPingEvery}).complete(); err != nil {
		t.Error(err)
	}
	if _, err := (Config{DataDir: "x", PingEvery: maxPingEvery + 1}).complete(); err == nil {
		t.Error("longer pauses are taken")
	}
}

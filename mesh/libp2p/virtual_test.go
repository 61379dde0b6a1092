package libp2p

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	golibp2p "github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/x/simlibp2p"
	"github.com/marcopolo/simnet"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/membership"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
)

// air is a simulated network with 25 ms from any node to any other (50 ms RTT)
// from which single nodes can vanish: their packets take for ever.
type air struct {
	sim *simnet.Simnet

	mu     sync.Mutex
	silent map[string]bool // by IP
}

func newAir() *air {
	a := &air{silent: map[string]bool{}}
	a.sim = &simnet.Simnet{LatencyFunc: func(p *simnet.Packet) time.Duration {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, end := range []net.Addr{p.From, p.To} {
			if u, ok := end.(*net.UDPAddr); ok && a.silent[u.IP.String()] {
				return math.MaxInt32 * time.Second
			}
		}
		return 25 * time.Millisecond
	}}
	return a
}

func (a *air) silence(ip string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.silent[ip] = true
}

// node makes one with the defaults for every time; n is also its address.
func (a *air) node(t *testing.T, dir string, n int) (*Mesh, string) {
	t.Helper()
	ip := simnet.IntToPublicIPv4(n).String()
	link := simnet.LinkSettings{BitsPerSecond: 100 * simlibp2p.OneMbps}
	m, err := New(context.Background(), Config{DataDir: fmt.Sprint(dir, "/", n), Listen: []string{ip + ":8000"}, Name: fmt.Sprint("node", n),
		NoTCP: true, NoMDNS: true, Log: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
		simulated:   true,
		hostOptions: []golibp2p.Option{simlibp2p.QUICSimnet(a.sim, simnet.NodeBiDiLinkSettings{Downlink: link, Uplink: link})}})
	if err != nil {
		t.Fatal(err)
	}
	return m, ip
}

// admit does what Join does without a network: a simulated host cannot dial
// before it listens.
func admit(t *testing.T, founder, m *Mesh) {
	t.Helper()
	secret, _, err := founder.tickets.Issue(membership.Own, nil, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	resp, err := founder.grant(m.PeerID(), &peerv1.JoinRequest{Kind: &peerv1.JoinRequest_Redeem{Redeem: &peerv1.Redeem{Secret: secret}}})
	if err != nil {
		t.Fatal(err)
	}
	c := &credentials{root: founder.credentials().root, chain: resp.Chain, issuer: resp.Issuer}
	if c.member, err = membership.Verify(c.root, c.chain, membership.PeerOf(m.key.Public().(ed25519.PublicKey)), time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := m.setCredentials(c); err != nil {
		t.Fatal(err)
	}
	m.table.learn(founder.PeerID(), "", membership.Own, founder.Addrs(), mesh.ViaTicket, time.Now())
}

// Eight nodes in virtual time, with the product's own times: everybody meets
// through one founder, a key is found at once, gossip reaches all, and a node
// whose packets vanish is down everywhere within 8 s, not before it was silent
// for as long as a bad network may be.
func TestVirtualMesh(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		const nodes = 8
		a := newAir()
		a.sim.Start()
		ms := make([]*Mesh, nodes)
		ips := make([]string, nodes)
		begin := time.Now()
		for i := range ms {
			ms[i], ips[i] = a.node(t, dir, i)
			if i == 0 {
				if err := ms[0].Found(t.Context()); err != nil {
					t.Fatal(err)
				}
			} else {
				admit(t, ms[0], ms[i])
			}
			if err := ms[i].Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Second) // virtual, as all here
		for i, m := range ms {
			if up := connected(m); up != nodes-1 {
				t.Errorf("node %d sees %d others after %v, want %d", i, up, time.Since(begin), nodes-1)
			}
		}

		provided := time.Now()
		if err := ms[5].Provide(t.Context(), "gpu/H100"); err != nil {
			t.Fatal(err)
		}
		found, err := ms[2].Find(t.Context(), "gpu/H100", 1)
		if err != nil || !slices.Equal(found, []mesh.PeerID{ms[5].PeerID()}) {
			t.Errorf("found %v, %v", found, err)
		}
		if took := time.Since(provided); took > time.Second {
			t.Errorf("announced and found after %v of virtual time, want at most 1 s at 50 ms RTT", took)
		}

		var mu sync.Mutex
		got := map[mesh.PeerID]bool{}
		for _, m := range ms[1:] {
			cancel, err := m.Subscribe("offers", func(mesh.PeerID, []byte) {
				mu.Lock()
				defer mu.Unlock()
				got[m.PeerID()] = true
			})
			if err != nil {
				t.Fatal(err)
			}
			defer cancel()
		}
		time.Sleep(3 * time.Second) // three heartbeats
		if err := ms[0].Publish(t.Context(), "offers", []byte("x")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		mu.Lock()
		if len(got) != nodes-1 {
			t.Errorf("gossip reached %d of %d", len(got), nodes-1)
		}
		mu.Unlock()

		lost := ms[nodes-1].PeerID()
		downAt := map[int]time.Duration{}
		silent := time.Now()
		for i, m := range ms[:nodes-1] {
			defer m.Watch(func(e mesh.Event) {
				mu.Lock()
				defer mu.Unlock()
				if e.Type == mesh.MemberDown {
					if e.Member.ID != lost {
						t.Errorf("node %d: %s is down too: %s", i, e.Member.ID, e.Reason)
					}
					downAt[i] = time.Since(silent)
				}
			})()
		}
		a.silence(ips[nodes-1])
		time.Sleep(15 * time.Second)
		mu.Lock()
		for i := range ms[:nodes-1] {
			if d, ok := downAt[i]; !ok || d > 8*time.Second || d < 3*time.Second {
				t.Errorf("node %d: the silent node was down after %v (%v), want 3 to 8 s", i, d, ok)
			}
		}
		mu.Unlock()
		if found, err := ms[2].Find(t.Context(), "gpu/H100", 1); err != nil || len(found) != 1 {
			t.Errorf("with a silent node in the mesh: found %v, %v", found, err)
		}

		for _, m := range ms {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
		a.sim.Close()
		time.Sleep(2 * time.Minute) // goroutines of the library that end by their own timers
	})
}

func connected(m *Mesh) (n int) {
	for _, k := range m.Members() {
		if k.Connected && k.Path == mesh.PathDirect {
			n++
		}
	}
	return n
}

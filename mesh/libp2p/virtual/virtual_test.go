package virtual_test

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/libp2p"
	"github.com/beammesh/beammesh/mesh/libp2p/virtual"
)

// latency is one way: 50 ms there and back.
const latency = 25 * time.Millisecond

func newNetwork() *virtual.Network { return virtual.New(latency, 100_000_000) }

// attached gives n hosts of the network, each with its own folder below dir.
func attached(n *virtual.Network, dir string, count int, cfg libp2p.Config) []libp2p.Config {
	var out []libp2p.Config
	for i := range count {
		c := cfg
		c.DataDir, c.Name = filepath.Join(dir, fmt.Sprint(i)), fmt.Sprint("node", i)
		out = append(out, n.Attach(c))
	}
	return out
}

type testLog struct{ t *testing.T }

func (w testLog) Write(b []byte) (int, error) {
	if testing.Verbose() {
		fmt.Print(string(b))
	}
	return len(b), nil
}

func end(t *testing.T, n *virtual.Network, ms []*libp2p.Mesh) {
	t.Helper()
	if err := virtual.Close(ms); err != nil {
		t.Error(err)
	}
	n.Close()
	time.Sleep(virtual.Linger)
}

// Eight nodes in virtual time, with the product's own times: everybody meets
// through one founder, a key is found at once, gossip reaches all, and a node
// whose packets vanish is down everywhere within 8 s, not before it was silent
// for as long as a bad network may be.
func TestVirtualMesh(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		const nodes = 8
		n := newNetwork()
		log := slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
		cfgs := attached(n, dir, nodes, libp2p.Config{Log: log})
		begin := time.Now()
		ms, err := virtual.Boot(t.Context(), cfgs, nil)
		if err != nil {
			t.Fatal(err)
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
		n.Silence(cfgs[nodes-1])
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
		end(t, n, ms)
	})
}

func connected(m *libp2p.Mesh) (n int) {
	for _, k := range m.Members() {
		if k.Connected && k.Path == mesh.PathDirect {
			n++
		}
	}
	return n
}

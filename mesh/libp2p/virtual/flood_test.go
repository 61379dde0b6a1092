//go:build !race

package virtual_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/libp2p"
	"github.com/beammesh/beammesh/mesh/libp2p/virtual"
)

// Not with the race detector: a hundred hosts take minutes there.

// A message that everybody is to hear costs seven frames per node on gossipsub's
// overlay: why an offer is asked of a few nodes and not flooded to all.
func TestFloodCostsSevenFramesPerNode(t *testing.T) {
	const topic, nodes, floods = "offers", 100, 5
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var frames virtual.Frames
		n := newNetwork()
		cfgs := attached(n, dir, nodes, libp2p.Config{NoDirectory: true, WantConnected: 1})
		for i, c := range cfgs {
			cfgs[i] = frames.Watch(c)
		}
		ms, err := virtual.Boot(t.Context(), cfgs, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range ms {
			virtual.Learn(m, ms) // nobody passes on what somebody unheard of says
		}
		// Six dials each, the first along a ring.
		rng := rand.New(rand.NewPCG(1, 2))
		var pairs [][2]int
		for i := range ms {
			pairs = append(pairs, [2]int{i, (i + 1) % len(ms)})
			for range 5 {
				if j := rng.IntN(len(ms)); j != i {
					pairs = append(pairs, [2]int{i, j})
				}
			}
		}
		var mu sync.Mutex
		heard := 0
		for _, m := range ms {
			if _, err := m.Subscribe(topic, func(mesh.PeerID, []byte) {
				mu.Lock()
				defer mu.Unlock()
				heard++
			}); err != nil {
				t.Fatal(err)
			}
		}
		if err := virtual.Meet(t.Context(), ms, pairs); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second) // until the overlay is built
		before := frames.Of(topic)
		for i := range floods {
			if err := ms[i*len(ms)/floods].Publish(t.Context(), topic, make([]byte, 300)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
		}
		mu.Lock()
		if want := floods * (len(ms) - 1); heard != want {
			t.Errorf("heard %d times, want %d", heard, want)
		}
		mu.Unlock()
		perNode := float64(frames.Of(topic)-before) / floods / float64(len(ms))
		t.Logf("%d nodes: %.2f frames per node and message", len(ms), perNode)
		if off := perNode/7 - 1; off < -0.1 || off > 0.1 {
			t.Errorf("%.2f frames per node and message, want 7 within 10 %%", perNode)
		}
		end(t, n, ms)
	})
}

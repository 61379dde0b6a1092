//go:build !race

package virtual_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/beammesh/beammesh/scheduler/market/markettest"
	"github.com/beammesh/beammesh/simulations/virtual"
)

// Not with the race detector: 64 hosts take minutes there.

// What a node hears of adverts does not grow with the mesh while the nodes of one
// topic do not get more.
func TestAdvertTrafficIsFlat(t *testing.T) {
	const topicNodes = 16
	dir := t.TempDir()
	perNode := func(nodes int) (rate float64) {
		synctest.Test(t, func(t *testing.T) {
			w, err := virtual.New(t.Context(), virtual.Config{Nodes: nodes, Dir: fmt.Sprint(dir, "/", nodes), Owners: 1, PerTopic: topicNodes,
				Neighbours: 5, Capacity: markettest.Box(8, 32)})
			if err != nil {
				t.Fatal(err)
			}
			before := w.AdvertFrames()
			const watch = 20 * time.Second
			time.Sleep(watch)
			rate = float64(w.AdvertFrames()-before) / float64(nodes) / watch.Seconds()
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		})
		return rate
	}
	one, four := perNode(topicNodes), perNode(4*topicNodes)
	t.Logf("frames per node and second: %.2f with %d nodes, %.2f with four times as many", one, topicNodes, four)
	// The one owner listens to all topics, and hashing does not cut them evenly:
	// topics of 10 and 22 nodes are no surprise. In one topic it would be 4.
	if ratio := four / one; ratio < 0.6 || ratio > 1.6 {
		t.Errorf("%.2f times the frames per node in a mesh four times as large", ratio)
	}
}

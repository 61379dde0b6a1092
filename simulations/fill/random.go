package fill

import (
	"math/rand"

	"github.com/beammesh/beammesh/scheduler"
)

// random chooses any node, and for a share any device, that has room.
func random() Policy {
	return Policy{Name: "random", Doc: "any node that has room, each as likely as the others",
		New: func(r *Run) Scorer { return &randomScorer{r.Draw} }}
}

type randomScorer struct{ draw *rand.Rand }

func (r *randomScorer) Draws() {}

func (r *randomScorer) Score(*scheduler.Demand, *Node) int64 { return r.draw.Int63() }

func (r *randomScorer) Pick(d *scheduler.Demand, n *Node) scheduler.Picks {
	if len(d.GPUs) == 0 || d.Milli() == scheduler.GPUExclusive {
		return scheduler.PicksOf(d, &n.Capacity)
	}
	var picks scheduler.Picks
	seen := 0
	for i := range n.Devices {
		if n.Devices[i].FreeMilli >= d.Milli() {
			if seen++; r.draw.Intn(seen) == 0 {
				picks = 1 << i
			}
		}
	}
	return picks
}

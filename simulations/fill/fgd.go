package fill

import (
	"math/bits"

	"github.com/beammesh/beammesh/scheduler"
)

// fgd is fragmentation gradient descent (Weng et al., USENIX ATC'23): the node
// and device where the fragment of the run's mix grows least.
func fgd() Policy {
	return Policy{Name: "fgd", Doc: "the node and device where fragmentation grows least (FGD, ATC'23)",
		New: func(r *Run) Scorer { return &fgdScorer{run: r} }}
}

type fgdScorer struct {
	run *Run
}

func (s *fgdScorer) Score(d *scheduler.Demand, n *Node) int64 {
	score, _ := s.best(d, n)
	return score
}

func (s *fgdScorer) Pick(d *scheduler.Demand, n *Node) scheduler.Picks {
	_, picks := s.best(d, n)
	return picks
}

func (s *fgdScorer) best(d *scheduler.Demand, n *Node) (int64, scheduler.Picks) {
	delta, picks := s.run.Mix.Delta(d, &n.Capacity)
	if !s.run.Quantize {
		return -delta, picks
	}
	score := s.run.Mix.Score(delta)
	if len(d.GPUs) > 0 && d.Milli() < scheduler.GPUExclusive {
		// Of devices on the same step the first is taken, not the best.
		best := bits.TrailingZeros64(uint64(picks))
		for i := range best {
			p := scheduler.Picks(1 << i)
			if n.Devices[i].FreeMilli >= d.Milli() && n.Devices[i].Class == n.Devices[best].Class &&
				s.run.Mix.Score(s.run.Mix.DeltaOn(d, &n.Capacity, p)) == score {
				return int64(score), p
			}
		}
	}
	return int64(score), picks
}

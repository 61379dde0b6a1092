package fill

import "github.com/beammesh/beammesh/scheduler"

// room is our own measure: see scheduler.Mix.Room and Fit. The mix counts shapes
// that few machines can take the more, and is made once from the empty cluster.
func room() Policy {
	return Policy{Name: "room", Doc: "the node that keeps most room for the mix, one step further than FGD",
		New: func(r *Run) Scorer {
			ws := scheduler.Scarce(r.Mix.Shapes(), r.Nodes)
			return &roomScorer{scheduler.NewMix(ws, len(ws))}
		}}
}

type roomScorer struct{ mix *scheduler.Mix }

func (s *roomScorer) Score(d *scheduler.Demand, n *Node) int64 {
	rating, _ := s.mix.Fit(d, &n.Capacity)
	return rating
}

func (s *roomScorer) Pick(d *scheduler.Demand, n *Node) scheduler.Picks {
	_, picks := s.mix.Fit(d, &n.Capacity)
	return picks
}

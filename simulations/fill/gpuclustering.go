package fill

import "github.com/beammesh/beammesh/scheduler"

// gpuClustering keeps tasks that ask for alike numbers of GPUs together, as
// Gandiva does (Xiao et al., OSDI'18).
func gpuClustering() Policy {
	return Policy{Name: "gpuclustering", Doc: "next to tasks of the same size, so that nodes serve one size each (after Gandiva, OSDI'18)",
		New: func(*Run) Scorer { return &clusteringScorer{} }}
}

type clusteringScorer struct{ fullest }

// Score has four bands of 25: nodes with this kind of task only, with this and
// others, with none, with others. Within a band the fuller node is better.
func (*clusteringScorer) Score(d *scheduler.Demand, n *Node) int64 {
	if len(d.GPUs) == 0 {
		return 0
	}
	const band = 25
	var base int64
	switch kind := kindOf(d); {
	case n.Kinds == kind:
		base = 3 * band
	case n.Kinds&kind != 0:
		base = 2 * band
	case n.Kinds == 0:
		base = band
	}
	return base + band*(specGPUMilli-n.FreeMilli())/specGPUMilli
}

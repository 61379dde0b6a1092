package fill

import "github.com/beammesh/beammesh/scheduler"

// bestFit takes the node with the least left afterwards, cores and GPUs counting
// alike. It is a good example of how a policy is written.
func bestFit() Policy {
	return Policy{Name: "bestfit", Doc: "the node with the least cores and GPUs left over",
		New: func(r *Run) Scorer { return &bestFitScorer{run: r} }}
}

type bestFitScorer struct {
	fullest
	run *Run
}

func (s *bestFitScorer) Score(d *scheduler.Demand, n *Node) int64 {
	// 1 - (cores left + GPUs left) / 2, each as a share of the largest machine,
	// over one denominator.
	const ratio = specCPUMillis / specGPUMilli
	const whole = 2 * specCPUMillis
	return s.run.step(whole-(n.Free.CPUMillis-d.CPUMillis)-ratio*(n.FreeMilli()-gpuMilli(d)), whole)
}

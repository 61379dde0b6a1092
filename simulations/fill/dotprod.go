package fill

import "github.com/beammesh/beammesh/scheduler"

// dotProd is the packing rule of Tetris (Grandl et al., SIGCOMM'14) turned
// around, as the FGD paper compares it: least is best. A node scores well that
// has little left of what the task needs much of.
func dotProd() Policy {
	return Policy{Name: "dotprod", Doc: "the smallest dot product of demand and free resources (after Tetris, SIGCOMM'14)",
		New: func(r *Run) Scorer { return &dotProdScorer{run: r} }}
}

type dotProdScorer struct {
	fullest
	run *Run
}

func (s *dotProdScorer) Score(d *scheduler.Demand, n *Node) int64 {
	// 1 - (free cores * cores + free GPUs * GPUs) / 2, each as a share of the
	// largest machine, over one denominator.
	const ratio = (specCPUMillis / specGPUMilli) * (specCPUMillis / specGPUMilli)
	const whole = 2 * specCPUMillis * specCPUMillis
	return s.run.step(whole-n.Free.CPUMillis*d.CPUMillis-ratio*n.FreeMilli()*gpuMilli(d), whole)
}

package sim

import "github.com/beammesh/beammesh/simulations"

// Experiments are all there are, in the order of `beam sim list`.
func Experiments() []simulations.Experiment {
	return []simulations.Experiment{}
}

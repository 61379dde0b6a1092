package sim

import (
	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/fill"
	"github.com/beammesh/beammesh/simulations/mesh"
	"github.com/beammesh/beammesh/simulations/queue"
)

// Experiments are all there are, in the order of `beam sim list`.
func Experiments() []simulations.Experiment {
	return []simulations.Experiment{fill.Experiment{}, queue.Experiment{}, mesh.Experiment{}}
}

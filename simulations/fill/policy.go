package fill

import (
	"math/rand"

	"github.com/beammesh/beammesh/scheduler"
)

// Policy is a way to choose nodes. To add one: write a file with a function that
// returns a Policy, as bestfit.go does, and name it in Policies.
type Policy struct {
	Name string
	Doc  string // one sentence, with the source
	// New is called once for each run.
	New func(*Run) Scorer
}

// Run is what a policy may know of the run before it begins.
type Run struct {
	// Mix are the shapes of the list's tasks, the most frequent first, to 95 % of
	// all. Read only.
	Mix *scheduler.Mix
	// Draw is the run's random stream. A policy that draws must do so in an order
	// that follows from the calls alone.
	Draw *rand.Rand
	// Quantize asks for scores cut to whole steps, as published, for policies
	// whose score has a finer form.
	Quantize bool
}

// The published policies measure cores and GPUs in the largest machine of their
// cluster: 128 cores, 8 GPUs.
const (
	specCPUMillis = 128_000
	specGPUMilli  = 8_000
)

// step cuts a score of n / of, from 0 to 1, to a hundred steps, or to none.
func (r *Run) step(n, of int64) int64 {
	if r.Quantize {
		return 100 * n / of
	}
	return n
}

// Scorer rates nodes for one run. Its methods are called from one goroutine.
type Scorer interface {
	// Score says how good it is to place d on n, which can take it: higher is
	// better. It must follow from d and n alone, since it is remembered for all
	// nodes in the same state; a Scorer that draws is a Drawer instead.
	Score(d *scheduler.Demand, n *Node) int64
	// Pick chooses the devices of n, once n is chosen.
	Pick(d *scheduler.Demand, n *Node) scheduler.Picks
}

// Drawer is a Scorer whose scores differ from call to call.
type Drawer interface {
	Scorer
	Draws()
}

// Node is one machine of the experiment. A policy reads it and changes nothing.
type Node struct {
	// Capacity has what is free; memory aside, see MemoryMiB.
	scheduler.Capacity
	// Kinds has bit i set once a task with i whole GPUs was placed here; bit 0
	// stands for shares. Work without a GPU leaves no mark.
	Kinds uint64
	// MemoryMiB is what is free of the memory. It decides whether a task fits and,
	// as in the published policies, nothing else.
	MemoryMiB int64
}

// FreeMilli is the sum of what is free of all GPUs.
func (n *Node) FreeMilli() (sum int64) {
	for i := range n.Devices {
		sum += n.Devices[i].FreeMilli
	}
	return sum
}

// Policies are all there are, in the order of the published table.
func Policies() []Policy {
	return []Policy{random(), dotProd(), gpuClustering(), gpuPacking(), bestFit(), fgd()}
}

// fullest picks the fullest devices with room, as scheduler.Allocate does; most
// policies embed it.
type fullest struct{}

func (fullest) Pick(d *scheduler.Demand, n *Node) scheduler.Picks {
	return scheduler.PicksOf(d, &n.Capacity)
}

// kindOf is the bit of Node.Kinds for a task with GPUs.
func kindOf(d *scheduler.Demand) uint64 {
	if d.Milli() < scheduler.GPUExclusive {
		return 1
	}
	return 1 << d.GPUs[0].Count
}

// gpuMilli is all that d asks of GPUs. In this experiment all alternatives of a
// task ask for the same number of devices.
func gpuMilli(d *scheduler.Demand) int64 {
	if len(d.GPUs) == 0 {
		return 0
	}
	return int64(d.GPUs[0].Count) * d.Milli()
}

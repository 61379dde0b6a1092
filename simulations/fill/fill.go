// Package fill is the experiment that measures fragmentation: tasks arrive one
// after another and nothing departs, so the cluster fills up, and what a policy
// leaves free at the end is what it cannot use.
//
// It follows the published experiment of FGD (Weng et al., "Beware of
// Fragmentation", USENIX ATC'23): the tasks of a list arrive in random order,
// followed by repeated ones, until they ask for 130 % of the cluster's GPUs. A
// task that finds no node is not tried again. The curves show the allocated share
// of GPUs over the share that has arrived, each point the mean over the tasks
// that round to it.
//
// With the openb lists a run repeats the published one of the same seed: the same
// tasks in the same order, and mostly the same order of nodes, so that its curve
// is theirs to the second digit. What that takes, beyond the paper: nodes with
// the same score are taken in an order that is shuffled once per run; the mix is
// the most frequent shapes to 95 %, of equally frequent ones those with more
// cores; scores are cut to whole steps.
//
// A policy is one file: see Policy, and bestfit.go for an example.
package fill

import (
	"cmp"
	"context"
	"fmt"
	"math/rand"
	"slices"
	"strings"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/trace"
)

// The ways to break ties between nodes with the same score.
const (
	TieShuffled  = "shuffled"  // the first in an order drawn once for the run, as published
	TieCanonical = "canonical" // the first by class, then hash of the name: an order that packs badly
	TieRandom    = "random"    // any of them, drawn each time
)

// strayDraws are numbers that the published runs took from their one random
// stream between the tasks and the nodes, for something else (timeouts of their
// cluster client). With 10 most published runs come out to the last digit; a few
// took 9 to 13, for which the orders of the nodes differ.
const strayDraws = 10

var params = []simulations.Param{
	{Name: "list", Kind: simulations.Text, Default: "default", Doc: "which tasks: a pod list of openb, or synthetic"},
	{Name: "nodes", Kind: simulations.Int, Default: "1000", Doc: "machines of the synthetic list; openb brings its own"},
	{Name: "arrive", Kind: simulations.Int, Default: "130", Doc: "demand for GPUs that arrives in all, in % of the cluster"},
	{Name: "tie", Kind: simulations.Text, Default: TieShuffled, Doc: "which of equal nodes is taken: the first in an order shuffled once, the first by class and then hash, or a random one"},
	{Name: "quantize", Kind: simulations.Bool, Default: "true", Doc: "cut scores to steps, as published"},
}

// Experiment is the experiment; its zero value is ready.
type Experiment struct{}

var _ simulations.Traced = Experiment{}

// Name is its name in scenarios.
func (Experiment) Name() string { return "fill" }

// Doc says what it does.
func (Experiment) Doc() string {
	return "Tasks arrive and none departs: how much of the GPUs a policy can allocate before it is stuck."
}

// Policies are the names of the policies.
func (Experiment) Policies() []string {
	names := []string{"fgd"}
	for _, p := range Policies() {
		if p.Name != names[0] {
			names = append(names, p.Name)
		}
	}
	return names
}

// Params are its parameters.
func (Experiment) Params() []simulations.Param { return params }

// marks are the shares of arrived demand at which metrics are taken, in percent.
var marks = [...]int{50, 80, 90, 95, 100, 110, 120, 130}

// Run runs it.
func (e Experiment) Run(ctx context.Context, s simulations.Settings) (*simulations.Result, error) {
	for _, p := range Policies() {
		if p.Name == s.Policy {
			return RunPolicy(ctx, s, p)
		}
	}
	return nil, fmt.Errorf("fill has no policy %q: use one of %v", s.Policy, e.Policies())
}

// RunPolicy is Run with a policy that need not be among Policies.
func RunPolicy(ctx context.Context, s simulations.Settings, p Policy) (*simulations.Result, error) {
	return runPolicy(ctx, s, p, strayDraws)
}

func runPolicy(ctx context.Context, s simulations.Settings, p Policy, stray int) (*simulations.Result, error) {
	r := s.Reader(params)
	list, tie, percent, nodes := r.Text("list"), r.Text("tie"), r.Int("arrive"), r.Int("nodes")
	if r.Err() != nil {
		return nil, r.Err()
	}
	switch {
	case tie != TieShuffled && tie != TieCanonical && tie != TieRandom:
		return nil, fmt.Errorf("tie is %s, %s or %s, not %q", TieShuffled, TieCanonical, TieRandom, tie)
	case percent < 1 || percent > 1000:
		return nil, fmt.Errorf("arrive is 1 to 1000 percent, not %d", percent)
	case list == Synthetic && (nodes < 1 || nodes > scheduler.MaxNodes):
		return nil, fmt.Errorf("nodes is 1 to %d, not %d", scheduler.MaxNodes, nodes)
	}
	machines, tasks, err := workload(s.Traces, list, nodes)
	if err != nil {
		return nil, err
	}
	mix := mixOf(tasks)
	// The draws are those of the published runs, one after another, so that a seed
	// means the same order of tasks and nodes there and here: the generator and
	// the shuffle of Go 1, which stay as they are.
	draw := rand.New(rand.NewSource(int64(s.Seed)))
	draw.Int()
	var milli int64
	for i := range machines {
		milli += int64(machines[i].GPUs) * scheduler.GPUExclusive
	}
	demands := arrivals(tasks, milli, int64(percent), draw)
	for range stray {
		draw.Int63()
	}
	ordered := order(machines, draw.Perm(len(machines)), tie)
	about := &Run{Mix: mix, Draw: draw, Quantize: r.Bool("quantize")}
	for _, n := range ordered {
		about.Nodes = append(about.Nodes, &n.Capacity)
	}
	x := &run{
		world:  newWorld(ordered, mix),
		scorer: p.New(about),
		meter:  newMeter(milli, percent),
	}
	if tie == TieRandom {
		x.tie = draw.Intn
	}
	for i, d := range demands {
		if i%256 == 0 {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if s.Progress != nil && i%4096 == 0 {
				s.Progress(int64(i), int64(len(demands)))
			}
		}
		if err := x.step(d); err != nil {
			return nil, &simulations.BrokenError{Seed: s.Seed, Event: uint64(i) + 1, At: fmt.Sprintf("task %d of %d", i+1, len(demands)), What: err.Error()}
		}
	}
	if s.Progress != nil {
		s.Progress(int64(len(demands)), int64(len(demands)))
	}
	return x.meter.result(p.Name, mix.Weight()), nil
}

// order makes the nodes and puts them into the order that breaks ties.
func order(machines []trace.Node, shuffled []int, tie string) []*Node {
	nodes := make([]*Node, len(machines))
	if tie == TieCanonical {
		slices.SortFunc(machines, func(a, b trace.Node) int {
			x, y := scheduler.NodeID(a.Name), scheduler.NodeID(b.Name)
			return cmp.Or(strings.Compare(a.Class, b.Class), cmp.Compare(scheduler.HashOf(x), scheduler.HashOf(y)))
		})
	}
	for i := range machines {
		at := i
		if tie == TieShuffled {
			at = shuffled[i]
		}
		c := machines[i].Capacity()
		nodes[at] = &Node{Capacity: c, MemoryMiB: c.Total.MemoryMiB}
	}
	return nodes
}

type run struct {
	world  *world
	scorer Scorer
	meter  *meter
	tie    func(int) int // nil = the first
}

// step lets one task arrive. A panic of the policy is an error.
func (x *run) step(d *scheduler.Demand) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the policy panicked: %v", p)
		}
	}()
	n := x.world.best(x.scorer, d, x.tie)
	if n >= 0 {
		if err := x.world.place(d, n, x.scorer.Pick(d, x.world.nodes[n])); err != nil {
			return err
		}
	}
	x.meter.add(gpuMilli(d), x.world.used, x.world.frag, n >= 0)
	return nil
}

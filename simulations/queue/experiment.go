package queue

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/engine"
)

// Experiment is the world of this package behind "beam sim". The zero value is
// ready.
type Experiment struct{}

var _ simulations.Experiment = Experiment{}

// Name is "queue".
func (Experiment) Name() string { return "queue" }

// Doc says what it measures.
func (Experiment) Doc() string {
	return "how long short tasks wait for a slot, message by message, when many owners share many workers"
}

// Policies are those of the list in policy.go.
func (Experiment) Policies() []string {
	var names []string
	for _, e := range policies {
		names = append(names, e.name)
	}
	return names
}

// Params are what a scenario may set.
func (Experiment) Params() []simulations.Param { return slices.Clone(params) }

var params = []simulations.Param{
	{Name: "workers", Kind: simulations.Int, Default: "1000", Doc: "how many workers the mesh has"},
	{Name: "slots", Kind: simulations.Int, Default: "1", Doc: "tasks that a worker runs at once"},
	{Name: "owners", Kind: simulations.Int, Default: "16", Doc: "nodes that take jobs, each with its own view"},
	{Name: "jobs", Kind: simulations.Int, Default: "2000", Doc: "jobs that arrive in all"},
	{Name: "tasks", Kind: simulations.Int, Default: "100", Doc: "tasks of a job"},
	{Name: "duration", Kind: simulations.Duration, Default: "100ms", Doc: "mean duration of a task"},
	{Name: "distribution", Kind: simulations.Text, Default: "fixed", Doc: "of the durations: fixed, exponential or lognormal (sigma 1)"},
	{Name: "load", Kind: simulations.Float, Default: "0.8", Doc: "share of all slots that the tasks keep busy, above 0 and at most 2"},
	{Name: "delay", Kind: simulations.Duration, Default: "500us", Doc: "of a message, one way"},
	{Name: "kill", Kind: simulations.Float, Default: "0", Doc: "% of the workers that die, all at once"},
	{Name: "kill_at", Kind: simulations.Duration, Default: "1s", Doc: "when they die"},
	{Name: "detect", Kind: simulations.Duration, Default: "1s", Doc: "from a death until the owners notice"},
}

// config is the settings of a run, checked.
type config struct {
	seed         uint64
	workers      int
	slots        int
	owners       int
	jobs         int
	tasks        int
	mean         time.Duration
	distribution string
	delay        time.Duration
	kill         int // workers
	killAt       time.Duration
	detect       time.Duration
	meanGap      time.Duration // between jobs, in 1/1024 ns
}

// The most that a run may ask for: what fits into an index of 32 bits, and
// virtual times that cannot overflow.
const (
	mostWorkers = 10_000_000
	mostOwners  = 5_000 // each may keep a view of all others
	mostTasks   = 200_000_000
	longest     = 24 * time.Hour
)

func read(s simulations.Settings) (config, error) {
	r := s.Reader(params)
	c := config{
		seed: s.Seed, workers: r.Int("workers"), slots: r.Int("slots"), owners: r.Int("owners"),
		jobs: r.Int("jobs"), tasks: r.Int("tasks"), mean: r.Duration("duration"),
		distribution: r.Text("distribution"), delay: r.Duration("delay"),
		killAt: r.Duration("kill_at"), detect: r.Duration("detect"),
	}
	load, kill := r.Float("load"), r.Float("kill")
	if err := r.Err(); err != nil {
		return c, err
	}
	whole := func(name string, n, most int) error {
		if n < 1 || n > most {
			return fmt.Errorf("%s is %d; it must be between 1 and %d", name, n, most)
		}
		return nil
	}
	length := func(name string, d, least time.Duration) error {
		if d < least || d > longest {
			return fmt.Errorf("%s is %v; it must be between %v and %v", name, d, least, longest)
		}
		return nil
	}
	err := errors.Join(
		whole("workers", c.workers, mostWorkers),
		whole("slots", c.slots, 1000),
		whole("owners", c.owners, mostOwners),
		whole("tasks", c.tasks, 1_000_000),
		whole("jobs", c.jobs, mostTasks),
		length("duration", c.mean, time.Microsecond),
		length("delay", c.delay, 0),
		length("kill_at", c.killAt, 0),
		length("detect", c.detect, 0),
	)
	if err != nil {
		return c, err
	}
	c.kill = int(math.Round(float64(c.workers) * kill / 100))
	switch {
	case c.jobs > mostTasks/c.tasks:
		err = fmt.Errorf("%d jobs of %d tasks are too many; %d tasks is the most", c.jobs, c.tasks, mostTasks)
	case !(load > 0 && load <= 2):
		err = fmt.Errorf("load is %v; it must be above 0 and at most 2 (1 keeps every slot busy)", load)
	case !(kill >= 0 && kill <= 100) || c.kill >= c.workers:
		err = fmt.Errorf("kill is %v %%; at least one of the %d workers must live", kill, c.workers)
	case !slices.Contains([]string{"fixed", "exponential", "lognormal"}, c.distribution):
		err = fmt.Errorf("distribution is %q; it must be fixed, exponential or lognormal", c.distribution)
	}
	if err != nil {
		return c, err
	}
	// Products and a quotient only: nothing that a machine may fuse.
	gap := float64(c.tasks) * float64(c.mean) * 1024 / load / float64(c.workers) / float64(c.slots)
	if end := gap * float64(c.jobs); !(end < 1<<60) {
		return c, fmt.Errorf("the last job would arrive after %.0f years; take fewer jobs, shorter tasks or more workers",
			end/1024/float64(365*24*time.Hour))
	}
	c.meanGap = max(1, time.Duration(gap))
	return c, nil
}

// duration of a task: the same for every policy.
func (c *config) duration(task int32) time.Duration {
	if c.distribution == "fixed" {
		return c.mean
	}
	r := engine.Stream(c.seed, "duration", uint64(task))
	if c.distribution == "exponential" {
		return r.Exp(c.mean)
	}
	// The median of a lognormal is its mean times e^(-1/2).
	return r.LogNormal(c.mean*60_653/100_000, 1000)
}

// Run runs one policy.
func (Experiment) Run(ctx context.Context, s simulations.Settings) (*simulations.Result, error) {
	name := s.Policy
	if name == "" {
		name = policies[0].name
	}
	i := slices.IndexFunc(policies, func(e entry) bool { return e.name == name })
	if i < 0 {
		return nil, fmt.Errorf("unknown policy %q; there are %s", name, strings.Join(Experiment{}.Policies(), ", "))
	}
	w, err := run(ctx, s, policies[i].make)
	if err != nil {
		return nil, err
	}
	return w.report(), nil
}

func run(ctx context.Context, s simulations.Settings, make func(*World) Policy) (*World, error) {
	c, err := read(s)
	if err != nil {
		return nil, err
	}
	w := newWorld(c)
	w.progress = s.Progress

	err = engine.Guard(c.seed, w.at, func() error {
		w.policy = make(w)
		return nil
	})
	if err != nil {
		return nil, err
	}
	w.planArrival()
	if c.kill > 0 {
		w.q.Push(c.killAt, Message{what: killed})
	}
	if err := engine.Run(ctx, c.seed, &w.q, w.handle); err != nil {
		return nil, err
	}
	return w, w.checkEnd()
}

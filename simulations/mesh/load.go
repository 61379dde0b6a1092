package mesh

import (
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/simulations/engine"
	"github.com/beammesh/beammesh/simulations/trace"
)

// Synthetic is a made-up mesh and its load: machines and shapes of package trace,
// in zones of a bounded size, Poisson arrivals at every owner, and run times that
// are exponential.
type Synthetic struct {
	Seed     uint64
	Nodes    int
	ZoneSize int // nodes of a zone; 0 = all
	Owners   int
	Tasks    int
	Run      time.Duration // mean
	// LoadPercent is how much of the GPUs the tasks want on average.
	LoadPercent int64
}

// Fill sets the nodes and tasks of a Config.
func (s Synthetic) Fill(c *Config) error {
	if s.Nodes < 1 || s.Owners < 1 || s.Tasks < 0 || s.Run <= 0 || s.LoadPercent < 1 {
		return fmt.Errorf("%d nodes, %d owners, %d tasks, run %v, load %d %%: each must be above zero", s.Nodes, s.Owners, s.Tasks, s.Run, s.LoadPercent)
	}
	var milli int64
	// Machines of a kind share their lists: a million of them must not cost a
	// gigabyte.
	kinds := map[string][]scheduler.Device{}
	c.Nodes = make([]scheduler.Capacity, 0, s.Nodes)
	for n := range trace.SyntheticNodes(s.Seed) {
		if len(c.Nodes) == s.Nodes {
			break
		}
		key := fmt.Sprint(n.Class, n.GPUs)
		b := n.Capacity()
		if _, ok := kinds[key]; !ok {
			kinds[key] = b.Devices
		}
		b.Devices = kinds[key]
		if s.ZoneSize > 0 {
			b.Zone = fmt.Sprintf("z%d", len(c.Nodes)/s.ZoneSize)
		}
		milli += int64(n.GPUs) * scheduler.GPUExclusive
		c.Nodes = append(c.Nodes, b)
	}
	shapes := trace.DefaultShapes()
	c.Kinds = c.Kinds[:0]
	var sum, wanted int64
	for _, x := range shapes {
		c.Kinds = append(c.Kinds, x.Demand)
		sum += x.Weight
		wanted += x.Weight * gpuMilli(&x.Demand)
	}
	// Between two arrivals at one owner; wanted/sum is what a task wants.
	every := time.Duration(int64(s.Run) / max(1, milli*s.LoadPercent/100*sum/max(1, wanted)*1) * int64(s.Owners))
	if milli == 0 || every <= 0 {
		every = max(every, s.Run/time.Duration(max(1, s.Nodes)))
	}
	c.Tasks = make([][]Task, s.Owners)
	for i := range c.Tasks {
		n := s.Tasks*(i+1)/s.Owners - s.Tasks*i/s.Owners
		r := engine.Stream(s.Seed, "tasks", uint64(i))
		ts := make([]Task, n)
		var now time.Duration
		for j := range ts {
			now += r.Exp(every)
			kind, at := int32(0), int64(r.IntN(int(sum)))
			for at -= shapes[kind].Weight; at >= 0; at -= shapes[kind].Weight {
				kind++
			}
			ts[j] = Task{At: now, Run: max(time.Millisecond, r.Exp(s.Run)), Kind: kind}
		}
		c.Tasks[i] = ts
	}
	return nil
}

// gpuMilli is what a demand wants of GPUs.
func gpuMilli(d *scheduler.Demand) int64 {
	if len(d.GPUs) == 0 {
		return 0
	}
	return int64(d.GPUs[0].Count) * d.Milli()
}

// Openb is the load of the FGD paper on Alibaba's 2023 trace: its tasks in random
// order, random copies of them until so much of the GPUs is wanted, one after the
// other.
type Openb struct {
	Seed    uint64
	Traces  string // directory
	List    string // of pods: "default"
	Owners  int
	Percent int64         // of all GPUs that arrives; 130 in the paper
	Every   time.Duration // between two arrivals
	// Run is the mean run time, exponential; 0 = nothing ever ends.
	Run time.Duration
}

// Fill sets the nodes and tasks of a Config, and gives the mix that the paper
// measures fragmentation by: the most frequent shapes that make up 95 % of the
// list.
func (s Openb) Fill(c *Config) (*scheduler.Mix, error) {
	if s.Owners < 1 || s.Every <= 0 || s.Percent < 1 {
		return nil, fmt.Errorf("%d owners, a task every %v, %d %%: each must be above zero", s.Owners, s.Every, s.Percent)
	}
	var all int64
	c.Nodes = nil
	err := read(filepath.Join(s.Traces, "openb", "openb_node_list_gpu_node.csv"), func(f *trace.File) error {
		for n, err := range trace.OpenbNodes(f) {
			if err != nil {
				return err
			}
			all += int64(n.GPUs) * scheduler.GPUExclusive
			c.Nodes = append(c.Nodes, n.Capacity())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	c.Kinds = nil
	var order []int32
	counts := map[int32]int64{}
	err = read(filepath.Join(s.Traces, "openb", "openb_pod_list_"+s.List+".csv"), func(f *trace.File) error {
		for t, err := range trace.OpenbPods(f) {
			if err != nil {
				return err
			}
			kind := int32(slices.IndexFunc(c.Kinds, func(d scheduler.Demand) bool { return sameKind(&d, &t.Demand) }))
			if kind < 0 {
				kind = int32(len(c.Kinds))
				c.Kinds = append(c.Kinds, t.Demand)
			}
			counts[kind]++
			order = append(order, kind)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	mix := typical(c.Kinds, counts, int64(len(order)))

	r := engine.Stream(s.Seed, "order", 0)
	r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	listed := len(order)
	c.Tasks = make([][]Task, s.Owners)
	var wanted int64
	for i := 0; wanted*100 < all*s.Percent; i++ {
		if i >= len(order) {
			order = append(order, order[r.IntN(listed)])
		}
		t := Task{At: time.Duration(i+1) * s.Every, Run: -1, Kind: order[i]}
		if s.Run > 0 {
			t.Run = r.Exp(s.Run)
		}
		o := r.IntN(s.Owners)
		c.Tasks[o] = append(c.Tasks[o], t)
		wanted += gpuMilli(&c.Kinds[order[i]])
	}
	return mix, nil
}

func sameKind(a, b *scheduler.Demand) bool {
	return a.CPUMillis == b.CPUMillis && a.MemoryMiB == b.MemoryMiB && a.GPUMilli == b.GPUMilli && slices.Equal(a.GPUs, b.GPUs)
}

// typical is the mix of the most frequent shapes, up to 95 % of all tasks. The
// paper's do not look at memory.
func typical(kinds []scheduler.Demand, counts map[int32]int64, n int64) *scheduler.Mix {
	var ws []scheduler.Weighted
	for i := range kinds {
		d := kinds[i]
		d.MemoryMiB = 0
		ws = append(ws, scheduler.Weighted{Demand: d, Weight: counts[int32(i)]})
	}
	shapes := scheduler.NewMix(ws, len(ws)).Shapes()
	var sum int64
	for i := range shapes {
		if sum*100 >= n*95 {
			return scheduler.NewMix(shapes[:i], i)
		}
		sum += shapes[i].Weight
	}
	return scheduler.NewMix(shapes, len(shapes))
}

func read(path string, use func(*trace.File) error) error {
	f, err := trace.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return use(f)
}

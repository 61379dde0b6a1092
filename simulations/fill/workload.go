package fill

import (
	"fmt"
	"iter"
	"math/rand"
	"path/filepath"
	"slices"
	"strings"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/trace"
)

// Lists are the pod lists of openb, as published.
var Lists = []string{
	"default", "cpu050", "cpu100", "cpu200", "cpu250",
	"gpushare40", "gpushare60", "gpushare80", "gpushare100",
	"gpuspec10", "gpuspec20", "gpuspec25", "gpuspec33",
	"multigpu20", "multigpu30", "multigpu40", "multigpu50",
}

// Synthetic is the list that needs no trace.
const Synthetic = "synthetic"

// syntheticTasks are as many as openb has.
const syntheticTasks = 8152

// workload reads the nodes and tasks of a list, both in the order of their names.
func workload(dir, list string, nodes int) ([]trace.Node, []trace.Task, error) {
	var ns []trace.Node
	var ts []trace.Task
	switch {
	case list == Synthetic:
		// The cluster and the work are the same for all seeds of a run, as a trace is.
		for n := range trace.SyntheticNodes(1) {
			if len(ns) == nodes {
				break
			}
			if n.GPUs > 0 {
				ns = append(ns, n)
			}
		}
		for t := range (trace.Synthetic{Seed: 1}).Tasks() {
			if len(ts) == syntheticTasks {
				break
			}
			ts = append(ts, t)
		}
	default:
		files, err := traceFiles(dir, list)
		if err != nil {
			return nil, nil, err
		}
		if ns, err = read(files[0], trace.OpenbNodes); err != nil {
			return nil, nil, err
		}
		if ts, err = read(files[1], trace.OpenbPods); err != nil {
			return nil, nil, err
		}
	}
	slices.SortStableFunc(ns, func(a, b trace.Node) int { return strings.Compare(a.Name, b.Name) })
	slices.SortStableFunc(ts, func(a, b trace.Task) int { return strings.Compare(a.Name, b.Name) })
	if len(ns) == 0 || len(ts) == 0 {
		return nil, nil, fmt.Errorf("list %s has %d nodes and %d tasks: it needs both", list, len(ns), len(ts))
	}
	return ns, ts, nil
}

// TraceFiles are the files that Run reads: none for the synthetic list.
func (Experiment) TraceFiles(s simulations.Settings) ([]string, error) {
	r := s.Reader(params)
	list := r.Text("list")
	if r.Err() != nil || list == Synthetic {
		return nil, r.Err()
	}
	return traceFiles(s.Traces, list)
}

// traceFiles are the nodes and the tasks of a list of openb.
func traceFiles(dir, list string) ([]string, error) {
	switch {
	case !slices.Contains(Lists, list):
		return nil, fmt.Errorf("there is no list %q: use %s or %s", list, Synthetic, strings.Join(Lists, ", "))
	case dir == "":
		return nil, fmt.Errorf("list %s is in the openb trace, and no directory of traces is set: set BEAM_TRACES, or use list=%s", list, Synthetic)
	}
	return []string{filepath.Join(dir, "openb", "openb_node_list_gpu_node.csv"), filepath.Join(dir, "openb", "openb_pod_list_"+list+".csv")}, nil
}

func read[T any](path string, rows func(*trace.File) iter.Seq2[T, error]) ([]T, error) {
	f, err := trace.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []T
	for x, err := range rows(f) {
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	return out, nil
}

// mixShare is how much of the tasks the shapes of the mix cover.
const mixShare = 95 // percent

// mixOf are the most frequent shapes of the tasks, to mixShare. Memory is not
// part of a shape, as published.
func mixOf(tasks []trace.Task) *scheduler.Mix {
	ws := make([]scheduler.Weighted, len(tasks))
	for i := range tasks {
		ws[i] = scheduler.Weighted{Demand: tasks[i].Demand, Weight: 1}
		ws[i].Demand.MemoryMiB = 0
	}
	all := scheduler.NewMix(ws, len(ws))
	var covered int64
	for i, w := range all.Shapes() {
		if covered*100 >= all.Weight()*mixShare {
			return scheduler.NewMix(all.Shapes(), i)
		}
		covered += w.Weight
	}
	return all
}

// arrivals shuffles the tasks and then repeats random ones, or drops some, until
// they ask for percent of milli, the GPUs of the cluster.
func arrivals(tasks []trace.Task, milli, percent int64, draw *rand.Rand) []*scheduler.Demand {
	var asked int64
	out := make([]*scheduler.Demand, len(tasks))
	for i := range tasks {
		out[i] = &tasks[i].Demand
		asked += gpuMilli(out[i])
	}
	pool := slices.Clone(out)
	draw.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	if asked == 0 {
		return out // nothing to measure by
	}
	target := milli * percent / 100
	for asked > target {
		i := draw.Intn(len(out))
		asked -= gpuMilli(out[i])
		out = slices.Delete(out, i, i+1)
	}
	for asked < target {
		d := pool[draw.Intn(len(pool))]
		if asked+d.Milli() > target {
			break
		}
		asked += gpuMilli(d)
		out = append(out, d)
	}
	return out
}

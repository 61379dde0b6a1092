package mesh

import (
	"cmp"
	"slices"
	"time"
)

// Unallocated is the share of all GPUs, in thousandths of a percent, that no task
// has when the tasks that arrived want so many percent of all GPUs: the measure
// of the FGD paper, for tasks that never end.
func Unallocated(cfg *Config, percent int64) int64 {
	type arrived struct {
		at     time.Duration
		milli  int64
		placed bool
	}
	var all int64
	for i := range cfg.Nodes {
		for _, d := range cfg.Nodes[i].Devices {
			all += d.FreeMilli
		}
	}
	var ts []arrived
	for i := range cfg.Tasks {
		for j := range cfg.Tasks[i] {
			t := &cfg.Tasks[i][j]
			ts = append(ts, arrived{t.At, gpuMilli(&cfg.Kinds[t.Kind]), t.State == Running || t.State == Done})
		}
	}
	slices.SortFunc(ts, func(a, b arrived) int { return cmp.Compare(a.at, b.at) })
	var wanted, has int64
	for _, t := range ts {
		if wanted*100 >= all*percent {
			break
		}
		wanted += t.milli
		if t.placed {
			has += t.milli
		}
	}
	return 100_000 - has*100_000/max(1, all)
}

// Allocated is the share of all GPUs, in thousandths of a percent, that tasks had
// on average between two times.
func Allocated(cfg *Config, from, to time.Duration) int64 {
	var all, area int64
	for i := range cfg.Nodes {
		all += int64(len(cfg.Nodes[i].Devices)) * 1000
	}
	for i := range cfg.Tasks {
		for j := range cfg.Tasks[i] {
			t := &cfg.Tasks[i][j]
			if t.State != Running && t.State != Done {
				continue
			}
			end := to
			if t.State == Done {
				end = min(end, t.Ended)
			}
			if span := end - max(from, t.Placed); span > 0 {
				area += int64(span/time.Millisecond) * gpuMilli(&cfg.Kinds[t.Kind])
			}
		}
	}
	return area * 100 / max(1, int64((to-from)/time.Millisecond)*all/1000)
}

package scheduler

import (
	"fmt"
	"slices"
	"strings"

	"github.com/beammesh/beammesh/scheduler/gpu"
)

// Code names why a node refuses, for programs; Text is for people.
type Code string

// The reasons.
const (
	NoGPU        Code = "no_gpu"     // the node has no GPU
	GPUClass     Code = "gpu_class"  // it has others than asked for
	GPUCount     Code = "gpu_count"  // too few of the class in all
	GPUBusy      Code = "gpu_busy"   // enough, but not free now
	CPU          Code = "cpu"        // too few cores
	Memory       Code = "memory"     // too little memory
	Disk         Code = "disk"       // too little disk in all
	DiskFloor    Code = "disk_floor" // the disk is nearly full
	Draining     Code = "draining"   // the node is about to leave
	Isolation    Code = "isolation"
	Arch         Code = "arch"
	Feature      Code = "feature"
	Unreachable  Code = "unreachable"    // said by the owner, not by the node
	NoAnswer     Code = "no_answer"      // said by the owner, not by the node
	StaleFence   Code = "stale_fence"    // the award is older than one seen before
	Limit        Code = "limit"          // a table of the worker is full
	InvalidInput Code = "invalid_demand" // the demand is out of its bounds
)

// Refusal is one reason why a node cannot take a demand.
type Refusal struct {
	Code Code
	// Never: waiting does not help, the machine itself is too small or lacks it.
	Never bool
	Text  string // "needs 64 GiB, 12 GiB free"
}

// String is the text.
func (r Refusal) String() string { return r.Text }

// Fit is the short answer to whether a node can take a demand.
type Fit int

// The answers, the worst first.
const (
	FitNever  Fit = iota // the machine is too small or lacks something
	FitNotNow            // but it would fit an empty machine
	FitNow
)

// FitOf is Feasible without the words; it allocates nothing.
func FitOf(d *Demand, c *Capacity) Fit { return fitOf(d, c, d.CPUMillis) }

// fitOf lets the caller look at a node as if the demand asked for cpu.
func fitOf(d *Demand, c *Capacity, cpu int64) Fit {
	if d.Arch != "" && d.Arch != c.Arch ||
		d.Isolation != "" && !slices.Contains(c.Isolation, d.Isolation) ||
		cpu > c.Total.CPUMillis || d.MemoryMiB > c.Total.MemoryMiB ||
		d.DiskMiB > max(0, c.Total.DiskMiB-c.DiskFloorMiB) {
		return FitNever
	}
	for _, f := range d.Features {
		if !slices.Contains(c.Features, f) {
			return FitNever
		}
	}
	gpus := FitNow
	if len(d.GPUs) > 0 {
		gpus = FitNever
		for i := range d.GPUs {
			total, free := countDevices(&d.GPUs[i], d.Milli(), c)
			switch {
			case free >= d.GPUs[i].Count:
				gpus = FitNow
			case total >= d.GPUs[i].Count:
				gpus = max(gpus, FitNotNow)
			}
		}
	}
	switch {
	case gpus == FitNever:
		return FitNever
	case gpus == FitNotNow || c.Draining || cpu > c.Free.CPUMillis || d.MemoryMiB > c.Free.MemoryMiB ||
		d.DiskMiB > c.Free.DiskMiB-c.DiskFloorMiB:
		return FitNotNow
	}
	return FitNow
}

// countDevices counts the devices that match a choice, and those with the share free.
func countDevices(w *gpu.Want, milli int64, c *Capacity) (total, free int) {
	for i := range c.Devices {
		if gpu.Matches(w.Class, c.Devices[i].Class) {
			total++
			if c.Devices[i].FreeMilli >= milli {
				free++
			}
		}
	}
	return total, free
}

// Feasible lists every reason why a node with capacity c cannot take d now.
// Empty means it can.
func Feasible(d *Demand, c *Capacity) []Refusal {
	var rs []Refusal
	add := func(code Code, never bool, format string, args ...any) {
		rs = append(rs, Refusal{code, never, fmt.Sprintf(format, args...)})
	}
	if r, ok := gpuRefusal(d, c); ok {
		rs = append(rs, r)
	}
	switch {
	case d.CPUMillis > c.Total.CPUMillis:
		add(CPU, true, "needs %s, has %s", Cores(d.CPUMillis), Cores(c.Total.CPUMillis))
	case d.CPUMillis > c.Free.CPUMillis:
		add(CPU, false, "needs %s, %s free", Cores(d.CPUMillis), Cores(c.Free.CPUMillis))
	}
	switch {
	case d.MemoryMiB > c.Total.MemoryMiB:
		add(Memory, true, "needs %s, has %s", Size(d.MemoryMiB), Size(c.Total.MemoryMiB))
	case d.MemoryMiB > c.Free.MemoryMiB:
		add(Memory, false, "needs %s, %s free", Size(d.MemoryMiB), Size(c.Free.MemoryMiB))
	}
	switch {
	case d.DiskMiB > max(0, c.Total.DiskMiB-c.DiskFloorMiB):
		add(Disk, true, "needs %s of disk, has %s above its floor", Size(d.DiskMiB), Size(max(0, c.Total.DiskMiB-c.DiskFloorMiB)))
	case c.Free.DiskMiB < c.DiskFloorMiB:
		add(DiskFloor, false, "disk below its floor: %s free, %s are kept", Size(c.Free.DiskMiB), Size(c.DiskFloorMiB))
	case d.DiskMiB > c.Free.DiskMiB-c.DiskFloorMiB:
		add(DiskFloor, false, "needs %s of disk, %s free above its floor", Size(d.DiskMiB), Size(c.Free.DiskMiB-c.DiskFloorMiB))
	}
	if d.Isolation != "" && !slices.Contains(c.Isolation, d.Isolation) {
		add(Isolation, true, "cannot run %q containers", d.Isolation)
	}
	if d.Arch != "" && d.Arch != c.Arch {
		add(Arch, true, "is %s, needs %s", orNone(c.Arch), d.Arch)
	}
	for _, f := range d.Features {
		if !slices.Contains(c.Features, f) {
			add(Feature, true, "lacks %s", f)
		}
	}
	if c.Draining {
		add(Draining, false, "draining")
	}
	return rs
}

// gpuRefusal says why no alternative fits; NEVER only if none ever can.
func gpuRefusal(d *Demand, c *Capacity) (Refusal, bool) {
	if len(d.GPUs) == 0 {
		return Refusal{}, false
	}
	asked := gpu.Format(d.GPUs)
	if len(c.Devices) == 0 {
		return Refusal{NoGPU, true, "has no GPU, asked for " + asked}, true
	}
	best := Refusal{GPUClass, true, fmt.Sprintf("has %s, asked for %s", deviceList(c), asked)}
	for i := range d.GPUs {
		w := &d.GPUs[i]
		total, free := countDevices(w, d.Milli(), c)
		switch {
		case free >= w.Count:
			return Refusal{}, false
		case total >= w.Count && best.Never:
			best = Refusal{GPUBusy, false, fmt.Sprintf("needs %s, %d of %d free", gpu.Format(d.GPUs[i:i+1]), free, total)}
		case total > 0 && best.Code == GPUClass:
			best = Refusal{GPUCount, true, fmt.Sprintf("has %s, asked for %s", deviceList(c), asked)}
		}
	}
	return best, true
}

// deviceList prints "2x H100, RTX4090 (simulated)".
func deviceList(c *Capacity) string {
	var parts []string
	seen := map[string]bool{} // only looked up, never ranged over
	for i := range c.Devices {
		d := &c.Devices[i]
		name := d.Class
		if d.Simulated {
			name += " (simulated)"
		}
		if seen[name] {
			continue
		}
		seen[name] = true
		n := 0
		for j := range c.Devices {
			if c.Devices[j].Class == d.Class && c.Devices[j].Simulated == d.Simulated {
				n++
			}
		}
		if n > 1 {
			name = fmt.Sprintf("%dx %s", n, name)
		}
		parts = append(parts, name)
	}
	return strings.Join(parts, ", ")
}

func orNone(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

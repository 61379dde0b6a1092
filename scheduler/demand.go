package scheduler

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/beammesh/beammesh/scheduler/gpu"
)

// NodeID is a node's peer id. The scheduler only compares and hashes it.
type NodeID string

// GPUExclusive is a whole device in the unit of Demand.GPUMilli.
const GPUExclusive = 1000

// Bounds on a Demand that came from elsewhere.
const (
	MaxGPUChoices = 16
	MaxGPUCount   = 64
	MaxRoots      = 16
	MaxFeatures   = 16
	maxNameBytes  = 128
	maxMillis     = 1 << 31 // two million cores, or MiB: far above any machine
)

// Priority classes. Nothing preempts yet; waiting work is pulled in this order.
const (
	PriorityServing = 0 // somebody waits for the answer
	PriorityBatch   = 1
	PrioritySpot    = 2
)

// Root is one content tree (image layer stack or code) that the container needs.
type Root struct {
	Name  string // CID text, compared with Capacity.HotRoots
	Bytes int64  // what a node without it has to fetch; an estimate
}

// Demand is what one container needs of a node.
type Demand struct {
	CPUMillis int64 // thousandths of a core; compressible, see View.Clamp
	MemoryMiB int64
	DiskMiB   int64 // writable layer

	// GPUs are alternatives, the preferred first (gpu.Parse makes them). Empty
	// means no GPU.
	GPUs []gpu.Want
	// GPUMilli is the share of each device; 0 and GPUExclusive are a whole one.
	GPUMilli int64

	// StrictCPU refuses to run with fewer cores than asked for.
	StrictCPU bool

	Roots     []Root
	Isolation string   // "" or "trusted" or "sandboxed": the node must advertise it
	Zone      string   // preferred, not required
	Arch      string   // "" or a GOARCH
	Features  []string // each must be advertised, for example "python/3.11"

	Priority  int    // Priority* above
	Workspace string // whose work it is; fair share comes later
}

// Milli is GPUMilli with its default.
func (d *Demand) Milli() int64 {
	if d.GPUMilli <= 0 {
		return GPUExclusive
	}
	return d.GPUMilli
}

// Validate refuses what no honest caller sends: negative amounts, lists or names
// above their bounds. The error is for the sender.
func (d *Demand) Validate() error {
	for _, q := range [...]struct {
		name string
		n    int64
	}{{"cpu", d.CPUMillis}, {"memory", d.MemoryMiB}, {"disk", d.DiskMiB}} {
		if q.n < 0 || q.n > maxMillis {
			return fmt.Errorf("demand: %s is out of range", q.name)
		}
	}
	if d.GPUMilli < 0 || d.GPUMilli > GPUExclusive {
		return errors.New("demand: a share of a GPU is 1 to 1000 thousandths")
	}
	if len(d.GPUs) > MaxGPUChoices || len(d.Roots) > MaxRoots || len(d.Features) > MaxFeatures {
		return errors.New("demand: list is too long")
	}
	for _, w := range d.GPUs {
		if w.Count < 1 || w.Count > MaxGPUCount {
			return fmt.Errorf("demand: gpu count %d is not 1 to %d", w.Count, MaxGPUCount)
		}
		if w.Class == "" || len(w.Class) > maxNameBytes {
			return errors.New("demand: bad gpu name")
		}
	}
	for _, r := range d.Roots {
		if r.Bytes < 0 || len(r.Name) > maxNameBytes {
			return errors.New("demand: bad root")
		}
	}
	for _, f := range d.Features {
		if len(f) > maxNameBytes {
			return errors.New("demand: name is too long")
		}
	}
	for _, s := range [...]string{d.Isolation, d.Zone, d.Arch, d.Workspace} {
		if len(s) > maxNameBytes {
			return errors.New("demand: name is too long")
		}
	}
	return nil
}

// Shape is equal for demands that the same nodes can serve equally well: waiting
// work is offered per shape. It is 16 hex digits.
func (d *Demand) Shape() string {
	h := uint64(14695981039346656037) // 64-bit FNV-1a
	str := func(s string) {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
		h *= 1099511628211 // a zero byte ends it
	}
	num := func(n int64) {
		var b [20]byte
		for _, c := range strconv.AppendInt(b[:0], n, 10) {
			h = (h ^ uint64(c)) * 1099511628211
		}
		h *= 1099511628211
	}
	num(d.CPUMillis)
	num(d.MemoryMiB)
	num(d.DiskMiB)
	num(d.Milli())
	num(int64(d.Priority))
	if d.StrictCPU {
		num(1)
	}
	for _, w := range d.GPUs {
		str(w.Class)
		num(int64(w.Count))
	}
	num(-1)
	for _, r := range d.Roots {
		str(r.Name)
	}
	num(-2)
	for _, f := range d.Features {
		str(f)
	}
	num(-3)
	str(d.Isolation)
	str(d.Zone)
	str(d.Arch)
	str(d.Workspace)
	const digits = "0123456789abcdef"
	var b [16]byte
	for i := range b {
		b[i] = digits[h>>(60-4*i)&15]
	}
	return string(b[:])
}

// String is for people: "2 cores, 4 GiB, H100 or 2x A100".
func (d Demand) String() string {
	parts := []string{Cores(d.CPUMillis)}
	if d.MemoryMiB > 0 {
		parts = append(parts, Size(d.MemoryMiB))
	}
	if d.DiskMiB > 0 {
		parts = append(parts, Size(d.DiskMiB)+" disk")
	}
	if len(d.GPUs) > 0 {
		s := gpu.Format(d.GPUs)
		if m := d.Milli(); m < GPUExclusive {
			s += fmt.Sprintf(" (%d/1000)", m)
		}
		parts = append(parts, s)
	}
	for _, s := range [...]string{d.Isolation, d.Arch} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	parts = append(parts, d.Features...)
	return strings.Join(parts, ", ")
}

// Cores prints thousandths of a core: "1 core", "2.5 cores".
func Cores(millis int64) string {
	if millis == 1000 {
		return "1 core"
	}
	return strconv.FormatFloat(float64(millis)/1000, 'f', -1, 64) + " cores"
}

// Size prints MiB: "512 MiB", "12 GiB", "1.5 GiB".
func Size(mib int64) string {
	if mib < 1024 {
		return strconv.FormatInt(mib, 10) + " MiB"
	}
	tenths := (mib*10 + 512) / 1024
	if tenths%10 == 0 {
		return strconv.FormatInt(tenths/10, 10) + " GiB"
	}
	return fmt.Sprintf("%d.%d GiB", tenths/10, tenths%10)
}

package scheduler

import (
	"errors"
	"slices"
)

// Bounds on an Advert that came from elsewhere.
const (
	MaxDevices  = 64
	MaxHotRoots = 32
)

// Resources are amounts of the three divisible things a node has.
type Resources struct {
	CPUMillis int64
	MemoryMiB int64
	DiskMiB   int64
}

// Device is one GPU (or one MIG instance) of a node.
type Device struct {
	ID        string // unique on its node: the NVML UUID, or "sim-0"
	Class     string // normalised name, see gpu.Normalise
	MemoryMiB int64
	FreeMilli int64 // 0..GPUExclusive
	Simulated bool  // a device only in name, shown as such wherever it is shown
}

// Capacity is what a node has and how much of it is free now. Holds for open
// bids count as used.
type Capacity struct {
	Total, Free Resources
	// DiskFloorMiB stays free: an admission that would go below it is refused.
	DiskFloorMiB int64
	Devices      []Device // fixed order
	Queue        int      // containers being started, which a newcomer waits behind
	Zone         string
	HotRoots     []string // <= MaxHotRoots, complete on this node
	Isolation    []string // classes it can run: "trusted", "sandboxed"
	Arch         string   // GOARCH
	Features     []string // for example "python/3.11"
	Draining     bool
	// BandwidthKiBps is what this node measured when fetching from the mesh;
	// 0 = not measured.
	BandwidthKiBps int64
}

// Advert is a node's signed statement of its capacity. A higher Seq of the same
// Boot is newer; a Boot seen for the first time is newer than any earlier one.
type Advert struct {
	Node     NodeID
	Name     string // host name, for people
	Boot     string // random per start of the node
	Seq      uint64 // grows with every change
	Capacity Capacity
}

// Validate refuses adverts above the bounds or with impossible amounts.
func (a *Advert) Validate() error {
	c := &a.Capacity
	switch {
	case a.Node == "" || len(a.Node) > maxNameBytes || len(a.Name) > maxNameBytes || len(a.Boot) > maxNameBytes:
		return errors.New("advert: bad name")
	case len(c.Devices) > MaxDevices || len(c.HotRoots) > MaxHotRoots ||
		len(c.Isolation) > MaxFeatures || len(c.Features) > MaxFeatures:
		return errors.New("advert: list is too long")
	case !c.Total.within(Resources{maxMillis, maxMillis, maxMillis}) || !c.Free.within(c.Total):
		return errors.New("advert: amount is out of range")
	case c.DiskFloorMiB < 0 || c.DiskFloorMiB > maxMillis || c.Queue < 0 || c.Queue > 1<<20 ||
		c.BandwidthKiBps < 0 || c.BandwidthKiBps > 1<<40:
		return errors.New("advert: amount is out of range")
	}
	for i := range c.Devices {
		d := &c.Devices[i]
		if d.FreeMilli < 0 || d.FreeMilli > GPUExclusive || d.MemoryMiB < 0 || d.MemoryMiB > maxMillis ||
			d.ID == "" || len(d.ID) > maxNameBytes || len(d.Class) > maxNameBytes {
			return errors.New("advert: bad device")
		}
		for j := range i {
			if c.Devices[j].ID == d.ID {
				return errors.New("advert: device is listed twice")
			}
		}
	}
	return nil
}

func (r Resources) within(o Resources) bool {
	return r.CPUMillis >= 0 && r.CPUMillis <= o.CPUMillis &&
		r.MemoryMiB >= 0 && r.MemoryMiB <= o.MemoryMiB &&
		r.DiskMiB >= 0 && r.DiskMiB <= o.DiskMiB
}

// Clone is a deep copy.
func (c Capacity) Clone() Capacity {
	c.Devices = slices.Clone(c.Devices)
	c.HotRoots = slices.Clone(c.HotRoots)
	c.Isolation = slices.Clone(c.Isolation)
	c.Features = slices.Clone(c.Features)
	return c
}

// Class is the class of the node's first device, or "" for a node without GPUs.
func (c *Capacity) Class() string {
	if len(c.Devices) == 0 {
		return ""
	}
	return c.Devices[0].Class
}

// HashOf is the canonical order of nodes: 64-bit FNV-1a of the id.
func HashOf(n NodeID) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(n) {
		h = (h ^ uint64(n[i])) * 1099511628211
	}
	return h
}

package scheduler

import (
	"slices"

	"github.com/beammesh/beammesh/scheduler/gpu"
)

// Grant is what a worker gave to one lease.
type Grant struct {
	Devices   []string // device ids, in the node's order
	CPUMillis int64    // the container's limit, never above the machine's cores
	MemoryMiB int64
	DiskMiB   int64
	GPUMilli  int64 // of each device
}

// Allocate takes d out of c.Free and the devices and says what was taken. It
// changes nothing when d does not fit.
//
// The first alternative that fits wins. Shares go to the fullest device that
// still has room, whole devices are taken in the node's order.
func Allocate(d *Demand, c *Capacity) (Grant, bool) {
	return allocate(d, c, nil)
}

// Allocate is the same with the device of a share chosen so that the least
// fragment is left. p may be nil.
func (p *Packing) Allocate(d *Demand, c *Capacity) (Grant, bool) { return allocate(d, c, p) }

func allocate(d *Demand, c *Capacity, p *Packing) (Grant, bool) {
	var few [MaxGPUCount]int
	picked, ok := take(d, c, few[:0], p)
	if !ok {
		return Grant{}, false
	}
	g := Grant{CPUMillis: d.CPUMillis, MemoryMiB: d.MemoryMiB, DiskMiB: d.DiskMiB}
	if len(picked) > 0 {
		g.GPUMilli = d.Milli()
		g.Devices = make([]string, len(picked))
		for i, j := range picked {
			g.Devices[i] = c.Devices[j].ID
		}
	}
	return g, true
}

// take is Allocate that appends the indexes of the devices, in order, to picked.
func take(d *Demand, c *Capacity, picked []int, p *Packing) ([]int, bool) {
	if FitOf(d, c) != FitNow {
		return picked, false
	}
	if i := Choice(d, c); i >= 0 {
		w := &d.GPUs[i]
		milli := d.Milli()
		if w.Count == 1 && milli < GPUExclusive && p.active() {
			picked = append(picked, p.Picks(d, c).first())
		}
		for len(picked) < w.Count {
			best := -1
			for j := range c.Devices {
				dev := &c.Devices[j]
				if dev.FreeMilli < milli || best >= 0 && dev.FreeMilli >= c.Devices[best].FreeMilli ||
					!gpu.Matches(w.Class, dev.Class) || slices.Contains(picked, j) {
					continue
				}
				best = j
			}
			picked = append(picked, best)
		}
		slices.Sort(picked)
		for _, j := range picked {
			c.Devices[j].FreeMilli -= milli
		}
	}
	c.Free.CPUMillis -= d.CPUMillis
	c.Free.MemoryMiB -= d.MemoryMiB
	c.Free.DiskMiB -= d.DiskMiB
	return picked, true
}

// Choice is the index of the first GPU alternative that fits now, or -1.
func Choice(d *Demand, c *Capacity) int {
	for i := range d.GPUs {
		if _, free := countDevices(&d.GPUs[i], d.Milli(), c); free >= d.GPUs[i].Count {
			return i
		}
	}
	return -1
}

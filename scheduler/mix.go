package scheduler

import (
	"cmp"
	"math/bits"
	"slices"
	"strings"

	"github.com/beammesh/beammesh/scheduler/gpu"
)

// Bounds of a Mix.
const (
	// MaxShapes is how many shapes a node keeps: the most frequent 64 cover nearly
	// all work of the clusters we have traces of, and fit one gossip message.
	MaxShapes = 64
	// maxMixWeight bounds the sum of weights in a mix, so that no sum below
	// overflows: MaxDevices * GPUExclusive * maxMixWeight * scoreUnit < 1<<60.
	maxMixWeight = 1 << 24
	// maxWeight bounds one weight that goes in.
	maxWeight = 1 << 40
)

// Weighted is a shape of work and how often it was seen. Only the cores, the
// memory and the GPUs of Demand count; zero memory means that memory does not
// matter to it.
type Weighted struct {
	Demand Demand
	Weight int64 // > 0
}

// Mix is what a mesh has been asked for lately: the yardstick for fragmentation.
// Idle GPU is a fragment as far as the shapes of the mix cannot use it where it
// is, each shape counting by its weight. This is the measure of FGD (Weng et
// al., "Beware of Fragmentation", USENIX ATC'23, section 4), as whole numbers:
// its probabilities are weights here, and all amounts are milli-GPU times
// weight. Divide by Weight for milli-GPU.
//
// A Mix never changes and may be used by many goroutines at once.
type Mix struct {
	weight int64 // of all shapes, those without GPUs too
	shapes []Weighted
	// Shapes with one alternative, by class and then share, so that the devices
	// are counted once for all shapes that look at the same ones.
	classes []mixClass
	// Shapes with several alternatives.
	choices []Weighted
}

type mixClass struct {
	class  string
	shares []mixShare
}

type mixShare struct {
	milli  int64
	shapes []mixShape
}

type mixShape struct {
	cpu, memory int64
	count       int
	weight      int64
}

// NewMix makes a mix of the limit heaviest shapes. Equal shapes are added up,
// and the order of ws does not matter; shapes with a weight below 1 are left out.
func NewMix(ws []Weighted, limit int) *Mix {
	m := &Mix{shapes: heaviest(ws, limit)}
	for i := range m.shapes {
		w := &m.shapes[i]
		m.weight += w.Weight
		switch d := &w.Demand; len(d.GPUs) {
		case 0: // cannot use a GPU wherever it is: nothing to look up
		case 1:
			share := m.share(d.GPUs[0].Class, d.GPUMilli)
			share.shapes = append(share.shapes, mixShape{d.CPUMillis, d.MemoryMiB, d.GPUs[0].Count, w.Weight})
		default:
			m.choices = append(m.choices, *w)
		}
	}
	return m
}

// heaviest merges equal shapes and keeps the heaviest; of equal weight those that
// are harder to place.
func heaviest(ws []Weighted, limit int) []Weighted {
	all := make([]Weighted, 0, len(ws))
	for _, w := range ws {
		if w.Weight > 0 {
			all = append(all, Weighted{shapeOf(&w.Demand), min(w.Weight, maxWeight)})
		}
	}
	slices.SortFunc(all, func(a, b Weighted) int { return compareShapes(&a.Demand, &b.Demand) })
	n := 0
	for i := range all {
		if n > 0 && compareShapes(&all[n-1].Demand, &all[i].Demand) == 0 {
			all[n-1].Weight = min(all[n-1].Weight+all[i].Weight, maxWeight)
			continue
		}
		all[n] = all[i]
		n++
	}
	all = all[:n]
	slices.SortFunc(all, func(a, b Weighted) int {
		return cmp.Or(cmp.Compare(b.Weight, a.Weight), compareShapes(&b.Demand, &a.Demand))
	})
	all = all[:min(n, max(0, limit))]
	var sum int64
	for i := range all {
		sum += all[i].Weight
	}
	if over := bits.Len64(uint64(sum / (maxMixWeight + 1))); over > 0 {
		for i := range all {
			all[i].Weight >>= over
		}
		all = slices.DeleteFunc(all, func(w Weighted) bool { return w.Weight == 0 })
	}
	return all
}

// shapeOf is the part of a demand that a mix looks at.
func shapeOf(d *Demand) Demand {
	s := Demand{CPUMillis: d.CPUMillis, MemoryMiB: d.MemoryMiB}
	if len(d.GPUs) > 0 {
		s.GPUs, s.GPUMilli = d.GPUs, d.Milli()
	}
	return s
}

// compareShapes orders what shapeOf gives, roughly by how hard it is to place: more
// cores, memory and GPUs, and a certain class, come later.
func compareShapes(a, b *Demand) int {
	return cmp.Or(
		cmp.Compare(a.CPUMillis, b.CPUMillis),
		cmp.Compare(a.MemoryMiB, b.MemoryMiB),
		cmp.Compare(a.GPUMilli, b.GPUMilli),
		slices.CompareFunc(a.GPUs, b.GPUs, func(x, y gpu.Want) int {
			return cmp.Or(cmp.Compare(x.Count, y.Count), strings.Compare(anyFirst(x.Class), anyFirst(y.Class)))
		}))
}

func anyFirst(class string) string {
	if class == gpu.Any {
		return ""
	}
	return class
}

func (m *Mix) share(class string, milli int64) *mixShare {
	i := slices.IndexFunc(m.classes, func(c mixClass) bool { return c.class == class })
	if i < 0 {
		i = len(m.classes)
		m.classes = append(m.classes, mixClass{class: class})
	}
	c := &m.classes[i]
	j := slices.IndexFunc(c.shares, func(s mixShare) bool { return s.milli == milli })
	if j < 0 {
		j = len(c.shares)
		c.shares = append(c.shares, mixShare{milli: milli})
	}
	return &c.shares[j]
}

// Weight is the sum of all weights: the divisor that turns the amounts of this
// mix into milli-GPU. Zero for an empty mix.
func (m *Mix) Weight() int64 { return m.weight }

// Shapes are the shapes of the mix, the heaviest first. Read only.
func (m *Mix) Shapes() []Weighted { return m.shapes }

// Picks is a set of devices of one Capacity: bit i stands for Devices[i].
type Picks uint64

// Has says whether device i is in the set.
func (p Picks) Has(i int) bool { return p>>i&1 != 0 }

// Len is the number of devices.
func (p Picks) Len() int { return bits.OnesCount64(uint64(p)) }

// idle is the free part of a node, in a form that is cheap to change.
type idle struct {
	cpu, memory int64
	free        [MaxDevices]int64 // milli-GPU
	devices     []Device          // for their classes
}

func idleOf(c *Capacity) idle {
	s := idle{cpu: c.Free.CPUMillis, memory: c.Free.MemoryMiB, devices: c.Devices[:min(len(c.Devices), MaxDevices)]}
	for i := range s.devices {
		s.free[i] = s.devices[i].FreeMilli
	}
	return s
}

// matching are the devices of a class.
func (s *idle) matching(class string) (p Picks) {
	for i := range s.devices {
		// Most nodes have one kind of device: compare names once.
		if i > 0 && s.devices[i].Class == s.devices[i-1].Class {
			p |= p >> (i - 1) & 1 << i
		} else if gpu.Matches(class, s.devices[i].Class) {
			p |= 1 << i
		}
	}
	return p
}

// count gives the devices among p with at least milli free: how many, and how
// much is free on them.
func (s *idle) count(p Picks, milli int64) (n int, free int64) {
	if p == 1<<len(s.devices)-1 {
		for _, f := range s.free[:len(s.devices)] {
			if f >= milli {
				n++
				free += f
			}
		}
		return n, free
	}
	for ; p != 0; p &= p - 1 {
		if f := s.free[bits.TrailingZeros64(uint64(p))]; f >= milli {
			n++
			free += f
		}
	}
	return n, free
}

// Fragment is how much of c's idle GPU the mix cannot use, in milli-GPU times
// weight: for a shape that fits, what is idle on devices with less than its
// share; for any other, all that is idle. It allocates nothing.
func (m *Mix) Fragment(c *Capacity) int64 {
	s := idleOf(c)
	return m.fragment(&s)
}

func (m *Mix) fragment(s *idle) int64 {
	var total, used int64
	for _, f := range s.free[:len(s.devices)] {
		total += f
	}
	if total == 0 {
		return 0
	}
	for i := range m.classes {
		c := &m.classes[i]
		p := s.matching(c.class)
		if p == 0 {
			continue
		}
		for j := range c.shares {
			n, free := s.count(p, c.shares[j].milli)
			if n == 0 {
				continue
			}
			var weight int64
			for _, w := range c.shares[j].shapes {
				if w.cpu <= s.cpu && w.count <= n && w.memory <= s.memory {
					weight += w.weight
				}
			}
			used += weight * free
		}
	}
	for i := range m.choices {
		used += m.choices[i].Weight * s.best(&m.choices[i].Demand)
	}
	return total*m.weight - used
}

// best is what d could use of the node: the most that one of its alternatives
// finds, 0 when none fits.
func (s *idle) best(d *Demand) (most int64) {
	if d.CPUMillis > s.cpu || d.MemoryMiB > s.memory {
		return 0
	}
	for i := range d.GPUs {
		if n, free := s.count(s.matching(d.GPUs[i].Class), d.GPUMilli); n >= d.GPUs[i].Count {
			most = max(most, free)
		}
	}
	return most
}

// Delta is how much the fragment of c grows when d is placed there, in milli-GPU
// times weight, on the devices that make it grow least; of equal ones the first
// in the node's order. Demands for several devices take what Allocate takes. d
// must fit (FitOf gives FitNow). It allocates nothing.
func (m *Mix) Delta(d *Demand, c *Capacity) (delta int64, picks Picks) {
	s := idleOf(c)
	choice := Choice(d, c)
	if choice < 0 || d.GPUs[choice].Count > 1 || d.Milli() == GPUExclusive {
		picks = PicksOf(d, c)
		return m.grow(&s, d, picks), picks
	}
	before := m.fragment(&s)
	s.cpu -= d.CPUMillis
	s.memory -= d.MemoryMiB
	milli, p := d.Milli(), s.matching(d.GPUs[choice].Class)
	for i := range s.devices {
		if !p.Has(i) || s.free[i] < milli || s.twin(i) {
			continue
		}
		s.free[i] -= milli
		grown := m.fragment(&s) - before
		s.free[i] += milli
		if picks == 0 || grown < delta {
			delta, picks = grown, 1<<i
		}
	}
	return delta, picks
}

// twin says whether an earlier device is like device i.
func (s *idle) twin(i int) bool {
	for j := range i {
		if s.free[j] == s.free[i] && s.devices[j].Class == s.devices[i].Class {
			return true
		}
	}
	return false
}

// DeltaOn is Delta for a choice of devices that the caller made.
func (m *Mix) DeltaOn(d *Demand, c *Capacity, picks Picks) int64 {
	s := idleOf(c)
	return m.grow(&s, d, picks)
}

func (m *Mix) grow(s *idle, d *Demand, picks Picks) int64 {
	before := m.fragment(s)
	s.cpu -= d.CPUMillis
	s.memory -= d.MemoryMiB
	for p := picks; p != 0; p &= p - 1 {
		s.free[bits.TrailingZeros64(uint64(p))] -= d.Milli()
	}
	return m.fragment(s) - before
}

// PicksOf are the devices that Allocate would take for d: of the first
// alternative that fits the fullest with room, in the node's order. Empty when
// d wants no GPU or does not fit.
func PicksOf(d *Demand, c *Capacity) (picks Picks) {
	i := Choice(d, c)
	if i < 0 {
		return 0
	}
	milli := d.Milli()
	for range d.GPUs[i].Count {
		best := -1
		for j := range c.Devices[:min(len(c.Devices), MaxDevices)] {
			dev := &c.Devices[j]
			if picks.Has(j) || dev.FreeMilli < milli || !gpu.Matches(d.GPUs[i].Class, dev.Class) {
				continue
			}
			if best < 0 || dev.FreeMilli < c.Devices[best].FreeMilli {
				best = j
			}
		}
		if best >= 0 {
			picks |= 1 << best
		}
	}
	return picks
}

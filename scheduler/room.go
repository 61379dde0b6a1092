package scheduler

import "math/bits"

// Room is how much of c's idle GPU the mix could use: the other half of what FGD
// looks at, and one step further. For each shape, times its weight, it adds
//
//   - the reach: if one task of the shape fits, what is idle on devices with its
//     share free. Idle minus reach is the fragment of FGD.
//   - the depth: what tasks of that shape alone would fill, one after another,
//     until devices or cores run out (the cores that are short count in
//     proportion).
//
// The reach alone does not see the second task: eight idle GPUs with cores for
// one task are all reachable. Depth sees it, and that a share of 810/1000 leaves
// a fifth of a device behind. Memory counts for whether the first task fits.
//
// The unit is milli-GPU times weight, as in Fragment, and up to twice what is
// idle. Nothing is allocated.
func (m *Mix) Room(c *Capacity) int64 {
	s := idleOf(c)
	return m.room(&s)
}

func (m *Mix) room(s *idle) (sum int64) {
	for i := range m.classes {
		c := &m.classes[i]
		p := s.matching(c.class)
		if p == 0 {
			continue
		}
		for j := range c.shares {
			milli := c.shares[j].milli
			n, reach := s.count(p, milli)
			if n == 0 {
				continue
			}
			units := s.units(p, milli)
			for _, w := range c.shares[j].shapes {
				if w.cpu <= s.cpu && w.count <= n && w.memory <= s.memory {
					sum += w.weight * (reach + s.depth(w.cpu, w.count, milli, units))
				}
			}
		}
	}
	for i := range m.choices {
		d := &m.choices[i].Demand
		if d.CPUMillis > s.cpu || d.MemoryMiB > s.memory {
			continue
		}
		var most int64
		for k := range d.GPUs {
			p := s.matching(d.GPUs[k].Class)
			if n, reach := s.count(p, d.GPUMilli); n >= d.GPUs[k].Count {
				most = max(most, reach+s.depth(d.CPUMillis, d.GPUs[k].Count, d.GPUMilli, s.units(p, d.GPUMilli)))
			}
		}
		sum += m.choices[i].Weight * most
	}
	return sum
}

// units is how many shares of milli the devices p have free.
func (s *idle) units(p Picks, milli int64) (units int64) {
	for ; p != 0; p &= p - 1 {
		if f := s.free[bits.TrailingZeros64(uint64(p))]; f >= milli {
			units += f / milli
		}
	}
	return units
}

// depth is what tasks with cpu and count devices fill where units shares are free.
func (s *idle) depth(cpu int64, count int, milli, units int64) int64 {
	tasks := units / int64(count)
	fill := tasks * int64(count) * milli
	if tasks*cpu > s.cpu {
		fill = int64(count) * milli * s.cpu / cpu
	}
	return fill
}

// roomPull is how strong the pull to nodes with little idle is: a GPU less idle
// is worth 1/roomPull of the room of a GPU that every shape can use. Between 1/30
// and 1/42 it makes no difference for the trace that it was chosen by (openb,
// default list). With less, tasks spread and break up whole nodes; with more,
// they pile up where cores run out.
const roomPull = 36

// Fit rates a placement by the room that is left: higher is better. The loss of
// room, on the devices where it is least (of equal ones the first; several
// devices are those that Allocate takes), and a pull to nodes with little idle,
// so that what is whole stays whole. Ratings of one mix compare between nodes.
// d must fit. It allocates nothing.
//
// In the published experiment of FGD (package simulations/fill) this leaves less
// unallocated than FGD at all loads. Make the mix with Scarce weights where
// classes are scarce.
func (m *Mix) Fit(d *Demand, c *Capacity) (rating int64, picks Picks) {
	s := idleOf(c)
	before, idle := m.room(&s), int64(0)
	for _, f := range s.free[:len(s.devices)] {
		idle += f
	}
	choice := Choice(d, c)
	s.cpu -= d.CPUMillis
	s.memory -= d.MemoryMiB
	if choice < 0 || d.GPUs[choice].Count > 1 || d.Milli() == GPUExclusive {
		picks = PicksOf(d, c)
		for p := picks; p != 0; p &= p - 1 {
			s.free[bits.TrailingZeros64(uint64(p))] -= d.Milli()
			idle -= d.Milli()
		}
		rating = m.room(&s)
	} else {
		milli, p := d.Milli(), s.matching(d.GPUs[choice].Class)
		idle -= milli
		for i := range s.devices {
			if !p.Has(i) || s.free[i] < milli || s.twin(i) {
				continue
			}
			s.free[i] -= milli
			room := m.room(&s)
			s.free[i] += milli
			if picks == 0 || room > rating {
				rating, picks = room, 1<<i
			}
		}
	}
	return roomPull*(rating-before) - m.served(&s)*idle, picks
}

// served is the weight of the shapes that the classes of a node serve: what its
// room is the sum of.
func (m *Mix) served(s *idle) (weight int64) {
	for i := range m.classes {
		if s.matching(m.classes[i].class) != 0 {
			weight += m.classes[i].weight
		}
	}
	for i := range m.choices {
		for _, w := range m.choices[i].Demand.GPUs {
			if s.matching(w.Class) != 0 {
				weight += m.choices[i].Weight
				break
			}
		}
	}
	return weight
}

// Scarce gives ws with weights for a mix that is used with Fit: each times the
// GPUs of all nodes over the GPUs of the nodes that could ever take the shape. A
// shape that only a tenth of the GPUs can serve comes to those ten times as often.
// A shape without GPUs, or that no node can take, keeps its weight.
func Scarce(ws []Weighted, nodes []*Capacity) []Weighted {
	// Weights are whole numbers; this keeps fractions of them.
	const scale = 64
	var all int64
	for _, c := range nodes {
		all += int64(len(c.Devices))
	}
	out := make([]Weighted, len(ws))
	for i := range ws {
		out[i] = Weighted{ws[i].Demand, min(ws[i].Weight, maxMixWeight) * scale}
		if len(ws[i].Demand.GPUs) == 0 {
			continue
		}
		var able int64
		for _, c := range nodes {
			if FitOf(&ws[i].Demand, c) != FitNever {
				able += int64(len(c.Devices))
			}
		}
		if able > 0 {
			out[i].Weight = out[i].Weight * all / able
		}
	}
	return out
}

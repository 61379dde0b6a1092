package scheduler

import (
	"slices"
	"time"
)

// MixHalfLife is how long it takes until a demand counts half of a new one: long
// enough to cover what runs now, short enough to follow a day's rhythm.
const MixHalfLife = time.Hour

// Bounds of a Recent.
const (
	// recentShapes is more than a Mix has, so that a shape on its way up is counted
	// before it gets in.
	recentShapes = 4 * MaxShapes
	// maxTold bounds what one report of a peer may add. A report covers some
	// seconds of one owner's work.
	maxTold = 1 << 12
	// The weight of an observation grows by 1/recentPhases of a doubling at a time,
	// and all weights shrink together once it has doubled maxDoublings times.
	recentPhases = 16
	maxDoublings = 20
)

// recentUnits[i] is 1024 * 2^(i/recentPhases).
var recentUnits = [recentPhases]int64{
	1024, 1069, 1117, 1166, 1218, 1272, 1328, 1387, 1448, 1512, 1579, 1649, 1722, 1798, 1878, 1961,
}

// Recent counts the shapes of demands, the old ones less and less: what it makes
// a Mix of. Each node has one, observes in it the demands that it places, and
// hears from its peers what they observed.
//
// It holds a bounded number of shapes. A new one takes the place of the lightest
// and starts with that one's weight, so what is frequent cannot be pushed out by
// any number of rare shapes (the rule of Metwally et al., "Efficient computation
// of frequent and top-k elements in data streams", ICDT 2005).
//
// The zero value is ready. Not safe for concurrent use.
type Recent struct {
	shapes []recentShape // in the order of compareShapes
	base   int64         // half-lives; weights are relative to it
}

type recentShape struct {
	Weighted
	fresh int64 // observed here since the last Take
}

// Observe counts a demand that this node placed.
func (r *Recent) Observe(now time.Duration, d *Demand) { r.add(now, d, 1).fresh++ }

// Merge counts what a peer observed, one of its Takes. Each must be merged once
// only. Demands out of their bounds are left out, and counts above the bound
// of one report are cut.
func (r *Recent) Merge(now time.Duration, told []Weighted) {
	room := int64(maxTold)
	for i := range told[:min(len(told), MaxShapes)] {
		n := min(told[i].Weight, room)
		if n <= 0 || told[i].Demand.Validate() != nil {
			continue
		}
		room -= n
		r.add(now, &told[i].Demand, n)
	}
}

// Take gives what was observed here since the last Take, the most frequent
// first and at most MaxShapes: a report for the peers.
func (r *Recent) Take() []Weighted {
	var told []Weighted
	for i := range r.shapes {
		s := &r.shapes[i]
		if s.fresh > 0 {
			told = append(told, Weighted{s.Demand, s.fresh})
			s.fresh = 0
		}
	}
	return heaviest(told, MaxShapes)
}

// Mix is the mix of the heaviest MaxShapes shapes. While nothing is observed it
// stays what it was.
func (r *Recent) Mix() *Mix {
	ws := make([]Weighted, len(r.shapes))
	for i := range r.shapes {
		ws[i] = r.shapes[i].Weighted
	}
	return NewMix(ws, MaxShapes)
}

func (r *Recent) add(now time.Duration, d *Demand, n int64) *recentShape {
	weight := n * r.unit(now)
	shape := shapeOf(d)
	i, found := slices.BinarySearchFunc(r.shapes, &shape, func(s recentShape, d *Demand) int {
		return compareShapes(&s.Demand, d)
	})
	if !found {
		shape.GPUs = slices.Clone(shape.GPUs) // the caller's may change
		fresh := recentShape{Weighted: Weighted{Demand: shape}}
		if len(r.shapes) == recentShapes {
			j := r.lightest()
			fresh.Weight = r.shapes[j].Weight
			r.shapes = slices.Delete(r.shapes, j, j+1)
			if j < i {
				i--
			}
		}
		r.shapes = slices.Insert(r.shapes, i, fresh)
	}
	s := &r.shapes[i]
	s.Weight = min(s.Weight+weight, maxWeight)
	return s
}

func (r *Recent) lightest() (j int) {
	for i := range r.shapes {
		if r.shapes[i].Weight < r.shapes[j].Weight {
			j = i
		}
	}
	return j
}

// unit is the weight of one observation at now. It grows instead of all others
// shrinking, until it has grown too large.
func (r *Recent) unit(now time.Duration) int64 {
	step := int64(now / (MixHalfLife / recentPhases))
	doublings := max(0, step/recentPhases-r.base)
	if doublings > maxDoublings {
		for i := range r.shapes {
			r.shapes[i].Weight >>= min(doublings, 63)
		}
		r.shapes = slices.DeleteFunc(r.shapes, func(s recentShape) bool { return s.Weight == 0 && s.fresh == 0 })
		r.base += doublings
		doublings = 0
	}
	return recentUnits[step%recentPhases] << doublings
}

package fill

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/beammesh/beammesh/scheduler"
)

// world is the cluster of one run. All nodes in the same state are rated once:
// most nodes of a cluster are alike, and few change between two tasks of a shape.
type world struct {
	nodes []*Node // in the order that breaks ties
	state []int32 // of each node: equal for nodes that a Scorer cannot tell apart
	total int64   // milli-GPU of all nodes
	used  int64

	states map[string]int32 // by what settle writes; only looked up
	key    []byte
	mix    *scheduler.Mix
	frags  []int64 // of each state, times the mix's weight; -1 = not known yet
	frag   int64   // of all nodes

	shapes map[string]int // by what shape writes; only looked up
	rows   [][]int64      // for each shape the scores by state
}

// What a row has in place of a score. A Scorer's own never come near.
const (
	unknown = math.MinInt64 + 1
	misfit  = math.MinInt64
)

func newWorld(nodes []*Node, mix *scheduler.Mix) *world {
	w := &world{nodes: nodes, state: make([]int32, len(nodes)), mix: mix, states: map[string]int32{}, shapes: map[string]int{}}
	for i, n := range nodes {
		w.total += int64(len(n.Devices)) * scheduler.GPUExclusive
		w.settle(i)
		w.frag += w.fragment(i)
	}
	return w
}

// settle finds the state of node i.
func (w *world) settle(i int) {
	n := w.nodes[i]
	k := append(w.key[:0], n.Class()...)
	k = binary.AppendVarint(append(k, 0), n.Free.CPUMillis)
	k = binary.AppendVarint(k, n.Total.CPUMillis)
	k = binary.AppendUvarint(k, n.Kinds)
	for i := range n.Devices {
		k = binary.AppendVarint(k, n.Devices[i].FreeMilli)
	}
	w.key = k
	state, ok := w.states[string(k)]
	if !ok {
		state = int32(len(w.states))
		w.states[string(k)] = state
		w.frags = append(w.frags, -1)
	}
	w.state[i] = state
}

func (w *world) fragment(i int) int64 {
	f := &w.frags[w.state[i]]
	if *f < 0 {
		*f = w.mix.Fragment(&w.nodes[i].Capacity)
	}
	return *f
}

// row finds the scores of d by state. Memory is checked for each node and is not
// part of a shape.
func (w *world) row(d *scheduler.Demand) []int64 {
	k := binary.AppendVarint(w.key[:0], d.CPUMillis)
	k = binary.AppendVarint(k, d.Milli())
	for _, g := range d.GPUs {
		k = binary.AppendVarint(append(k, g.Class...), int64(g.Count))
	}
	w.key = k
	i, ok := w.shapes[string(k)]
	if !ok {
		i = len(w.rows)
		w.shapes[string(k)] = i
		w.rows = append(w.rows, nil)
	}
	for len(w.rows[i]) < len(w.states) {
		w.rows[i] = append(w.rows[i], unknown)
	}
	return w.rows[i]
}

// best finds the node with the highest score for d, by its place in the order; of
// equal ones the first, or by reservoir any, if tie draws. It is -1 when no node
// has room.
func (w *world) best(s Scorer, d *scheduler.Demand, tie func(int) int) int {
	_, draws := s.(Drawer)
	bare := *d
	bare.MemoryMiB = 0
	best, equal, high, row := -1, 0, int64(misfit), w.row(d)
	for i, state := range w.state {
		score := row[state]
		if score == unknown {
			score = misfit
			if n := w.nodes[i]; scheduler.FitOf(&bare, &n.Capacity) == scheduler.FitNow {
				score = s.Score(&bare, n)
			}
			if !draws || score == misfit {
				row[state] = score
			}
		}
		if score < high || score == misfit || w.nodes[i].MemoryMiB < d.MemoryMiB {
			continue
		}
		switch {
		case score > high:
			best, high, equal = i, score, 1
		case tie != nil:
			if equal++; tie(equal) == 0 {
				best = i
			}
		}
	}
	return best
}

// place puts d on devices of node i. It refuses what a policy must not do.
func (w *world) place(d *scheduler.Demand, i int, picks scheduler.Picks) error {
	n := w.nodes[i]
	want := 0
	if c := scheduler.Choice(d, &n.Capacity); c >= 0 {
		want = d.GPUs[c].Count
	}
	if picks.Len() != want || picks>>len(n.Devices) != 0 {
		return fmt.Errorf("the policy picked %d devices (%b) for %s", picks.Len(), picks, d)
	}
	for j := range n.Devices {
		if picks.Has(j) && n.Devices[j].FreeMilli < d.Milli() {
			return fmt.Errorf("the policy picked device %d with %d/1000 free for %s", j, n.Devices[j].FreeMilli, d)
		}
	}
	w.frag -= w.fragment(i)
	for j := range n.Devices {
		if picks.Has(j) {
			n.Devices[j].FreeMilli -= d.Milli()
			w.used += d.Milli()
		}
	}
	n.Free.CPUMillis -= d.CPUMillis
	n.MemoryMiB -= d.MemoryMiB
	if want > 0 {
		n.Kinds |= kindOf(d)
	}
	w.settle(i)
	w.frag += w.fragment(i)
	return nil
}

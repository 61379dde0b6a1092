package scheduler

import "slices"

// A ranking keeps the nodes of a view that can take one demand now in a heap by
// score, so that asking for the best few costs a few comparisons instead of a
// look at every node. It follows the view by its log of changes: a node that
// changed is scored again the next time somebody asks, once, however often it
// changed. The first question about a demand costs what a scan would.
type ranking struct {
	demand Demand
	heap   []rankedNode
	at     []rankState // by viewNode.slot
	// counts of nodes that are up, by what stands in at.
	later, pending int
	seen           uint64 // the view's changes known, see View.changes
	epoch          uint64 // of the view's scoring
	used           uint64 // when last asked for, to find the stalest
}

type rankedNode struct {
	score int64
	node  *viewNode
}

// rankState is what a ranking knows of one node.
type rankState struct {
	state  uint64 // of the node when it was scored
	heapAt int32  // index in the heap plus 1; 0 = not in it
	later  bool   // FitNotNow
	// pending: it would fit, were it not for asks of ours that are out.
	pending bool
}

// Bounds on the rankings of a view: their number, and the nodes in all of them.
const (
	maxRankings     = 256
	maxRankedInAll  = 1 << 20
	leastRankings   = 4
	keptChanges     = 2 // times the number of nodes, see View.touch
	leastKeptChange = 1024
)

// touch notes that a node is not what it was.
func (v *View) touch(n *viewNode) {
	if len(v.rankings) == 0 {
		return
	}
	n.setState()
	n.changed = v.firstChange + uint64(len(v.changes))
	v.changes = append(v.changes, n)
	if limit := max(leastKeptChange, keptChanges*len(v.slots)); len(v.changes) > 2*limit {
		// A ranking that is further behind starts anew.
		kept := copy(v.changes, v.changes[len(v.changes)-limit:])
		v.firstChange += uint64(len(v.changes) - kept)
		clear(v.changes[kept:])
		v.changes = v.changes[:kept]
	}
}

// setState computes n.state. A node that was asked and gave the same answer as
// before is back in the state that it had, and needs no new score.
func (n *viewNode) setState() {
	h := hashStep(hashStep(n.eff.packHash(), n.kept), uint64(n.eff.Free.DiskMiB))
	h = hashStep(h, uint64(n.eff.Queue)<<2)
	if n.eff.Draining {
		h = hashStep(h, 1)
	}
	if len(n.notes) > 0 {
		h = hashStep(hashStep(h, n.advert.Capacity.packHash()), uint64(n.advert.Capacity.Free.DiskMiB))
		if n.advert.Capacity.Draining {
			h = hashStep(h, 2)
		}
	}
	if n.down != "" || n.gone {
		h = hashStep(h, 3)
	}
	n.state = h
}

// rankingOf finds or makes the ranking for d and brings it up to date.
func (v *View) rankingOf(d *Demand) *ranking {
	v.asked++
	v.followPacking()
	var r *ranking
	for i, x := range v.rankings {
		if x.demand.sameNeeds(d) {
			r = x
			if i > 0 { // the usual demands stay in front
				v.rankings[i-1], v.rankings[i] = x, v.rankings[i-1]
			}
			break
		}
	}
	if r == nil {
		r = v.newRanking()
		r.demand, r.epoch, r.seen = *d, v.epoch, 0
		r.fill(v)
	}
	r.used = v.asked
	if r.epoch != v.epoch || r.seen < v.firstChange {
		r.fill(v)
	}
	for ; r.seen < v.firstChange+uint64(len(v.changes)); r.seen++ {
		if n := v.changes[r.seen-v.firstChange]; n.changed == r.seen {
			r.place(v, n)
		}
	}
	return r
}

func (v *View) newRanking() *ranking {
	limit := min(maxRankings, max(leastRankings, maxRankedInAll/max(1, len(v.slots))))
	if len(v.rankings) < limit {
		v.rankings = append(v.rankings, &ranking{})
		return v.rankings[len(v.rankings)-1]
	}
	clear(v.rankings[limit:])
	v.rankings = v.rankings[:limit]
	stalest := 0
	for i, r := range v.rankings {
		if r.used < v.rankings[stalest].used {
			stalest = i
		}
	}
	return v.rankings[stalest]
}

// fill scores all nodes anew.
func (r *ranking) fill(v *View) {
	r.heap, r.later, r.pending = r.heap[:0], 0, 0
	r.epoch, r.seen = v.epoch, v.firstChange+uint64(len(v.changes))
	r.at = slices.Grow(r.at[:0], len(v.slots))[:len(v.slots)]
	clear(r.at)
	for _, n := range v.slots {
		if n == nil {
			continue
		}
		n.setState()
		r.at[n.slot].state = n.state
		if r.classify(n) {
			r.heap = append(r.heap, rankedNode{v.rankScore(&r.demand, n), n})
			r.at[n.slot].heapAt = int32(len(r.heap))
		}
	}
	for i := len(r.heap)/2 - 1; i >= 0; i-- {
		r.down(i)
	}
}

// classify says whether n can take the demand now, and counts it among those
// that could later.
func (r *ranking) classify(n *viewNode) bool {
	s := &r.at[n.slot]
	if s.later {
		r.later--
	}
	if s.pending {
		r.pending--
	}
	s.later, s.pending = false, false
	if n.down != "" || n.gone {
		return false
	}
	fit := FitOf(&r.demand, &n.eff)
	if fit == FitNow {
		return true
	}
	if fit == FitNotNow {
		s.later = true
		r.later++
	}
	if len(n.notes) > 0 && FitOf(&r.demand, &n.advert.Capacity) == FitNow {
		s.pending = true
		r.pending++
	}
	return false
}

// place brings one node up to date.
func (r *ranking) place(v *View, n *viewNode) {
	for int(n.slot) >= len(r.at) {
		r.at = append(r.at, rankState{})
	}
	s := &r.at[n.slot]
	if s.state == n.state && !n.gone {
		return
	}
	s.state = n.state
	fits := r.classify(n)
	at := int(s.heapAt) - 1
	if !fits {
		if at >= 0 {
			r.remove(at)
		}
		return
	}
	score := v.rankScore(&r.demand, n)
	if at < 0 {
		r.heap = append(r.heap, rankedNode{score, n})
		at = len(r.heap) - 1
		r.at[n.slot].heapAt = int32(at + 1)
	} else if r.heap[at].score == score {
		return
	} else {
		r.heap[at].score = score
	}
	r.fix(at)
}

func (r *ranking) remove(i int) {
	last := len(r.heap) - 1
	r.at[r.heap[i].node.slot].heapAt = 0
	if i != last {
		r.heap[i] = r.heap[last]
		r.at[r.heap[i].node.slot].heapAt = int32(i + 1)
	}
	r.heap[last] = rankedNode{}
	r.heap = r.heap[:last]
	if i < last {
		r.fix(i)
	}
}

func (r *ranking) less(i, j int) bool {
	a, b := &r.heap[i], &r.heap[j]
	return a.score < b.score || a.score == b.score && compareNodes(a.node, b.node) < 0
}

func (r *ranking) fix(i int) {
	node := r.heap[i].node
	for i > 0 && r.less(i, (i-1)/2) {
		r.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
	if r.heap[i].node == node {
		r.down(i)
	}
}

func (r *ranking) down(i int) {
	for {
		small := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(r.heap); c++ {
			if r.less(c, small) {
				small = c
			}
		}
		if small == i {
			return
		}
		r.swap(i, small)
		i = small
	}
}

func (r *ranking) swap(i, j int) {
	r.heap[i], r.heap[j] = r.heap[j], r.heap[i]
	r.at[r.heap[i].node.slot].heapAt = int32(i + 1)
	r.at[r.heap[j].node.slot].heapAt = int32(j + 1)
}

// walk gives the nodes in order, the best first, until fn returns false. It
// keeps the children of what it has given in a second heap, so that the first
// k cost k steps whatever the number of nodes.
func (r *ranking) walk(v *View, fn func(*rankedNode) bool) {
	front := v.front[:0]
	push := func(i int) {
		front = append(front, int32(i))
		for c := len(front) - 1; c > 0; {
			p := (c - 1) / 2
			if !r.less(int(front[c]), int(front[p])) {
				break
			}
			front[c], front[p] = front[p], front[c]
			c = p
		}
	}
	if len(r.heap) > 0 {
		push(0)
	}
	for len(front) > 0 {
		top := int(front[0])
		last := len(front) - 1
		front[0] = front[last]
		front = front[:last]
		for i := 0; ; {
			small := i
			for c := 2*i + 1; c <= 2*i+2 && c < len(front); c++ {
				if r.less(int(front[c]), int(front[small])) {
					small = c
				}
			}
			if small == i {
				break
			}
			front[i], front[small] = front[small], front[i]
			i = small
		}
		if !fn(&r.heap[top]) {
			break
		}
		for c := 2*top + 1; c <= 2*top+2 && c < len(r.heap); c++ {
			push(c)
		}
	}
	v.front = front[:0]
}

// sameNeeds says whether the same nodes can take both demands, at the same score.
func (d *Demand) sameNeeds(o *Demand) bool {
	return d.CPUMillis == o.CPUMillis && d.MemoryMiB == o.MemoryMiB && d.DiskMiB == o.DiskMiB &&
		d.Milli() == o.Milli() && d.Isolation == o.Isolation && d.Zone == o.Zone && d.Arch == o.Arch &&
		slices.Equal(d.GPUs, o.GPUs) && slices.Equal(d.Roots, o.Roots) && slices.Equal(d.Features, o.Features)
}

package scheduler

import (
	"fmt"
	"slices"
	"strings"

	"github.com/beammesh/beammesh/scheduler/gpu"
)

// Rank gives the limit best nodes that can take d now, best first. crowd tells
// how many containers of d's group a node has, skip leaves nodes out; both may
// be nil.
func (v *View) Rank(d *Demand, limit int, crowd func(NodeID) int, skip func(NodeID) bool) []Candidate {
	if limit <= 0 {
		return nil
	}
	type ranked struct {
		n     *viewNode
		k     int
		total int64
	}
	var few [16]ranked
	best := few[:0]
	before := func(total int64, n *viewNode, o *ranked) bool {
		return total < o.total || total == o.total && compareNodes(n, o.n) < 0
	}
	v.rankingOf(d).walk(v, func(r *rankedNode) bool {
		n := r.node
		// A crowd only makes a node worse: the walk can end here.
		if len(best) == limit && !before(r.score, n, &best[limit-1]) {
			return false
		}
		if skip != nil && skip(n.advert.Node) {
			return true
		}
		x := ranked{n: n, total: r.score}
		if crowd != nil {
			x.k = crowd(n.advert.Node)
			x.total += int64(x.k) * weightCrowd
		}
		i := len(best)
		for i > 0 && before(x.total, n, &best[i-1]) {
			i--
		}
		if i < limit {
			best = slices.Insert(best, i, x)
			best = best[:min(limit, len(best))]
		}
		return true
	})
	if len(best) == 0 {
		return nil
	}
	out := make([]Candidate, 0, len(best))
	for _, r := range best {
		out = append(out, Candidate{
			Node: r.n.advert.Node, Name: r.n.advert.Name, Class: r.n.class, Source: r.n.source,
			Score: v.scoreFor(d, &r.n.eff, r.k),
		})
	}
	return out
}

// ScoreNode scores one node as if d were not asked of it yet: what the node
// holds for d, or what the view has debited for it, counts as free.
func (v *View) ScoreNode(d *Demand, id NodeID, crowd func(NodeID) int) Candidate {
	n := v.find(id)
	if n == nil {
		return Candidate{Node: id, Score: Score{Total: weightGPUChoice * MaxGPUChoices}}
	}
	c := n.eff
	v.spare = append(v.spare[:0], c.Devices...)
	c.Devices = v.spare
	giveBack(d, &c)
	k := 0
	if crowd != nil {
		k = crowd(id)
	}
	return Candidate{Node: id, Name: n.advert.Name, Class: n.class, Source: n.source, Score: v.scoreFor(d, &c, k)}
}

// scoreFor scores a node of this view, which must have room for d: ScoreOf, with
// what is known of fragmentation in place of its rougher rules.
//
// On nodes with GPUs the load of the rest counts nothing then: nodes at the same
// step of FGD must be equal, so that the first in the canonical order is filled
// and the others stay whole. (Breaking these ties by load costs 4 to 7 of 100
// GPUs on the openb trace, and random ties as much.)
func (v *View) scoreFor(d *Demand, c *Capacity, crowd int) Score {
	s := ScoreOf(d, c, crowd)
	if !v.packing.active() || len(c.Devices) == 0 || FitOf(d, c) != FitNow {
		return s
	}
	v.byFragments(&s, d, v.packing.Step(d, c))
	return s
}

// rankScore is the total of scoreFor without a crowd, for a node with room.
func (v *View) rankScore(d *Demand, n *viewNode) int64 {
	s := ScoreOf(d, &n.eff, 0)
	if v.packing.active() && len(n.eff.Devices) > 0 {
		v.byFragments(&s, d, v.packing.Step(d, &n.eff))
	}
	return s.Total
}

// byFragments puts FGD's step in the place of rougher terms.
func (v *View) byFragments(s *Score, d *Demand, step int) {
	weight := int64(weightFrag)
	if v.scarce {
		weight = weightFragScarce
	}
	drop := s.Terms[TermPack] + s.Terms[TermLoad]
	s.Terms[TermPack], s.Terms[TermLoad] = 0, 0
	s.Terms[TermFrag] = int64(99-step) * weight
	s.Total += s.Terms[TermFrag] - drop
}

// Outlook is what a view expects for a demand.
type Outlook struct {
	Best Fit // over all nodes that are up, as far as we may take
	// Pending: some node fits by its advert, and only our own unanswered asks
	// stand in the way.
	Pending bool
}

// Outlook looks for the best fit of d.
func (v *View) Outlook(d *Demand) Outlook {
	r := v.rankingOf(d)
	switch {
	case len(r.heap) > 0:
		return Outlook{Best: FitNow}
	case r.later > 0:
		return Outlook{Best: FitNotNow, Pending: r.pending > 0}
	}
	return Outlook{Best: FitNever, Pending: r.pending > 0}
}

// FitNode is the fit on one node as far as we may take; FitNever when it is down
// or unknown.
func (v *View) FitNode(d *Demand, id NodeID) Fit {
	n := v.find(id)
	if n == nil || n.down != "" {
		return FitNever
	}
	return FitOf(d, &n.eff)
}

// Refusals says why nodes cannot take d, at most limit of them, the nearest
// misses first: those that only lack room now, then the reachable, then the rest.
func (v *View) Refusals(d *Demand, limit int) []NodeRefusal {
	var groups [3][]*viewNode
	for _, n := range v.order {
		g := 1
		switch {
		case n.down != "":
			g = 2
		case FitOf(d, &n.eff) == FitNow:
			continue
		case FitOf(d, &n.eff) == FitNotNow:
			g = 0
		}
		if len(groups[g]) < limit {
			groups[g] = append(groups[g], n)
		}
		if len(groups[0]) == limit {
			break
		}
	}
	var out []NodeRefusal
	for _, g := range groups {
		for _, n := range g {
			if len(out) == limit {
				return out
			}
			r := NodeRefusal{Node: n.advert.Node, Name: n.advert.Name, Source: n.source}
			if n.down != "" {
				r.Reasons = []Refusal{{Code: Unreachable, Text: n.down}}
			} else {
				r.Reasons = Feasible(d, &n.eff)
			}
			out = append(out, r)
		}
	}
	return out
}

// Hint is one line of what to do about a demand that no node can take; "" when
// there is nothing to say.
func (v *View) Hint(d *Demand) string {
	if v.Len() == 0 {
		return "no node takes work yet: start one with 'beam node up'"
	}
	if len(d.GPUs) == 0 {
		return "ask for less, or add a larger node with 'beam node invite'"
	}
	have := v.Classes()
	for _, w := range d.GPUs {
		if gpu.IsKnown(w.Class, have) {
			continue
		}
		if s := gpu.Suggest(w.Class, have); len(s) > 0 {
			return fmt.Sprintf("no node has %s; did you mean %s?", w.Class, strings.Join(s, " or "))
		}
	}
	if len(have) == 0 {
		return "no node has a GPU: add one with 'beam node invite'"
	}
	if slices.ContainsFunc(have, func(class string) bool {
		return slices.ContainsFunc(d.GPUs, func(w gpu.Want) bool { return gpu.Matches(w.Class, class) })
	}) {
		return "ask for less, or add a larger node with 'beam node invite'"
	}
	return fmt.Sprintf("nodes have %s: use gpu='any' or one of these, or add a node with 'beam node invite'", strings.Join(have, ", "))
}

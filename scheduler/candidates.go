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
	type ranked struct {
		n *viewNode
		s Score
	}
	best := make([]ranked, 0, limit+1)
	before := func(n *viewNode, s *Score, o *ranked) bool {
		if s.Total != o.s.Total {
			return s.Total < o.s.Total
		}
		return compareNodes(n, o.n) < 0
	}
	v.walk(d, func(n *viewNode) bool {
		if n.down != "" || FitOf(d, &n.eff) != FitNow || skip != nil && skip(n.advert.Node) {
			return true
		}
		s := v.score(n, d, crowd)
		i := len(best)
		for i > 0 && before(n, &s, &best[i-1]) {
			i--
		}
		if i < limit {
			best = slices.Insert(best, i, ranked{n, s})
			best = best[:min(limit, len(best))]
		}
		return true
	})
	out := make([]Candidate, 0, len(best))
	for _, r := range best {
		out = append(out, Candidate{Node: r.n.advert.Node, Name: r.n.advert.Name, Class: r.n.class, Source: r.n.source, Score: r.s})
	}
	return out
}

// ScoreNode scores one node as if d were not asked of it yet: what the node
// holds for d, or what the view has debited for it, counts as free.
func (v *View) ScoreNode(d *Demand, id NodeID, crowd func(NodeID) int) Candidate {
	n := v.nodes[id]
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
	return Candidate{Node: id, Name: n.advert.Name, Class: n.class, Source: n.source, Score: ScoreOf(d, &c, k)}
}

func (v *View) score(n *viewNode, d *Demand, crowd func(NodeID) int) Score {
	k := 0
	if crowd != nil {
		k = crowd(n.advert.Node)
	}
	return ScoreOf(d, &n.eff, k)
}

// Outlook is what a view expects for a demand.
type Outlook struct {
	Best Fit // over all nodes that are up, as far as we may take
	// Pending: some node fits by its advert, and only our own unanswered asks
	// stand in the way.
	Pending bool
}

// Outlook looks for the best fit of d; it stops at the first node that fits.
func (v *View) Outlook(d *Demand) Outlook {
	var o Outlook
	v.walk(d, func(n *viewNode) bool {
		if n.down != "" {
			return true
		}
		o.Best = max(o.Best, FitOf(d, &n.eff))
		if o.Best < FitNow && !o.Pending && len(n.notes) > 0 {
			o.Pending = FitOf(d, &n.advert.Capacity) == FitNow
		}
		return o.Best < FitNow
	})
	return o
}

// FitNode is the fit on one node as far as we may take; FitNever when it is down
// or unknown.
func (v *View) FitNode(d *Demand, id NodeID) Fit {
	n := v.nodes[id]
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

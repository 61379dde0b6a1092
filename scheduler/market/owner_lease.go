package market

import (
	"fmt"
	"slices"
	"time"

	"github.com/beammesh/beammesh/scheduler"
)

// renewed prolongs leases and tells the worker which of them are nobody's.
func (o *Owner) renewed(now time.Duration, e *Renew) {
	ack := RenewAck{Owner: o.cfg.ID}
	for _, ref := range e.Leases[:min(len(e.Leases), MaxRenew)] {
		x := o.leases[ref.Lease]
		switch {
		case x != nil && x.award.node == e.Node && x.award.Fence == ref.Fence:
			if x.phase == phasePlaced {
				o.setWake(x, now+o.cfg.LeaseFor)
			}
		case ref.Fence.Epoch < o.cfg.ID.Epoch:
			o.emit(Orphan{ref, e.Node})
		default:
			ack.Unknown = append(ack.Unknown, ref)
		}
	}
	o.sendRenewAck(e.Node, &ack)
}

// leaseEnded takes the worker's word that a container is gone.
func (o *Owner) leaseEnded(now time.Duration, e *Ended) {
	o.heard(now, &e.Advert)
	o.sendEndedAck(e.Node, &EndedAck{o.cfg.ID, e.Lease})
	if x := o.leases[e.Lease]; x != nil && x.award.node == e.Node && x.award.Fence == e.Fence {
		if x.phase == phaseAwarding { // it overtook the answer to the award
			o.dropAsks(now, x)
		}
		o.lost(now, x, e.Reason, e.Detail)
	}
	o.room(now, e.Node)
}

// lost ends an offer whose container is gone without our wish.
func (o *Owner) lost(now time.Duration, x *offer, why EndReason, detail string) {
	o.say(now, x, "lost on %s: %s", o.name(x.award.node), why)
	x.rec.Node = x.award.node
	o.emit(Lost{
		Offer: x.ID, Lease: x.award.Lease, Node: x.award.node, Reason: why, Detail: detail, NextAttempt: x.attempt + 1,
	})
	o.finish(now, x, StateLost)
}

// nodeDown gives up on everything that the node was to do or did.
func (o *Owner) nodeDown(now time.Duration, node scheduler.NodeID, reason string) {
	o.view.SetDown(node, orUnreachable(reason), false)
	rs := []scheduler.Refusal{{Code: scheduler.Unreachable, Text: orUnreachable(reason)}}
	for _, s := range o.shapes {
		delete(s.told, node)
	}
	for _, x := range slices.Clone(o.at[node]) {
		out := false
		for _, a := range x.asks {
			if a.node == node && a.state != askOver {
				a.state, a.hold, out = askOver, "", true
			}
		}
		switch {
		case x.phase == phasePlaced && x.award.node == node:
			o.lost(now, x, EndNodeDown, reason)
		case x.phase == phaseAwarding && x.award.node == node:
			o.awardFailed(now, x, rs, nil)
		case x.phase == phaseAsking && out:
			o.refused(now, x, node, rs, nil)
			o.decide(now, x)
		}
	}
}

// withdraw takes an offer back from wherever it is.
func (o *Owner) withdraw(now time.Duration, x *offer, reason string) {
	if x.phase == phaseAwarding || x.phase == phasePlaced {
		o.sendRelease(x.award.node, &Release{
			Offer: x.ID, Lease: x.award.Lease, Fence: x.award.Fence, Hold: x.award.Hold, Reason: reason,
		})
	}
	o.say(now, x, "released: %s", reason)
	x.rec.Settled = now
	o.finish(now, x, StateReleased)
}

// adopt takes over a lease of an earlier life.
func (o *Owner) adopt(now time.Duration, e Adopt) {
	if o.offers[e.Offer.ID] != nil || o.leases[e.Lease] != nil {
		return
	}
	x := o.add(now, e.Offer)
	x.attempt = max(x.attempt, e.Fence.Attempt)
	x.phase = phasePlaced
	x.award = awardOut{node: e.Node, Award: Award{Owner: o.cfg.ID, Offer: x.ID, Lease: e.Lease, Fence: e.Fence, Demand: x.demand, Headless: x.Headless}}
	o.bindAward(x)
	x.rec.State, x.rec.Node, x.rec.Settled = StatePlaced, e.Node, now
	o.say(now, x, "taken over, it runs on %s", o.name(e.Node))
	o.setWake(x, now+o.cfg.LeaseFor)
}

// name is how a node is called in texts.
func (o *Owner) name(n scheduler.NodeID) string {
	if a, _ := o.view.Advert(n); a.Name != "" {
		return a.Name
	}
	return string(n)
}

// say adds a line to the history of x. When it is full the middle goes: the
// beginning and the end tell most.
func (o *Owner) say(now time.Duration, x *offer, format string, args ...any) {
	if o.cfg.NoHistory {
		return
	}
	h := x.rec.History
	if len(h) >= MaxHistory {
		h = slices.Delete(h, MaxHistory/2, MaxHistory/2+1)
	}
	x.rec.History = append(h, scheduler.Moment{At: now, Text: fmt.Sprintf(format, args...)})
}

// Explain gives the record of an offer, also for a while after it is over.
func (o *Owner) Explain(id OfferID) (Explanation, bool) {
	var rec *Explanation
	if x := o.offers[id]; x != nil {
		rec = x.rec
		if x.phase == phaseWaiting || x.phase == phaseBlocked || x.phase == phaseNever {
			rec.Refusals = o.waitReasons(x) // as of now, not of then
		}
	} else if rec = o.recent.get(id); rec == nil {
		return Explanation{}, false
	}
	e := *rec
	e.Candidates = slices.Clone(e.Candidates)
	e.Refusals = slices.Clone(e.Refusals)
	e.History = slices.Clone(e.History)
	return e, true
}

// recentTable keeps the explanations of the last limit offers that are over.
type recentTable struct {
	limit int
	byID  map[OfferID]*Explanation
	ring  []OfferID
	next  int
}

func (t *recentTable) get(id OfferID) *Explanation { return t.byID[id] }

func (t *recentTable) drop(id OfferID) { delete(t.byID, id) }

func (t *recentTable) put(e *Explanation) {
	if t.byID == nil {
		t.byID = map[OfferID]*Explanation{}
	}
	if len(t.ring) < t.limit {
		t.ring = append(t.ring, e.Offer)
	} else {
		if old := t.ring[t.next]; old != e.Offer {
			delete(t.byID, old)
		}
		t.ring[t.next] = e.Offer
		t.next = (t.next + 1) % t.limit
	}
	t.byID[e.Offer] = e
}

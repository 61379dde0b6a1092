package market

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/beammesh/beammesh/scheduler"
)

// awardBest takes one bid of a round and gives the others back; they stay known
// as the next to try.
func (o *Owner) awardBest(now time.Duration, x *offer, best *ask) {
	x.backups = x.backups[:0]
	for _, a := range x.asks {
		if a != best && a.state == askBid {
			o.addBackup(x, a.node)
		}
	}
	// Asks that are still out stay debited until they are answered or this
	// award is; their late bids are given back then.
	kept := x.asks[:0]
	for _, a := range x.asks {
		switch {
		case a == best:
			o.atRemove(a.node, x)
		case a.state == askOut:
			kept = append(kept, a)
		default:
			o.dropAsk(now, x, a)
		}
	}
	clear(x.asks[len(kept):])
	x.asks = kept
	o.giveAward(now, x, best.node, best.hold, false)
}

// addBackup remembers a bid that was not taken, without its hold.
func (o *Owner) addBackup(x *offer, node scheduler.NodeID) {
	b := backup{node, o.view.ScoreNode(&x.demand, node, o.crowdOf(x)).Score}
	i := len(x.backups)
	for i > 0 && b.score.Before(b.node, x.backups[i-1].score, x.backups[i-1].node) {
		i--
	}
	x.backups = slices.Insert(x.backups, i, b)
}

// giveAward sends the award of x to a node under a new fence.
func (o *Owner) giveAward(now time.Duration, x *offer, node scheduler.NodeID, hold string, pulled bool) {
	o.unqueue(x) // a late bid can reach an offer that waits already
	if x.round == 1 && !pulled {
		o.noteRound(false)
	}
	x.attempt++
	more := 0
	if s := o.findShape(x.shape); s != nil {
		more = s.nWait
		if more > 0 {
			s.tellNow(node, now)
		}
	}
	x.phase, x.rec.State = phaseAwarding, StatePlacing
	x.award = awardOut{node: node, sends: 1, pulled: pulled, Award: Award{
		Owner: o.cfg.ID, Offer: x.ID, Lease: leaseID(x.ID, x.attempt),
		Fence: Fence{o.cfg.ID.Epoch, x.attempt}, Hold: hold, Demand: x.demand, LeaseFor: o.cfg.LeaseFor,
		Headless: x.Headless, Shape: x.shape, More: more,
	}}
	o.bindAward(x)
	if hold == "" {
		o.view.Debit(node, string(x.award.Lease), x.demand)
	}
	o.say(now, x, "awarded to %s with fence %s", o.name(node), x.award.Fence)
	o.sendAward(node, &x.award.Award)
	o.setWake(x, now+o.cfg.AwardWait)
}

func leaseID(id OfferID, attempt uint32) LeaseID {
	return LeaseID(string(id) + "-" + strconv.FormatUint(uint64(attempt), 10))
}

// bindAward puts the award of x in the tables; clearAward takes it out.
func (o *Owner) bindAward(x *offer) {
	o.leases[x.award.Lease] = x
	o.atAdd(x.award.node, x)
	if x.Group != "" {
		m := o.crowds[x.Group]
		if m == nil {
			m = map[scheduler.NodeID]int{}
			o.crowds[x.Group] = m
		}
		m[x.award.node]++
	}
}

func (o *Owner) clearAward(x *offer) {
	node := x.award.node
	delete(o.leases, x.award.Lease)
	o.atRemove(node, x)
	o.view.Settle(node, string(x.award.Lease))
	if m := o.crowds[x.Group]; m != nil && x.Group != "" {
		if m[node]--; m[node] <= 0 {
			delete(m, node)
		}
		if len(m) == 0 {
			delete(o.crowds, x.Group)
		}
	}
}

// awardReply settles an award, or undoes one that was given up meanwhile.
func (o *Owner) awardReply(now time.Duration, e *AwardReply) {
	o.heard(now, &e.Advert)
	x := o.leases[e.Lease]
	switch {
	case x == nil || x.award.node != e.Node:
		if e.OK {
			o.sendRelease(e.Node, &Release{Offer: e.Offer, Lease: e.Lease, Reason: "given up"})
		}
	case x.phase == phasePlaced: // repeated
	case !e.OK:
		o.awardFailed(now, x, e.Refusals, &e.Advert)
	default:
		o.view.Settle(e.Node, string(e.Lease))
		o.dropAsks(now, x)
		x.backups = nil
		x.phase = phasePlaced
		x.rec.State, x.rec.Node, x.rec.Settled, x.rec.Pulled = StatePlaced, e.Node, now, x.award.pulled
		o.say(now, x, "%s accepted", o.name(e.Node))
		o.setWake(x, now+o.cfg.LeaseFor)
		o.emit(Placed{
			Offer: x.ID, Lease: e.Lease, Fence: x.award.Fence, Node: e.Node, Grant: e.Grant,
			Demand: x.demand, Note: x.rec.Note, Pulled: x.award.pulled,
		})
	}
	o.room(now, e.Node)
}

// awardTimeout repeats an award, and after AwardSends gives up on the node. It
// may have accepted: the fence and the release see to that.
func (o *Owner) awardTimeout(now time.Duration, x *offer) {
	if x.award.sends < o.cfg.AwardSends {
		x.award.sends++
		o.say(now, x, "no answer from %s, award sent again", o.name(x.award.node))
		o.sendAward(x.award.node, &x.award.Award)
		o.setWake(x, now+o.cfg.AwardWait)
		return
	}
	o.sendRelease(x.award.node, &Release{
		Offer: x.ID, Lease: x.award.Lease, Fence: x.award.Fence, Hold: x.award.Hold, Reason: "award not answered",
	})
	o.awardFailed(now, x, []scheduler.Refusal{{Code: scheduler.NoAnswer, Text: fmt.Sprintf("no answer to %d awards", x.award.sends)}}, nil)
}

// awardFailed tries the next bid, then the next round.
func (o *Owner) awardFailed(now time.Duration, x *offer, rs []scheduler.Refusal, said *scheduler.Advert) {
	node := x.award.node
	o.clearAward(x)
	x.phase = phaseAsking
	o.refused(now, x, node, rs, said)
	for len(x.backups) > 0 {
		b := x.backups[0]
		x.backups = x.backups[1:]
		if o.view.Up(b.node) && !o.skip(x, b.node) {
			o.giveAward(now, x, b.node, "", false)
			return
		}
	}
	o.place(now, x)
}

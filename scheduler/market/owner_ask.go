package market

import (
	"slices"
	"strings"
	"time"

	"github.com/beammesh/beammesh/scheduler"
)

// place asks the next best nodes, or finds out why there are none.
func (o *Owner) place(now time.Duration, x *offer) {
	queued := x.phase == phaseBlocked || x.phase == phaseWaiting
	o.unqueue(x)
	o.setWake(x, 0)
	o.dropAsks(now, x)
	x.backups = nil
	if x.round == 1 {
		o.noteRound(true)
	}
	if x.round >= o.cfg.MaxRounds {
		o.wait(now, x)
		return
	}
	d, note := o.view.Clamp(x.Demand)
	x.demand, x.rec.Note = d, note
	if s := o.findShape(x.shape); s != nil && !queued && x.round == 0 && s.nWait > 0 {
		o.wait(now, x) // first come, first served
		return
	}
	cands := o.candidates(x, &d)
	if len(cands) == 0 {
		o.noCandidates(now, x)
		return
	}
	x.phase, x.rec.State = phaseAsking, StatePlacing
	x.round++
	x.rec.Rounds++
	x.rec.Asked += len(cands)
	ranked := cands
	if !o.cfg.NoHistory && len(cands) < o.cfg.AskWidth { // who is asked is not all that people want to see
		ranked = mergeCandidates(slices.Clone(cands), o.view.Rank(&d, o.cfg.AskWidth, o.crowdOf(x), func(n scheduler.NodeID) bool { return o.skip(x, n) }))
	}
	x.rec.Candidates = mergeCandidates(ranked, x.rec.Candidates)
	if note != "" {
		o.say(now, x, "%s", note)
	}
	if !o.cfg.NoHistory {
		names := make([]string, len(cands))
		for i, c := range cands {
			names[i] = o.name(c.Node)
		}
		o.say(now, x, "asked %s", strings.Join(names, ", "))
	}
	for _, c := range cands {
		o.view.Debit(c.Node, string(x.ID), d)
		x.asks = append(x.asks, &ask{node: c.Node, round: x.round})
		o.atAdd(c.Node, x)
		o.sendAsk(c.Node, &Ask{Owner: o.cfg.ID, Offer: x.ID, Round: x.round, Shape: x.shape, Demand: d})
	}
	o.setWake(x, now+o.cfg.AskWait)
}

// candidates are the nodes to ask next. The first round takes the best. Who is
// refused by them competes with other owners for what all of them think best, so
// each further round looks four times as far and takes of what it sees the nodes
// that the hash of this owner and the node chooses: others take others. While
// many first rounds come to nothing they look further too.
func (o *Owner) candidates(x *offer, d *scheduler.Demand) []scheduler.Candidate {
	width, further := o.cfg.AskWidth, x.round
	if x.round == 0 {
		width = o.cfg.FirstWidth
	}
	switch {
	case o.conflicts > 2*conflictsMany:
		further += 2
	case o.conflicts > conflictsMany:
		further++
	}
	cands := o.view.Rank(d, max(width, min(width<<(2*further), maxLook)), o.crowdOf(x), func(n scheduler.NodeID) bool { return o.skip(x, n) })
	if len(cands) <= width {
		return cands
	}
	mine := func(c *scheduler.Candidate) uint64 {
		return (scheduler.HashOf(c.Node) ^ scheduler.HashOf(o.cfg.ID.Peer)) * 0x9e3779b97f4a7c15
	}
	for i := range cands[:width] {
		for j := i + 1; j < len(cands); j++ {
			if mine(&cands[j]) < mine(&cands[i]) {
				cands[i], cands[j] = cands[j], cands[i]
			}
		}
	}
	cands = cands[:width]
	slices.SortFunc(cands, func(a, b scheduler.Candidate) int {
		if before(a, b) {
			return -1
		}
		return 1
	})
	return cands
}

// noteRound counts a first round as one that came to nothing or not.
func (o *Owner) noteRound(failed bool) {
	o.conflicts -= o.conflicts / conflictsOver
	if failed {
		o.conflicts += conflictsAll / conflictsOver
	}
}

// Owner.conflicts is the share of the last first rounds, about conflictsOver of
// them, that came to nothing, in parts of conflictsAll.
const (
	conflictsAll  = 1 << 16
	conflictsOver = 32
	conflictsMany = conflictsAll / 20
)

// maxLook bounds how far down the ranking an owner looks.
const maxLook = 64

// mergeCandidates keeps the newest opinion of each node, at most MaxReasons.
func mergeCandidates(cands, old []scheduler.Candidate) []scheduler.Candidate {
	for _, c := range old {
		if len(cands) == MaxReasons {
			break
		}
		if !slices.ContainsFunc(cands, func(n scheduler.Candidate) bool { return n.Node == c.Node }) {
			cands = append(cands, c)
		}
	}
	return cands
}

// crowdOf counts what of x's group is on a node already; nodes to avoid count
// as a crowd of 100.
func (o *Owner) crowdOf(x *offer) func(scheduler.NodeID) int {
	m := o.crowds[x.Group]
	if (x.Group == "" || m == nil) && len(x.Avoid) == 0 {
		return nil
	}
	return func(n scheduler.NodeID) int {
		k := 0
		if x.Group != "" {
			k = m[n]
		}
		if slices.Contains(x.Avoid, n) {
			k += 100
		}
		return k
	}
}

// skip says whether a node has refused x and said nothing newer since.
func (o *Owner) skip(x *offer, n scheduler.NodeID) bool {
	for _, t := range x.tried {
		if t.node == n {
			a, _ := o.view.Advert(n)
			return a.Boot == t.boot && a.Seq <= t.seq
		}
	}
	return false
}

// maxTried bounds the nodes an offer remembers as having refused it.
const maxTried = 64

// refused notes a node's no with the reasons; said is the advert that came with
// it, or nil.
func (o *Owner) refused(now time.Duration, x *offer, node scheduler.NodeID, rs []scheduler.Refusal, said *scheduler.Advert) {
	a, _ := o.view.Advert(node)
	t := tried{node, a.Boot, a.Seq}
	if said != nil && said.Node == node {
		t.boot, t.seq = said.Boot, said.Seq
	}
	x.tried = slices.DeleteFunc(x.tried, func(y tried) bool { return y.node == node })
	if len(x.tried) >= maxTried {
		x.tried = slices.Delete(x.tried, 0, 1)
	}
	x.tried = append(x.tried, t)
	if o.cfg.NoHistory {
		return
	}
	rs = slices.Clone(rs[:min(len(rs), MaxReasons)])
	r := scheduler.NodeRefusal{Node: node, Name: a.Name, Source: o.view.SourceOf(node), Reasons: rs}
	x.rec.Refusals = slices.DeleteFunc(x.rec.Refusals, func(y scheduler.NodeRefusal) bool { return y.Node == node })
	if len(x.rec.Refusals) >= MaxReasons {
		x.rec.Refusals = slices.Delete(x.rec.Refusals, 0, 1)
	}
	x.rec.Refusals = append(x.rec.Refusals, r)
	o.say(now, x, "%s refused: %s", o.name(node), reasons(rs))
}

// askReply takes a bid or a refusal, also one that nobody waits for any more.
func (o *Owner) askReply(now time.Duration, e *AskReply) {
	o.heard(now, &e.Advert)
	o.view.Settle(e.Node, string(e.Offer))
	x := o.offers[e.Offer]
	if x == nil || x.phase == phaseAwarding || x.phase == phasePlaced {
		if x != nil {
			o.forgetAsk(x, e.Node)
		}
		taken := x != nil && x.award.node == e.Node && x.award.Hold == e.Hold
		if e.Hold != "" && !taken {
			if x != nil && x.phase == phaseAwarding && x.award.node != e.Node {
				o.addBackup(x, e.Node)
			}
			o.releaseHold(e.Node, e.Offer, e.Hold, nil)
		}
		o.room(now, e.Node)
		return
	}
	var a *ask
	for _, y := range x.asks {
		if y.node == e.Node && y.round == e.Round {
			a = y
		}
	}
	switch {
	case e.Hold == "" && a == nil: // a refusal that came after its round
	case e.Hold == "":
		a.state = askOver
		o.refused(now, x, e.Node, e.Refusals, &e.Advert)
		if x.phase == phaseAsking {
			o.decide(now, x)
		}
	default:
		if a != nil && a.state == askBid {
			break // repeated
		}
		if a == nil {
			a = &ask{node: e.Node, round: e.Round}
			x.asks = append(x.asks, a)
			o.atAdd(e.Node, x)
		}
		a.state, a.hold, a.until = askBid, e.Hold, now+e.HoldFor
		if !o.cfg.NoHistory {
			o.say(now, x, "%s bid, start in %s", o.name(e.Node), o.view.ScoreNode(&x.demand, e.Node, o.crowdOf(x)).Score)
		}
		o.decide(now, x)
	}
	o.room(now, e.Node)
}

// decide awards the best bid as soon as no node that is still silent could beat
// it, and goes on when all have refused.
func (o *Owner) decide(now time.Duration, x *offer) {
	crowd := o.crowdOf(x)
	var best *ask
	var bestC scheduler.Candidate
	silent := 0
	for _, a := range x.asks {
		if a.state != askBid {
			if a.state == askOut {
				silent++
			}
			continue
		}
		c := o.view.ScoreNode(&x.demand, a.node, crowd)
		if best == nil || before(c, bestC) {
			best, bestC = a, c
		}
	}
	if best == nil {
		if silent == 0 {
			o.place(now, x)
		}
		return
	}
	for _, a := range x.asks {
		if a.state == askOut && before(o.view.ScoreNode(&x.demand, a.node, crowd), bestC) {
			return
		}
	}
	o.awardBest(now, x, best)
}

func before(a, b scheduler.Candidate) bool {
	return a.Score.Before(a.Node, b.Score, b.Node)
}

// askTimeout ends a round: who is silent counts as having refused.
func (o *Owner) askTimeout(now time.Duration, x *offer) {
	for _, a := range x.asks {
		if a.state == askOut {
			a.state = askOver
			o.view.Settle(a.node, string(x.ID))
			o.refused(now, x, a.node, []scheduler.Refusal{{Code: scheduler.NoAnswer, Text: "no answer in " + o.cfg.AskWait.String()}}, nil)
		}
	}
	o.decide(now, x)
}

// sendFailed counts as a refusal of everything that was on its way to the node.
func (o *Owner) sendFailed(now time.Duration, e SendFailed) {
	o.view.SetDown(e.Node, e.Reason, true)
	rs := []scheduler.Refusal{{Code: scheduler.Unreachable, Text: orUnreachable(e.Reason)}}
	x := o.offers[e.Offer]
	if e.Lease != "" {
		if x = o.leases[e.Lease]; x != nil && x.phase == phaseAwarding && x.award.node == e.Node {
			o.awardFailed(now, x, rs, nil)
		}
		return
	}
	if x == nil || x.phase != phaseAsking {
		return
	}
	for _, a := range x.asks {
		if a.node == e.Node && a.round == e.Round && a.state == askOut {
			a.state = askOver
			o.refused(now, x, e.Node, rs, nil)
			o.decide(now, x)
			return
		}
	}
}

func orUnreachable(s string) string {
	if s == "" {
		return "unreachable"
	}
	return s
}

// dropAsks forgets a round; bids that were not taken are released.
func (o *Owner) dropAsks(now time.Duration, x *offer) {
	for _, a := range x.asks {
		o.dropAsk(now, x, a)
	}
	x.asks = nil
}

func (o *Owner) dropAsk(now time.Duration, x *offer, a *ask) {
	o.atRemove(a.node, x)
	o.view.Settle(a.node, string(x.ID))
	if a.state == askBid && now < a.until {
		o.releaseHold(a.node, x.ID, a.hold, &x.demand)
	}
}

// forgetAsk drops the record of an ask that was answered too late.
func (o *Owner) forgetAsk(x *offer, node scheduler.NodeID) {
	for i, a := range x.asks {
		if a.node == node {
			o.atRemove(node, x)
			x.asks = slices.Delete(x.asks, i, i+1)
			return
		}
	}
}

// releaseHold gives a reservation back and counts it as free at once.
func (o *Owner) releaseHold(node scheduler.NodeID, id OfferID, hold string, d *scheduler.Demand) {
	if d != nil && !o.cfg.IgnoreReplies {
		o.view.Credit(node, string(id)+"/"+hold, *d)
	}
	o.sendRelease(node, &Release{Offer: id, Hold: hold, Reason: "not needed"})
}

func (o *Owner) atAdd(n scheduler.NodeID, x *offer) { o.at[n] = append(o.at[n], x) }

func (o *Owner) atRemove(n scheduler.NodeID, x *offer) {
	list := o.at[n]
	if i := slices.Index(list, x); i >= 0 {
		list = slices.Delete(list, i, i+1)
	}
	if len(list) == 0 {
		delete(o.at, n)
		return
	}
	o.at[n] = list
}

package market

import (
	"fmt"
	"slices"
	"time"

	"github.com/beammesh/beammesh/scheduler"
)

// Owner places the offers of one node. See the package comment.
//
// An offer goes through
//
//	asking --best bid--> awarding --ok--> placed --ended, expired--> lost
//	  | ^                   | refused or silent: next bid, next round
//	  | +-- next d nodes ---+
//	  +--> blocked   only our own unanswered asks stand in the way
//	  +--> waiting   an open offer; a Pull leads to awarding
//	  +--> never     no known node could; infeasible when the grace is over
//
// and Withdraw or ReleaseLease lead to released from everywhere.
type Owner struct {
	cfg    OwnerConfig
	view   *scheduler.View
	offers map[OfferID]*offer
	leases map[LeaseID]*offer // awarding and placed
	seq    uint64
	wakes  wakeHeap
	// at has, per node, the offers that have asked, awarded or placed there.
	at map[scheduler.NodeID][]*offer
	// crowds counts awards and leases per group and node.
	crowds  map[string]map[scheduler.NodeID]int
	shapes  []*shape // by priority, then age
	shapeBy map[string]*shape
	// pubAt is when publishDue has work next (if pubSome), pubDue that it has now.
	pubAt   time.Duration
	pubSome bool
	pubDue  bool
	nevers  []*offer
	// conflicts is how often others were faster of late, see noteRound.
	conflicts int
	recent    recentTable
	out       []OwnerAction
}

type phase int

const (
	phaseAsking phase = iota
	phaseAwarding
	phaseBlocked
	phaseWaiting
	phaseNever
	phasePlaced
	phaseOver
)

type offer struct {
	Offer
	seq    uint64
	shape  string
	demand scheduler.Demand // clamped, as last asked
	phase  phase
	heapAt int           // index in wakes; -1 = it has no timer
	due    time.Duration // of its timer; its place in wakes may be earlier

	round   int
	asks    []*ask   // of this round; older ones that are still out
	tried   []tried  // nodes that said no
	backups []backup // bids that were not taken, best first
	award   awardOut // in phaseAwarding and phasePlaced
	attempt uint32   // of the last award
	told    bool     // Waiting was said
	never   bool     // as told
	asked   bool     // Discover was said
	rec     *Explanation
}

type ask struct {
	node  scheduler.NodeID
	round int
	hold  string
	until time.Duration // of the hold
	state askState
}

type askState int

const (
	askOut askState = iota
	askBid
	askOver
)

// tried is a node that is skipped until it says something newer.
type tried struct {
	node scheduler.NodeID
	boot string
	seq  uint64
}

type backup struct {
	node  scheduler.NodeID
	score scheduler.Score
}

type awardOut struct {
	Award
	node   scheduler.NodeID
	sends  int
	pulled bool
}

func (c OwnerConfig) withDefaults() OwnerConfig {
	def(&c.AskWidth, 4)
	def(&c.FirstWidth, c.AskWidth)
	def(&c.MaxRounds, 3)
	def(&c.AskWait, 500*time.Millisecond)
	def(&c.AwardWait, 500*time.Millisecond)
	def(&c.AwardSends, 3)
	def(&c.LeaseFor, 15*time.Second)
	def(&c.DiscoveryGrace, 3*time.Second)
	def(&c.PublishEvery, 5*time.Second)
	def(&c.OfferTTL, 15*time.Second)
	def(&c.MaxShapes, 32)
	def(&c.MaxOffers, 16384)
	def(&c.MaxRecent, 1024)
	return c
}

// NewOwner makes an owner with an empty view.
func NewOwner(cfg OwnerConfig) *Owner {
	o := &Owner{
		cfg:    cfg.withDefaults(),
		view:   scheduler.NewView(),
		offers: map[OfferID]*offer{},
		leases: map[LeaseID]*offer{},
		at:     map[scheduler.NodeID][]*offer{},
		crowds: map[string]map[scheduler.NodeID]int{},

		shapeBy: map[string]*shape{},
	}
	o.recent.limit = o.cfg.MaxRecent
	o.view.SetPacking(o.cfg.Packing)
	return o
}

// ID is who this owner is.
func (o *Owner) ID() OwnerID { return o.cfg.ID }

// View is the owner's picture of the mesh, to be read only.
func (o *Owner) View() *scheduler.View { return o.view }

// Step takes one event and returns what the shell has to do, in order. The
// slice is valid until the next Step.
func (o *Owner) Step(now time.Duration, ev OwnerEvent) []OwnerAction {
	clear(o.out)
	o.out = o.out[:0]
	o.due(now)
	switch e := ev.(type) {
	case Submit:
		o.submit(now, e.Offer)
	case AdvertSeen:
		o.advertSeen(now, &e.Advert, e.Source)
	case *AdvertSeen:
		o.advertSeen(now, &e.Advert, e.Source)
	case NodeUp:
		if o.view.SetUp(e.Node) {
			o.room(now, e.Node)
		}
	case NodeDown:
		o.nodeDown(now, e.Node, e.Reason)
		if e.Left {
			o.view.Forget(e.Node)
		}
	case SendFailed:
		o.sendFailed(now, e)
	case DiscoveryDone:
		if x := o.offers[e.Offer]; x != nil && x.phase == phaseNever && !x.Patient {
			o.infeasible(now, x)
		}
	case AskReply:
		o.askReply(now, &e)
	case *AskReply:
		o.askReply(now, e)
	case AwardReply:
		o.awardReply(now, &e)
	case *AwardReply:
		o.awardReply(now, e)
	case ReleaseReply:
		o.releaseReply(now, &e)
	case *ReleaseReply:
		o.releaseReply(now, e)
	case Renew:
		o.renewed(now, &e)
	case *Renew:
		o.renewed(now, e)
	case Ended:
		o.leaseEnded(now, &e)
	case *Ended:
		o.leaseEnded(now, e)
	case Pull:
		o.pull(now, &e)
	case *Pull:
		o.pull(now, e)
	case ReleaseLease:
		if x := o.leases[e.Lease]; x != nil {
			o.withdraw(now, x, e.Reason)
		}
	case Withdraw:
		if x := o.offers[e.Offer]; x != nil {
			o.withdraw(now, x, e.Reason)
		}
	case Adopt:
		o.adopt(now, e)
	case Disown:
		o.sendRelease(e.Node, &Release{Offer: e.Lease.Offer, Lease: e.Lease.Lease, Fence: e.Lease.Fence, Reason: "disowned"})
	case SetMix:
		o.setMix(e)
	case Tick:
	}
	return o.out
}

func (o *Owner) emit(a OwnerAction) { o.out = append(o.out, a) }

// submit starts the search for a node.
func (o *Owner) submit(now time.Duration, in Offer) {
	if o.offers[in.ID] != nil {
		return
	}
	refuse := func(code scheduler.Code, text string) {
		o.emit(Infeasible{Offer: in.ID, Reasons: []scheduler.NodeRefusal{{
			Node: o.cfg.ID.Peer, Source: scheduler.SourceSelf, Reasons: []scheduler.Refusal{{Code: code, Never: true, Text: text}},
		}}})
	}
	if err := in.Demand.Validate(); err != nil {
		refuse(scheduler.InvalidInput, err.Error())
		return
	}
	if in.ID == "" || len(in.ID) > maxOfferID {
		refuse(scheduler.InvalidInput, fmt.Sprintf("an offer's id has 1 to %d bytes", maxOfferID))
		return
	}
	if len(o.offers) >= o.cfg.MaxOffers {
		refuse(scheduler.Limit, fmt.Sprintf("this node answers for %d containers already", len(o.offers)))
		return
	}
	x := o.add(now, in)
	o.place(now, x)
}

func (o *Owner) add(now time.Duration, in Offer) *offer {
	o.seq++
	x := &offer{Offer: in, seq: o.seq, shape: in.Demand.Shape(), demand: in.Demand, heapAt: -1}
	if in.FirstAttempt > 0 {
		x.attempt = in.FirstAttempt - 1
	}
	x.rec = &Explanation{Offer: in.ID, Demand: in.Demand, Submitted: now, State: StatePlacing}
	if old := o.recent.get(in.ID); old != nil { // placed again: one story
		x.rec.History, x.rec.Submitted = old.History, old.Submitted
		o.say(now, x, "submitted again, from fence attempt %d", x.attempt+1)
		o.recent.drop(in.ID)
	}
	o.offers[in.ID] = x
	return x
}

// finish takes an offer out of all tables but the memory for Explain.
func (o *Owner) finish(now time.Duration, x *offer, s State) {
	o.unqueue(x)
	o.setWake(x, 0)
	for _, a := range x.asks {
		o.dropAsk(now, x, a)
	}
	x.asks = nil
	if x.phase == phaseAwarding || x.phase == phasePlaced {
		o.clearAward(x)
	}
	x.phase = phaseOver
	x.rec.State = s
	delete(o.offers, x.ID)
	o.recent.put(x.rec)
}

func cmpSeq(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// heard takes the advert that came with an answer.
func (o *Owner) heard(now time.Duration, a *scheduler.Advert) {
	if !o.cfg.IgnoreReplies {
		o.update(now, a, scheduler.SourceReply)
	}
}

// update brings news of a node into the view and says whether it was news.
func (o *Owner) update(now time.Duration, a *scheduler.Advert, src scheduler.Source) bool {
	if a.Validate() != nil {
		return false
	}
	drained := o.view.Draining(a.Node)
	if !o.view.Update(*a, src) {
		return false
	}
	if a.Capacity.Draining && !drained {
		for _, x := range o.at[a.Node] {
			if x.phase == phasePlaced {
				o.say(now, x, "%s is draining", o.name(a.Node))
				o.emit(NodeDraining{x.ID, x.award.Lease, a.Node})
			}
		}
	}
	return true
}

func (o *Owner) releaseReply(now time.Duration, e *ReleaseReply) {
	o.heard(now, &e.Advert)
	o.room(now, e.Node)
}

func (o *Owner) advertSeen(now time.Duration, a *scheduler.Advert, src scheduler.Source) {
	if o.update(now, a, src) {
		o.room(now, a.Node)
	}
}

// due does what the clock asks for; it runs at the start of every Step.
func (o *Owner) due(now time.Duration) {
	for len(o.wakes) > 0 && o.wakes[0].at <= now {
		x := o.wakes[0].offer
		if x.due > now { // it was moved since
			o.wakes[0].at = x.due
			o.wakes.down(0)
			continue
		}
		o.setWake(x, 0)
		switch x.phase {
		case phaseAsking:
			o.askTimeout(now, x)
		case phaseAwarding:
			o.awardTimeout(now, x)
		case phaseBlocked:
			o.place(now, x)
		case phaseNever:
			o.infeasible(now, x)
		case phasePlaced:
			o.lost(now, x, EndExpired, "no renewal for "+o.cfg.LeaseFor.String())
		}
	}
	o.publishDue(now)
}

// NextWake is when a Tick is due; ok is false when none is.
func (o *Owner) NextWake() (at time.Duration, ok bool) {
	if len(o.wakes) > 0 {
		at, ok = o.wakes[0].at, true
	}
	if o.pubSome && (!ok || o.pubAt < at) {
		at, ok = o.pubAt, true
	}
	return at, ok
}

// Offers lists what is waiting or placed, in order of submission.
func (o *Owner) Offers() []OfferState {
	all := make([]*offer, 0, len(o.offers))
	for _, x := range o.offers {
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b *offer) int { return cmpSeq(a.seq, b.seq) })
	out := make([]OfferState, 0, len(all))
	for _, x := range all {
		s := OfferState{Offer: x.ID, Group: x.Group, State: x.rec.State}
		if x.phase == phaseAwarding || x.phase == phasePlaced {
			s.Lease, s.Node, s.Fence = x.award.Lease, x.award.node, x.award.Fence
		}
		out = append(out, s)
	}
	return out
}

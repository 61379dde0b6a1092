package market

import (
	"slices"
	"time"

	"github.com/beammesh/beammesh/scheduler"
)

// shape is the queue of the offers that the same nodes can take. It outlives
// its last offer until the next publication would be allowed.
type shape struct {
	key    string
	demand scheduler.Demand // of the first offer, not clamped
	seq    uint64
	queue  []*offer // blocked and waiting, by submission
	nWait  int      // of these, the waiting

	published bool
	lastPub   time.Duration
	looked    bool // Discover was said at
	lookedAt  time.Duration
	// told is when a node learned of this shape from us directly.
	told map[scheduler.NodeID]time.Duration
	// reasons are computed once for all that start to wait within a second.
	reasons   []scheduler.NodeRefusal
	reasonsAt time.Duration
}

func (s *shape) tellNow(n scheduler.NodeID, now time.Duration) {
	if s.told == nil {
		s.told = map[scheduler.NodeID]time.Duration{}
	}
	s.told[n] = now
}

// nearest is how many of the nearest misses are told of an open offer directly,
// so that late binding works where gossip does not.
const nearest = 4

// discoverEvery bounds the lookups for a shape that waits.
const discoverEvery = time.Minute

func (o *Owner) findShape(key string) *shape { return o.shapeBy[key] }

// enqueue puts x in the queue of its shape.
func (o *Owner) enqueue(x *offer, p phase) *shape {
	s := o.findShape(x.shape)
	if s == nil {
		s = &shape{key: x.shape, demand: x.Demand, seq: x.seq}
		i := len(o.shapes)
		for i > 0 && o.shapes[i-1].demand.Priority > s.demand.Priority {
			i--
		}
		o.shapes = slices.Insert(o.shapes, i, s)
		o.shapeBy[s.key] = s
	}
	x.phase = p
	if p == phaseWaiting {
		s.nWait++
		o.pubDue = true
	}
	i := len(s.queue)
	for i > 0 && s.queue[i-1].seq > x.seq {
		i--
	}
	s.queue = slices.Insert(s.queue, i, x)
	return s
}

// unqueue takes x out of whatever it waits in.
func (o *Owner) unqueue(x *offer) {
	switch x.phase {
	case phaseBlocked, phaseWaiting:
		if s := o.findShape(x.shape); s != nil {
			if i, ok := slices.BinarySearchFunc(s.queue, x.seq, func(y *offer, seq uint64) int { return cmpSeq(y.seq, seq) }); ok {
				s.queue = slices.Delete(s.queue, i, i+1)
				if x.phase == phaseWaiting {
					s.nWait--
				}
			}
		}
	case phaseNever:
		o.nevers = slices.DeleteFunc(o.nevers, func(y *offer) bool { return y == x })
	}
}

// noCandidates tells apart the three ways of having nobody to ask.
func (o *Owner) noCandidates(now time.Duration, x *offer) {
	look := o.view.Outlook(&x.demand)
	switch {
	case look.Best == scheduler.FitNever && !look.Pending && !x.Patient:
		x.phase, x.rec.State = phaseNever, StateWaiting
		o.nevers = append(o.nevers, x)
		o.setWake(x, now+o.cfg.DiscoveryGrace)
		if !x.told || !x.never {
			x.told, x.never = true, true
			o.say(now, x, "no known node could ever take it")
			o.emit(Waiting{Offer: x.ID, Never: true, Reasons: o.view.Refusals(&x.demand, MaxReasons), Hint: o.view.Hint(&x.demand)})
		}
		if !x.asked {
			x.asked = true
			o.emit(Discover{x.ID, classesOf(&x.demand)})
		}
	case look.Pending && x.round == 0:
		o.enqueue(x, phaseBlocked)
		o.setWake(x, now+o.cfg.AskWait/5)
	default:
		o.wait(now, x)
	}
}

func classesOf(d *scheduler.Demand) []string {
	var cs []string
	for _, w := range d.GPUs {
		cs = append(cs, w.Class)
	}
	return cs
}

// wait makes x an open offer.
func (o *Owner) wait(now time.Duration, x *offer) {
	s := o.enqueue(x, phaseWaiting)
	x.rec.State = StateWaiting
	x.round, x.tried = 0, nil
	if !x.told || x.never {
		x.told, x.never = true, false
		if s.reasons == nil || now >= s.reasonsAt+time.Second {
			s.reasons, s.reasonsAt = o.waitReasons(x), now
		}
		o.say(now, x, "waits as an open offer")
		o.emit(Waiting{Offer: x.ID, Reasons: s.reasons})
	}
	if !s.looked || now >= s.lookedAt+discoverEvery {
		s.looked, s.lookedAt = true, now
		o.emit(Discover{x.ID, classesOf(&x.demand)})
	}
	o.publishDue(now)
	// A node with room was perhaps seen while others of the shape waited.
	for _, c := range o.view.Rank(&x.demand, 1, nil, nil) {
		o.tell(now, s, c.Node)
	}
}

// waitReasons are the view's, and what was said by nodes that the view expected
// to have room.
func (o *Owner) waitReasons(x *offer) []scheduler.NodeRefusal {
	rs := o.view.Refusals(&x.demand, MaxReasons)
	for _, r := range x.rec.Refusals {
		if len(rs) < MaxReasons && !slices.ContainsFunc(rs, func(y scheduler.NodeRefusal) bool { return y.Node == r.Node }) {
			rs = append(rs, r)
		}
	}
	return rs
}

// tell sends the open offer of a shape to one node, unless it just was.
func (o *Owner) tell(now time.Duration, s *shape, node scheduler.NodeID) {
	if at, ok := s.told[node]; ok && now < at+o.cfg.PublishEvery {
		return
	}
	s.tellNow(node, now)
	m := o.openOffer(s)
	m.Direct = true
	o.sendOpenOffer(node, &m)
}

func (o *Owner) openOffer(s *shape) OpenOffer {
	d, _ := o.view.Clamp(s.demand)
	return OpenOffer{Owner: o.cfg.ID, Shape: s.key, Demand: d, Count: s.nWait, TTL: o.cfg.OfferTTL}
}

// publishDue publishes what waits and finds no room in the view, each shape at
// most every PublishEvery and at most MaxShapes of them, and forgets empty shapes.
func (o *Owner) publishDue(now time.Duration) {
	if !o.pubDue && (!o.pubSome || now < o.pubAt) {
		return
	}
	o.pubDue = false
	shapes := 0
	for _, s := range o.shapes {
		if s.nWait == 0 {
			continue
		}
		if shapes++; shapes > o.cfg.MaxShapes {
			break
		}
		if s.published && now < s.lastPub+o.cfg.PublishEvery {
			continue
		}
		s.published, s.lastPub = true, now
		m := o.openOffer(s)
		if roomy := o.view.Rank(&m.Demand, nearest, nil, nil); len(roomy) == nearest {
			// We know of room and others were faster, again and again. To publish it
			// would make every node with room pull, for one to be taken.
			for _, c := range roomy {
				o.tell(now, s, c.Node)
			}
			continue
		}
		o.sendOpenOffer("", &m)
		for _, r := range o.view.Refusals(&m.Demand, nearest) {
			if o.view.FitNode(&m.Demand, r.Node) == scheduler.FitNotNow {
				o.tell(now, s, r.Node)
			}
		}
	}
	o.shapes = slices.DeleteFunc(o.shapes, func(s *shape) bool {
		if len(s.queue) == 0 && (!s.published || now >= s.lastPub+o.cfg.PublishEvery) {
			delete(o.shapeBy, s.key)
			return true
		}
		return false
	})
	o.pubAt, o.pubSome = o.nextPublish()
}

// nextPublish is when the next shape is due; publishDue keeps it in pubAt.
func (o *Owner) nextPublish() (at time.Duration, ok bool) {
	shapes := 0
	for _, s := range o.shapes {
		if s.nWait == 0 {
			continue
		}
		if shapes++; shapes > o.cfg.MaxShapes {
			break
		}
		if next := s.lastPub + o.cfg.PublishEvery; !ok || next < at {
			at, ok = next, true
		}
	}
	return at, ok
}

// room offers a node that said something new to what waits: blocked offers ask
// again, open offers are told to the node, which pulls.
func (o *Owner) room(now time.Duration, node scheduler.NodeID) {
	if !o.view.Up(node) {
		return
	}
	for _, x := range slices.Clone(o.nevers) {
		if d, _ := o.view.Clamp(x.Demand); o.view.FitNode(&d, node) != scheduler.FitNever {
			o.place(now, x)
		}
	}
	if len(o.shapes) == 0 {
		return
	}
	for _, s := range slices.Clone(o.shapes) {
		if len(s.queue) == 0 {
			continue
		}
		d, _ := o.view.Clamp(s.demand)
		for i := 0; i < len(s.queue) && o.view.FitNode(&d, node) == scheduler.FitNow; {
			x := s.queue[i]
			if x.phase == phaseWaiting {
				o.tell(now, s, node)
				break
			}
			o.place(now, x)
			if i < len(s.queue) && s.queue[i] == x {
				i++ // blocked again
			}
		}
	}
}

// pull takes a node's unasked bid for the oldest offer of a shape.
func (o *Owner) pull(now time.Duration, e *Pull) {
	o.heard(now, &e.Advert)
	for _, x := range o.at[e.Node] {
		if (x.phase == phaseAwarding || x.phase == phasePlaced) && x.award.Hold == e.Hold {
			return // repeated
		}
	}
	s := o.findShape(e.Shape)
	if s == nil || len(s.queue) == 0 {
		if s != nil {
			delete(s.told, e.Node)
		}
		o.releaseHold(e.Node, "", e.Hold, nil)
		return
	}
	x := s.queue[0]
	o.unqueue(x)
	o.setWake(x, 0)
	o.dropAsks(now, x)
	x.backups, x.round = nil, 0
	x.demand, x.rec.Note = o.view.Clamp(x.Demand)
	o.say(now, x, "%s pulled the open offer", o.name(e.Node))
	o.giveAward(now, x, e.Node, e.Hold, true)
	o.room(now, e.Node)
}

// infeasible gives up on x.
func (o *Owner) infeasible(now time.Duration, x *offer) {
	o.say(now, x, "given up: no known node could ever take it")
	rs := o.view.Refusals(&x.demand, MaxReasons)
	x.rec.Settled, x.rec.Refusals = now, rs
	o.emit(Infeasible{x.ID, rs, o.view.Hint(&x.demand)})
	o.finish(now, x, StateInfeasible)
}

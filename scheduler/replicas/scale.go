package replicas

import (
	"fmt"
	"slices"
	"time"
)

// scale asks for containers, takes back what is not needed any more and lets
// idle ones go.
//
// N calls of mean length D on W containers of C places take N*D/(W*C). One more
// container is worth it as long as that is longer than a container takes to
// start: W = ceil(N*D / (C*start)), and never more than one place per call. While
// D is unknown, Unknown containers are started, and the age of the calls that
// run stands in for D.
func (p *Pool) scale(now time.Duration) {
	p.growAt = 0
	if p.closed {
		return
	}
	have := p.live + len(p.asked)
	want := max(p.cfg.Min, p.wanted(now, have))
	switch {
	case want > have && now >= p.askAfter:
		p.ask(now, want-have)
	case want > have:
		p.growAt = p.askAfter
	case p.queued == 0 && len(p.asked) > 0:
		// Everything has a place; what still starts would come to nothing.
		p.unask(min(len(p.asked), max(0, have-max(p.cfg.Min, p.live))))
	}
	p.retire(now)
}

// wanted is the number of containers that the present calls justify; it also
// sets growAt, when the passing of time alone would justify more.
func (p *Pool) wanted(now time.Duration, have int) int {
	n := p.queued + p.sent
	if p.queued == 0 {
		return min(have, p.cfg.Max)
	}
	c := p.cfg.Concurrency
	most := min((n+c-1)/c, p.cfg.Max)
	if have >= most {
		return most
	}
	d := p.mean
	busy := p.begun > 0 && len(p.idle) == 0
	if age := now - p.lastBegun; busy && age > d {
		d = age // every running call is older than that
	}
	span := time.Duration(c) * p.start
	want := 1
	if d > 0 {
		want = int(min(time.Duration(most), (time.Duration(n)*d+span-1)/span))
	}
	if p.mean == 0 {
		want = max(want, p.cfg.Unknown)
	}
	want = min(max(want, 1), most)
	if want <= have && busy {
		// d at which one more is worth it.
		p.growAt = max(now+1, p.lastBegun+time.Duration(have)*span/time.Duration(n)+1)
	}
	return want
}

func (p *Pool) ask(now time.Duration, n int) {
	for range n {
		p.asked = append(p.asked, now)
	}
	p.emit(Acquire{n})
}

// unask takes back the youngest n.
func (p *Pool) unask(n int) {
	if n > 0 {
		p.asked = p.asked[:len(p.asked)-n]
		p.emit(Unacquire{n})
	}
}

// retire lets containers go that were idle for KeepWarm, or are above Max.
func (p *Pool) retire(now time.Duration) {
	for len(p.idle) > 0 {
		r := p.idle[0]
		over := p.live > p.cfg.Max
		old := p.cfg.KeepWarm >= 0 && now >= r.idleSince+p.cfg.KeepWarm && p.live > p.cfg.Min
		if !over && !old {
			return
		}
		p.drop(now, r, "idle")
	}
}

// ready takes a container in. One that was not asked for (any more) is welcome
// too, up to Max: it is idle until it has something to do.
func (p *Pool) ready(now time.Duration, e ReplicaReady) *replica {
	if p.byID[e.Replica] != nil {
		return nil
	}
	if p.closed {
		p.emit(ReleaseReplica{e.Replica, "stopped"})
		return nil
	}
	if len(p.asked) == 0 && p.live >= p.cfg.Max {
		p.emit(ReleaseReplica{e.Replica, "not needed"})
		return nil
	}
	took := e.Took
	if len(p.asked) > 0 {
		if took == 0 {
			took = now - p.asked[0]
		}
		p.asked = slices.Delete(p.asked, 0, 1)
	}
	if took > 0 {
		// Waiting for room is not starting: one such must not spoil the mean.
		took = min(took, 4*p.start)
		p.start = max(time.Millisecond, p.start+(took-p.start)/4)
	}
	p.backoff, p.askAfter = p.cfg.AcquireBackoff, 0
	r := &replica{id: e.Replica, node: e.Node, idleSince: now}
	p.byID[r.id] = r
	p.order = append(p.order, r)
	p.idle = append(p.idle, r)
	p.live++
	return r
}

// acquireFailed counts out containers that will not come.
func (p *Pool) acquireFailed(now time.Duration, e AcquireFailed) {
	n := min(e.N, len(p.asked))
	p.asked = p.asked[:len(p.asked)-n]
	p.pause(now)
	if e.Final && p.live == 0 && len(p.asked) == 0 {
		p.failQueued(Failure{Kind: FailNoPlace, Text: e.Reason})
		p.askAfter, p.backoff = 0, p.cfg.AcquireBackoff // the next call may try again
	}
}

// pause keeps from asking again for a while, twice as long each time.
func (p *Pool) pause(now time.Duration) {
	p.askAfter = now + p.backoff
	p.backoff = min(2*p.backoff, 32*p.cfg.AcquireBackoff)
}

func (p *Pool) failQueued(f Failure) {
	for c := p.next(); c != nil; c = p.next() {
		p.queued++ // finish counts it out
		c.fresh = false
		g := f
		p.finish(c, "", &g)
	}
}

// maxBadStarts is how many containers in a row may end before one of them has
// finished a call; then the waiting calls fail with the reason.
const maxBadStarts = 5

// lost takes a container out; its calls are placed again or fail.
func (p *Pool) lost(now time.Duration, e ReplicaLost) {
	r := p.byID[e.Replica]
	if r == nil {
		return
	}
	for _, s := range p.remove(r) {
		c := s.call
		p.uncount(s)
		p.stop(&s.timer)
		switch {
		case c == nil:
		case s.begun && !e.NodeLost:
			p.fail(now, c, r.id, e.Failure)
		case !e.NodeLost && !s.resumed:
			// The container's own last word comes behind every Begun: this call
			// never ran, and its attempt is not used up.
			c.attempt--
			p.requeue(c)
		default:
			p.replace(c, s, "the container's node was lost")
		}
	}
	if e.NodeLost || r.finished > 0 || r.draining {
		return
	}
	p.pause(now)
	if p.badStarts++; p.badStarts >= maxBadStarts && p.live == 0 {
		p.badStarts = 0
		p.failQueued(e.Failure)
	}
}

// drain stops sending to a container and lets it go when it is done.
func (p *Pool) drain(now time.Duration, id ReplicaID) {
	r := p.byID[id]
	if r == nil || r.draining {
		return
	}
	r.draining = true
	p.live--
	p.sent -= len(r.slots)
	if len(r.slots) == 0 {
		p.drop(now, r, "drained")
		return
	}
	for _, s := range r.slots {
		if !s.begun && !s.recall && s.call != nil {
			s.recall = true
			p.emit(Recall{r.id, s.id, s.attempt})
		}
	}
}

// drop releases a container; calls that are still on it are placed again.
func (p *Pool) drop(now time.Duration, r *replica, reason string) {
	for _, s := range p.remove(r) {
		p.uncount(s)
		p.stop(&s.timer)
		if s.call != nil {
			p.replace(s.call, s, "its container was given up: "+reason)
		}
	}
	p.emit(ReleaseReplica{r.id, reason})
}

// replace queues a call again that lost its container through no fault of its
// own. Only one that had begun counts as lost, up to MaxNodeLosses.
func (p *Pool) replace(c *call, s *slot, why string) {
	switch {
	case !s.begun:
		p.requeue(c)
	case c.losses >= p.cfg.MaxNodeLosses:
		p.finish(c, s.r.id, &Failure{Kind: FailNodeLost, Text: fmt.Sprintf("its node was lost %d times", c.losses+1)})
	default:
		c.losses++
		p.emit(Retrying{c.ID, c.attempt, Failure{Kind: FailNodeLost, Text: why}})
		p.requeue(c)
	}
}

// remove takes a container out of all tables and gives its slots.
func (p *Pool) remove(r *replica) []*slot {
	r.gone = true
	delete(p.byID, r.id)
	p.order = slices.DeleteFunc(p.order, func(x *replica) bool { return x == r })
	p.idle = slices.DeleteFunc(p.idle, func(x *replica) bool { return x == r })
	slots := r.slots
	r.slots = nil
	if !r.draining {
		p.live--
		p.sent -= len(slots)
	}
	return slots
}

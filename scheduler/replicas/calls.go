package replicas

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// submit queues a call.
func (p *Pool) submit(now time.Duration, in Call) {
	if p.calls[in.ID] != nil {
		return
	}
	reject := func(kind FailureKind, text string) {
		p.emit(Finished{Call: in.ID, Failure: &Failure{Kind: kind, Text: text}})
	}
	switch {
	case p.closed:
		reject(FailCancelled, "stopped")
		return
	case p.queued >= p.cfg.MaxQueue:
		reject(FailRejected, fmt.Sprintf("%d calls wait already", p.queued))
		return
	case in.Deadline > 0 && in.Deadline <= now:
		reject(FailExpired, "its deadline has passed")
		return
	}
	p.seq++
	c := &call{Call: in, seq: p.seq, fresh: true}
	c.deadline.c = c
	p.calls[c.ID] = c
	p.fresh = append(p.fresh, c)
	p.queued++
	if in.Deadline > 0 {
		p.set(&c.deadline, in.Deadline)
	}
}

// next takes the oldest queued call; nil when there is none.
func (p *Pool) next() *call {
	if p.queued == 0 {
		return nil
	}
	p.queued--
	for len(p.fresh) > 0 && p.fresh[0].over {
		p.fresh = p.fresh[1:]
	}
	if len(p.again) > 0 && (len(p.fresh) == 0 || p.again[0].seq < p.fresh[0].seq) {
		c := p.again[0]
		p.again = slices.Delete(p.again, 0, 1)
		return c
	}
	c := p.fresh[0]
	p.fresh[0] = nil
	p.fresh = p.fresh[1:]
	c.fresh = false
	return c
}

// requeue puts a call back at its place in the order of submission.
func (p *Pool) requeue(c *call) {
	c.slot = nil
	i, _ := slices.BinarySearchFunc(p.again, c, func(a, b *call) int { return cmp.Compare(a.seq, b.seq) })
	p.again = slices.Insert(p.again, i, c)
	p.queued++
	if c.Deadline > 0 && c.losses == 0 && c.retries == 0 {
		p.set(&c.deadline, c.Deadline)
	}
}

// unqueue takes a queued call out. In fresh it only counts as gone, until next
// or the compaction here drops it.
func (p *Pool) unqueue(c *call) {
	p.queued--
	if !c.fresh {
		if i, ok := slices.BinarySearchFunc(p.again, c, func(a, b *call) int { return cmp.Compare(a.seq, b.seq) }); ok {
			p.again = slices.Delete(p.again, i, i+1)
		}
		return
	}
	c.over = true
	if len(p.fresh) > 64 && len(p.fresh) > 2*p.queued {
		p.fresh = slices.DeleteFunc(p.fresh, func(c *call) bool { return c.over })
	}
}

// finish ends a call for good; it is the only place that says Finished for a
// call that was accepted.
func (p *Pool) finish(c *call, r ReplicaID, f *Failure) {
	if c.slot == nil {
		p.unqueue(c)
	}
	c.over = true
	p.stop(&c.deadline)
	delete(p.calls, c.ID)
	p.emit(Finished{Call: c.ID, Attempt: c.attempt, Replica: r, Failure: f})
}

// fail ends an attempt: the call is queued again if the user's retries allow it.
// The caller has freed or orphaned the slot.
func (p *Pool) fail(now time.Duration, c *call, r ReplicaID, f Failure) {
	if f.Kind != FailCancelled && c.retries < c.Retries && retryable(c.RetryFor, f) {
		c.retries++
		p.emit(Retrying{c.ID, c.attempt, f})
		p.requeue(c)
		return
	}
	p.finish(c, r, &f)
}

// retryable says whether a failure is among those the user named.
func retryable(names []string, f Failure) bool {
	if len(names) == 0 {
		return true
	}
	if f.Kind != FailException {
		return slices.Contains(names, string(f.Kind))
	}
	return slices.ContainsFunc(names, func(n string) bool {
		return n == f.Name || strings.HasSuffix(f.Name, "."+n)
	})
}

// cancel ends a call, wherever it is.
func (p *Pool) cancel(now time.Duration, e Cancel) {
	c := p.calls[e.Call]
	if c == nil {
		return
	}
	r := ReplicaID("")
	if s := c.slot; s != nil {
		r = s.r.id
		p.stopSlot(now, s, FailCancelled)
	}
	p.finish(c, r, &Failure{Kind: FailCancelled, Text: e.Reason})
}

// stopSlot parts a slot from its call: the container is told to stop, and the
// slot stays taken until it says that it did.
func (p *Pool) stopSlot(now time.Duration, s *slot, kind FailureKind) {
	p.uncount(s)
	s.call = nil
	p.set(&s.timer, now+p.cfg.CancelWait)
	p.emit(StopCall{s.r.id, s.id, s.attempt, kind})
}

// uncount takes a begun slot off the number of running calls.
func (p *Pool) uncount(s *slot) {
	if s.begun && s.call != nil {
		p.begun--
	}
}

// slotOf finds a call on a container; nil when that is not where it is (any more).
func (p *Pool) slotOf(r ReplicaID, id CallID, attempt int) *slot {
	rep := p.byID[r]
	if rep == nil {
		return nil
	}
	for _, s := range rep.slots {
		if s.id == id && s.attempt == attempt {
			return s
		}
	}
	return nil
}

func (p *Pool) beginCall(now time.Duration, e Begun) {
	s := p.slotOf(e.Replica, e.Call, e.Attempt)
	if s == nil || s.begun {
		return
	}
	s.begun, s.begunAt, s.recall = true, now, false
	if s.call == nil {
		return // stopped on its way
	}
	p.begun++
	p.lastBegun = now
	p.stop(&s.call.deadline)
	if s.call.Timeout > 0 {
		p.set(&s.timer, now+s.call.Timeout)
	}
}

// result ends an attempt. What does not come from where the call is now is
// dropped: that makes at most one result count.
func (p *Pool) result(now time.Duration, e Result) *replica {
	s := p.slotOf(e.Replica, e.Call, e.Attempt)
	if s == nil {
		return nil
	}
	s.r.finished++
	p.badStarts = 0
	if c := s.call; c != nil {
		if e.Failure == nil || e.Failure.Kind == FailException {
			p.measure(now, s)
		}
		if e.Failure == nil {
			p.finish(c, s.r.id, nil)
		} else {
			p.fail(now, c, s.r.id, *e.Failure)
		}
	}
	p.free(now, s)
	if e.Failure != nil && e.Failure.Kind == FailOOM {
		// The whole container ends with the process that was killed. A call sent
		// there now would come back unbegun.
		p.drain(now, s.r.id)
	}
	return s.r
}

// measure takes a call's duration into the averages (1/8 each, the first whole).
func (p *Pool) measure(now time.Duration, s *slot) {
	d := now - s.begunAt
	if !s.begun {
		d = now - s.sentAt
	}
	for _, m := range [...]*time.Duration{&p.mean, &s.r.mean} {
		if *m == 0 {
			*m = max(d, 1)
			continue
		}
		*m = max(1, *m+(d-*m)/8)
	}
}

// free takes a slot off its container.
func (p *Pool) free(now time.Duration, s *slot) {
	p.uncount(s)
	p.stop(&s.timer)
	r := s.r
	if i := slices.Index(r.slots, s); i >= 0 {
		r.slots = slices.Delete(r.slots, i, i+1)
		if !r.draining {
			p.sent--
		}
	}
	if len(r.slots) > 0 || r.gone {
		return
	}
	if r.draining {
		p.drop(now, r, "drained")
		return
	}
	r.idleSince = now
	p.idle = append(p.idle, r)
}

// recalled takes a call back that was sent ahead.
func (p *Pool) recalled(now time.Duration, e Recalled) *replica {
	s := p.slotOf(e.Replica, e.Call, e.Attempt)
	if s == nil || s.begun || !s.recall {
		return nil
	}
	if !e.Given {
		s.recall = false // it is about to begin
		return nil
	}
	c := s.call
	p.free(now, s)
	if c != nil {
		c.attempt-- // it never began: the same attempt is sent again
		p.requeue(c)
	}
	return s.r
}

package replicas

import (
	"slices"
	"time"
)

// pump sends queued calls: to containers with a free place first, then ahead to
// busy ones as far as the window allows. freed is where a place may just have
// become free; it spares a search.
func (p *Pool) pump(now time.Duration, freed *replica) {
	for p.queued > 0 {
		r := p.pick(freed)
		if r == nil {
			return
		}
		p.dispatch(now, r)
	}
}

// pick chooses the container for the next call: the one that fell idle last (its
// caches are warm, the others can be let go), else the least loaded.
func (p *Pool) pick(freed *replica) *replica {
	if n := len(p.idle); n > 0 {
		return p.idle[n-1]
	}
	if freed != nil && !freed.gone && !freed.draining && p.room(freed) > 0 && p.cfg.Concurrency == 1 {
		return freed
	}
	if p.sent >= p.live*(p.cfg.Concurrency+deepest*p.cfg.Window) || p.cfg.Concurrency == 1 && p.window(p.mean) == 0 {
		return nil
	}
	var best *replica
	var bestWait time.Duration
	for _, r := range p.order {
		if p.room(r) == 0 {
			continue
		}
		// Expected wait for a place; a slower machine counts as more loaded.
		w := time.Duration(len(r.slots)) * max(r.mean, 1)
		if len(r.slots) < p.cfg.Concurrency {
			w = time.Duration(len(r.slots)) // a free place needs no wait
		}
		if best == nil || w < bestWait {
			best, bestWait = r, w
		}
	}
	return best
}

// room is how many more calls may be sent to r.
func (p *Pool) room(r *replica) int {
	if r.draining || r.gone {
		return 0
	}
	return max(0, p.cfg.Concurrency+p.window(max(p.mean, r.mean))-len(r.slots))
}

const (
	// deepest is how many times the window very short calls have.
	deepest = 4
	// deepBelow: calls that on average last less than this take about as long
	// as their way to the container and back, or less.
	deepBelow = 5 * time.Millisecond
)

// window is how many calls of this mean length may be sent ahead. That hides
// the round trip; a long call would only be stuck there.
func (p *Pool) window(mean time.Duration) int {
	switch {
	case mean <= 0 || mean >= p.cfg.WindowBelow:
		return 0
	case mean < deepBelow:
		return deepest * p.cfg.Window
	}
	return p.cfg.Window
}

func (p *Pool) dispatch(now time.Duration, r *replica) {
	c := p.next()
	c.attempt++
	s := &slot{r: r, call: c, id: c.ID, attempt: c.attempt, sentAt: now}
	s.timer.s = s
	c.slot = s
	if len(r.slots) == 0 {
		if i := slices.Index(p.idle, r); i >= 0 {
			p.idle = slices.Delete(p.idle, i, i+1)
		}
	}
	r.slots = append(r.slots, s)
	p.sent++
	p.emit(Dispatch{r.id, c.ID, c.attempt})
}

// recallAbove is the expected wait from which it pays to call a call back: a few
// round trips.
const recallAbove = 10 * time.Millisecond

// recallSent calls back what was sent ahead and has not begun, one for each idle
// container, when nothing else is left for it to do.
func (p *Pool) recallSent(now time.Duration) {
	p.recallAt = 0
	if p.queued > 0 || len(p.idle) == 0 || p.sent == 0 {
		return
	}
	if p.cfg.Concurrency == 1 && p.sent <= p.live-len(p.idle) {
		return // one each: nothing stands behind another
	}
	pending := 0
	for _, r := range p.order {
		for _, s := range r.slots {
			if s.recall {
				pending++
			}
		}
	}
	for pending < len(p.idle) {
		var best *slot
		var bestWait time.Duration
		for _, r := range p.order {
			s := aheadSlot(r, p.cfg.Concurrency)
			if s == nil {
				continue
			}
			wait := max(r.mean, now-r.slots[0].sentAt)
			if wait < recallAbove {
				if at := now + recallAbove - wait; p.recallAt == 0 || at < p.recallAt {
					p.recallAt = at
				}
				continue
			}
			if best == nil || wait > bestWait {
				best, bestWait = s, wait
			}
		}
		if best == nil {
			return
		}
		best.recall = true
		pending++
		p.emit(Recall{best.r.id, best.id, best.attempt})
	}
}

// aheadSlot is the last call of r that waits behind others there and was not
// called back yet.
func aheadSlot(r *replica, concurrency int) *slot {
	for i := len(r.slots) - 1; i >= concurrency; i-- {
		if s := r.slots[i]; !s.begun && !s.recall && s.call != nil {
			return s
		}
	}
	return nil
}

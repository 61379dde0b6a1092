package virtual

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/beammesh/beammesh/scheduler/market"
)

// task is one offer's story.
type task struct {
	offer  market.Offer
	since  time.Duration // when it was submitted, or lost with its node
	fence  market.Fence  // of the last placement
	placed bool
	over   bool

	first  time.Duration   // from Submit to the first placement
	again  []time.Duration // from each loss to the next placement
	losses []market.EndReason
}

// Submit hands an offer to the owner on a node.
func (w *World) Submit(node int, o market.Offer) {
	w.mu.Lock()
	w.tasks[o.ID] = &task{offer: o, since: w.Now()}
	w.mu.Unlock()
	w.nodes[node].stepOwner(market.Submit{Offer: o})
}

// Await waits until what happened so far is enough; it asks after every
// placement and loss.
func (w *World) Await(ctx context.Context, enough func(Report) bool) error {
	for {
		w.mu.Lock()
		r, changed := w.reportLocked(), w.changed
		w.mu.Unlock()
		if enough(r) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d tasks are placed, %d losses: %w", r.Placed, r.Tasks, len(r.Lost), ctx.Err())
		}
	}
}

func (w *World) changedLocked() {
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *World) placed(by *Node, p market.Placed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.tasks[p.Offer]
	switch {
	case t == nil || t.over || t.placed:
		w.violateLocked("node %d placed %s twice", by.i, p.Offer)
		return
	case !t.fence.Less(p.Fence):
		w.violateLocked("node %d placed %s under fence %s after %s", by.i, p.Offer, p.Fence, t.fence)
	}
	took := w.Now() - t.since
	if t.fence == (market.Fence{}) {
		t.first = took
	} else {
		t.again = append(t.again, took)
	}
	t.fence, t.placed = p.Fence, true
	w.changedLocked()
}

// lost says whether the task must be placed again, and as what.
func (w *World) lost(l market.Lost) (again market.Offer, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.tasks[l.Offer]
	if t == nil || !t.placed {
		w.violateLocked("%s was lost and had no place", l.Offer)
		return again, false
	}
	t.placed = false
	w.changedLocked()
	if l.Reason == market.EndExited {
		t.over = true
		return again, false
	}
	t.losses = append(t.losses, l.Reason)
	t.since = w.Now()
	again = t.offer
	again.FirstAttempt = l.NextAttempt
	return again, true
}

func (w *World) infeasible(i market.Infeasible) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violateLocked("%s is infeasible: %s", i.Offer, i.Hint)
	if t := w.tasks[i.Offer]; t != nil {
		t.over = true
	}
	w.changedLocked()
}

// sent counts a message by the name of its type.
func (w *World) sent(m any) {
	_, name, _ := strings.Cut(fmt.Sprintf("%T", m), ".")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.messages[name]++
}

func (w *World) violated(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violateLocked(format, args...)
}

// maxViolations are kept; the first ones tell the story.
const maxViolations = 100

func (w *World) violateLocked(format string, args ...any) {
	if len(w.violations) < maxViolations {
		w.violations = append(w.violations, fmt.Sprintf(format, args...))
	}
}

// Report is what happened so far.
type Report struct {
	Tasks      int
	Placed     int // now
	Placements int // ever
	// First and Again are the times to the first placement of each task, and from
	// the moment that the owner noticed a loss to the next one.
	First, Again []time.Duration
	Lost         []market.EndReason // one per loss of a node
	Messages     map[string]int     // of the market, by type
	Violations   []string           // of promises; must be empty
}

// Report sums up.
func (w *World) Report() Report {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reportLocked()
}

func (w *World) reportLocked() Report {
	r := Report{Tasks: len(w.tasks), Messages: maps.Clone(w.messages), Violations: append([]string(nil), w.violations...)}
	for _, t := range w.tasks {
		if t.placed {
			r.Placed++
		}
		if t.fence != (market.Fence{}) {
			r.First = append(r.First, t.first)
			r.Placements++
		}
		r.Again = append(r.Again, t.again...)
		r.Placements += len(t.again)
		r.Lost = append(r.Lost, t.losses...)
	}
	return r
}

// PerPlacement is the number of messages that one placement took, from ask to
// release, without the renewals: those count with the time that a lease lives.
func (r Report) PerPlacement() float64 {
	n := 0
	for name, k := range r.Messages {
		if name != "Renew" && name != "RenewAck" {
			n += k
		}
	}
	return float64(n) / float64(max(r.Placements, 1))
}

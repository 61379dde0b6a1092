package engine

import (
	"fmt"
	"time"
)

// Queue holds events of type E and gives them out by time, those of one time in
// the order of Push. The zero value is empty and ready.
//
// It is a 4-ary heap of values: no allocation per event, and half the depth of a
// binary heap with the four children side by side in memory. Keep E small (16
// bytes is a good size); what is large belongs into a slice of the world, with
// its index in the event.
type Queue[E any] struct {
	heap   []entry[E]
	now    time.Duration
	pushed uint64
	popped uint64
}

type entry[E any] struct {
	at  time.Duration
	seq uint64
	ev  E
}

func (a *entry[E]) before(b *entry[E]) bool {
	return a.at < b.at || a.at == b.at && a.seq < b.seq
}

// Now is the time of the event that was popped last, 0 before the first.
func (q *Queue[E]) Now() time.Duration { return q.now }

// Events is how many events were popped.
func (q *Queue[E]) Events() uint64 { return q.popped }

// Len is how many events wait.
func (q *Queue[E]) Len() int { return len(q.heap) }

// Grow makes room for n more events.
func (q *Queue[E]) Grow(n int) {
	if need := len(q.heap) + n; need > cap(q.heap) {
		heap := make([]entry[E], len(q.heap), need)
		copy(heap, q.heap)
		q.heap = heap
	}
}

// Push adds an event at the given time. A time before Now is a mistake of the
// world (an effect ahead of its cause) and panics.
func (q *Queue[E]) Push(at time.Duration, ev E) {
	if at < q.now {
		panic(fmt.Sprintf("engine: an event for %v is pushed at %v, which is later", at, q.now))
	}
	e := entry[E]{at: at, seq: q.pushed, ev: ev}
	q.pushed++
	q.heap = append(q.heap, e)
	h := q.heap
	i := len(h) - 1
	for i > 0 {
		parent := (i - 1) >> 2
		if !e.before(&h[parent]) {
			break
		}
		h[i] = h[parent]
		i = parent
	}
	h[i] = e
}

// Pop takes the next event out and makes its time Now; false when none is left.
func (q *Queue[E]) Pop() (at time.Duration, ev E, ok bool) {
	h := q.heap
	n := len(h) - 1
	if n < 0 {
		return q.now, ev, false
	}
	top := h[0]
	last := h[n]
	h[n] = entry[E]{} // an E with pointers must not keep them alive
	h = h[:n]
	q.heap = h
	if n > 0 {
		sink(h, &last)
	}
	q.now = top.at
	q.popped++
	return top.at, top.ev, true
}

// sink puts e into the hole at the root of h.
func sink[E any](h []entry[E], e *entry[E]) {
	i := 0
	for {
		child := i<<2 + 1
		if child >= len(h) {
			break
		}
		least := child
		for c := child + 1; c < min(child+4, len(h)); c++ {
			if h[c].before(&h[least]) {
				least = c
			}
		}
		if !h[least].before(e) {
			break
		}
		h[i] = h[least]
		i = least
	}
	h[i] = *e
}

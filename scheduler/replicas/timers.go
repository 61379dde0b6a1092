package replicas

import "time"

// timer is one thing that is due at a time. A timer is in at most one heap.
type timer struct {
	at  time.Duration
	seq uint64 // order of those due together
	pos int    // index in the heap + 1; 0 = not in
	c   *call  // its queue deadline, or
	s   *slot  // its call's timeout, or how long it may take to stop
}

type timers struct {
	heap []*timer
	seq  uint64
}

func (h *timers) less(i, j int) bool {
	a, b := h.heap[i], h.heap[j]
	return a.at < b.at || a.at == b.at && a.seq < b.seq
}

func (h *timers) swap(i, j int) {
	h.heap[i], h.heap[j] = h.heap[j], h.heap[i]
	h.heap[i].pos, h.heap[j].pos = i+1, j+1
}

func (h *timers) fix(i int) {
	for i > 0 && h.less(i, (i-1)/2) {
		h.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
	for {
		small := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(h.heap); c++ {
			if h.less(c, small) {
				small = c
			}
		}
		if small == i {
			return
		}
		h.swap(i, small)
		i = small
	}
}

// set starts a timer, or moves it.
func (h *timers) set(t *timer, at time.Duration) {
	h.seq++
	t.at, t.seq = at, h.seq
	if t.pos == 0 {
		h.heap = append(h.heap, t)
		t.pos = len(h.heap)
	}
	h.fix(t.pos - 1)
}

// stop takes a timer out; one that is not in stays so.
func (h *timers) stop(t *timer) {
	if t.pos == 0 {
		return
	}
	i, last := t.pos-1, len(h.heap)-1
	h.swap(i, last)
	h.heap[last] = nil
	h.heap = h.heap[:last]
	t.pos = 0
	if i < last {
		h.fix(i)
	}
}

package market

import "time"

// wakeHeap is a binary heap of offers by wake time, then submission.
type wakeHeap []wakeEntry

type wakeEntry struct {
	at    time.Duration
	seq   uint64
	offer *offer
}

func (h wakeHeap) less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}

func (h wakeHeap) swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].offer.heapAt, h[j].offer.heapAt = i, j
}

func (h wakeHeap) up(i int) {
	for i > 0 && h.less(i, (i-1)/2) {
		h.swap(i, (i-1)/2)
		i = (i - 1) / 2
	}
}

func (h wakeHeap) down(i int) {
	for {
		small := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(h); c++ {
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

// setWake moves an offer's timer; 0 stops it. One that is moved to later, as by
// every renewal of a lease, keeps its place until that comes up: a Tick too many
// costs less than sorting it in each time.
func (o *Owner) setWake(x *offer, at time.Duration) {
	x.due = at
	switch {
	case at == 0 && x.heapAt < 0:
	case at == 0:
		i, last := x.heapAt, len(o.wakes)-1
		o.wakes.swap(i, last)
		o.wakes[last] = wakeEntry{}
		o.wakes = o.wakes[:last]
		x.heapAt = -1
		if i < last {
			o.wakes.up(i)
			o.wakes.down(i)
		}
	case x.heapAt < 0:
		x.heapAt = len(o.wakes)
		o.wakes = append(o.wakes, wakeEntry{at, x.seq, x})
		o.wakes.up(x.heapAt)
	case at < o.wakes[x.heapAt].at:
		o.wakes[x.heapAt].at = at
		o.wakes.up(x.heapAt)
	}
}

package market

import "time"

// wakeHeap is a binary heap of offers by wake time, then submission.
type wakeHeap []*offer

func (h wakeHeap) less(i, j int) bool {
	return h[i].wake < h[j].wake || h[i].wake == h[j].wake && h[i].seq < h[j].seq
}

func (h wakeHeap) swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].heapAt, h[j].heapAt = i, j
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

// setWake moves an offer's timer; 0 stops it.
func (o *Owner) setWake(x *offer, at time.Duration) {
	x.wake = at
	switch {
	case at == 0 && x.heapAt < 0:
	case at == 0:
		i, last := x.heapAt, len(o.wakes)-1
		o.wakes.swap(i, last)
		o.wakes[last] = nil
		o.wakes = o.wakes[:last]
		x.heapAt = -1
		if i < last {
			o.wakes.up(i)
			o.wakes.down(i)
		}
	case x.heapAt < 0:
		x.heapAt = len(o.wakes)
		o.wakes = append(o.wakes, x)
		o.wakes.up(x.heapAt)
	default:
		i := x.heapAt
		o.wakes.up(i)
		o.wakes.down(x.heapAt)
	}
}

package mesh

import "math/bits"

// wheel holds events by the tick in which they happen: two rings of buckets, one
// of single ticks and one of blocks of ticks, and a list for what is beyond. A
// push and a pop cost the same whatever the number of events, and the events of
// one tick lie side by side. Within a tick the caller sorts.
type wheel struct {
	tick  int64 // nanoseconds
	at    int64 // the tick being handled
	near  [wheelSize]bucket
	later [wheelSize]bucket
	full  [2][wheelSize / 64]uint64 // which buckets of near and later hold something
	far   []event
	spare [][]event // emptied buckets
	count int
}

type bucket []event

const (
	wheelBits = 12
	wheelSize = 1 << wheelBits
	wheelMask = wheelSize - 1
)

// push takes an event of a tick after the one being handled.
func (w *wheel) push(e *event) {
	t := e.at / w.tick
	w.count++
	switch {
	case t>>wheelBits == w.at>>wheelBits:
		w.add(0, &w.near[t&wheelMask], t&wheelMask, e)
	case t>>wheelBits-w.at>>wheelBits < wheelSize:
		w.add(1, &w.later[t>>wheelBits&wheelMask], t>>wheelBits&wheelMask, e)
	default:
		w.far = append(w.far, *e)
	}
}

func (w *wheel) add(ring int, b *bucket, i int64, e *event) {
	if *b == nil {
		w.full[ring][i/64] |= 1 << (i % 64)
		if last := len(w.spare) - 1; last >= 0 {
			*b, w.spare = w.spare[last], w.spare[:last]
		}
	}
	*b = append(*b, *e)
}

// next is the first tick after the one being handled that may have events; ok
// is false when none is left. What lies in a later block counts as its first tick.
func (w *wheel) next() (tick int64, ok bool) {
	if i, ok := nextBit(&w.full[0], w.at&wheelMask+1); ok {
		return w.at&^wheelMask | i, true
	}
	block := w.at >> wheelBits
	if i, ok := nextBit(&w.full[1], block&wheelMask+1); ok {
		return (block&^wheelMask | i) << wheelBits, true
	}
	if i, ok := nextBit(&w.full[1], 0); ok {
		return (block&^wheelMask + wheelSize | i) << wheelBits, true
	}
	if len(w.far) == 0 {
		return 0, false
	}
	first := w.far[0].at
	for i := range w.far {
		first = min(first, w.far[i].at)
	}
	return first / w.tick >> wheelBits << wheelBits, true
}

func nextBit(set *[wheelSize / 64]uint64, from int64) (int64, bool) {
	for i := from / 64; i < wheelSize/64; i++ {
		x := set[i]
		if i == from/64 {
			x &= ^uint64(0) << (from % 64)
		}
		if x != 0 {
			return i*64 + int64(bits.TrailingZeros64(x)), true
		}
	}
	return 0, false
}

// advance moves on to a tick, which must not be beyond next, and gives its
// events, to be handed back to recycle.
func (w *wheel) advance(tick int64) []event {
	crossed := tick>>wheelBits != w.at>>wheelBits
	w.at = tick
	if crossed {
		// Whoever is no longer beyond the rings, then whoever is in this block.
		kept := w.far[:0]
		for i := range w.far {
			if e := w.far[i]; e.at/w.tick>>wheelBits-tick>>wheelBits < wheelSize {
				w.count--
				w.push(&e)
			} else {
				kept = append(kept, e)
			}
		}
		clear(w.far[len(kept):])
		w.far = kept
		i := tick >> wheelBits & wheelMask
		if b := w.later[i]; b != nil {
			w.later[i] = nil
			w.full[1][i/64] &^= 1 << (i % 64)
			w.count -= len(b)
			for j := range b {
				w.push(&b[j])
			}
			w.recycle(b)
		}
	}
	i := tick & wheelMask
	b := w.near[i]
	w.near[i] = nil
	w.full[0][i/64] &^= 1 << (i % 64)
	w.count -= len(b)
	return b
}

// recycle takes the memory of a bucket back.
func (w *wheel) recycle(b []event) {
	if cap(b) > 0 {
		clear(b)
		w.spare = append(w.spare, b[:0])
	}
}

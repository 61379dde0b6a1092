package mesh

import (
	"slices"
	"testing"

	"github.com/beammesh/beammesh/simulations/engine"
)

// The law: every event comes out in its tick, and ticks come in order.
func TestWheelIsASortedList(t *testing.T) {
	for seed := range uint64(60) {
		r := engine.Stream(seed, "wheel", 0)
		w := wheel{tick: 10}
		var model []int64
		spans := []int{20, 1000, 100_000, 100_000_000, 3_000_000_000}
		for i := range 400 {
			for range r.IntN(4) {
				at := (w.at+1)*w.tick + int64(r.IntN(spans[r.IntN(len(spans))]))
				w.push(&event{at: at, seq: uint32(i)})
				model = append(model, at)
			}
			tick, ok := w.next()
			if ok != (len(model) > 0) || w.count != len(model) {
				t.Fatalf("seed %d: next says %v with %d events, counted %d", seed, ok, len(model), w.count)
			}
			if !ok {
				continue
			}
			slices.Sort(model)
			if first := model[0] / w.tick; tick > first {
				t.Fatalf("seed %d: next is %d, but an event is due at %d", seed, tick, first)
			}
			got := w.advance(tick)
			n := 0
			for n < len(model) && model[n]/w.tick == tick {
				n++
			}
			if len(got) != n {
				t.Fatalf("seed %d, tick %d: got %d events, want %d", seed, tick, len(got), n)
			}
			for _, e := range got {
				if e.at/w.tick != tick {
					t.Fatalf("seed %d: an event of %d came at %d", seed, e.at/w.tick, tick)
				}
			}
			model = model[n:]
			w.recycle(got)
		}
	}
}

func TestTimesAreNearTheTruth(t *testing.T) {
	var h Times
	var all []int64
	r := engine.Stream(1, "times", 0)
	for range 5000 {
		d := int64(r.Uint64() >> (4 + r.IntN(59)))
		h.add(d)
		all = append(all, d)
	}
	slices.Sort(all)
	for _, permille := range []int64{1, 500, 900, 990, 1000} {
		want := all[(int64(len(all))*permille+999)/1000-1]
		if got := int64(h.Quantile(permille)); got < want || got > want+want/16+1 {
			t.Errorf("%d permille: got %d, want %d to a sixteenth above", permille, got, want)
		}
	}
	if (&Times{}).Quantile(500) != 0 {
		t.Error("nothing has a median")
	}
}

package queue

import (
	"slices"
	"testing"
	"time"

	"github.com/beammesh/beammesh/simulations/engine"
)

// Quantiles are those of the sorted values, to a thousandth.
func TestQuantiles(t *testing.T) {
	r := engine.Stream(1, "latencies", 0)
	for range 50 {
		var l latencies
		var all []time.Duration
		median := time.Duration(1) << r.IntN(45)
		for range 1 + r.IntN(2000) {
			d := r.LogNormal(median, 2000)
			l.add(d)
			all = append(all, d)
		}
		slices.Sort(all)
		for _, permille := range []int64{0, 1, 500, 990, 1000} {
			want := all[min(int64(len(all))*permille/1000, int64(len(all))-1)]
			if got := l.quantile(permille); got > want || got < want-want/1024 {
				t.Fatalf("%d per mille of %d values: got %v, want %v", permille, len(all), got, want)
			}
		}
	}
	var none latencies
	if d := none.quantile(500); d != 0 {
		t.Errorf("the median of nothing is %v", d)
	}
}

func TestFIFOIsASlice(t *testing.T) {
	r := engine.Stream(2, "fifo", 0)
	var f fifo
	var model []int32
	for i := range int32(100_000) {
		switch n := r.IntN(20); {
		case n < 10:
			f.push(i)
			model = append(model, i)
		case n == 10:
			f.pushFirst(i)
			model = slices.Insert(model, 0, i)
		case n < 18 && len(model) > 0:
			if got := f.peek(); got != model[0] {
				t.Fatalf("peek gives %d, want %d", got, model[0])
			}
			if got := f.pop(); got != model[0] {
				t.Fatalf("pop gives %d, want %d", got, model[0])
			}
			model = model[1:]
		case n == 18 && len(model) > 0:
			if got := f.popLast(); got != model[len(model)-1] {
				t.Fatalf("popLast gives %d, want %d", got, model[len(model)-1])
			}
			model = model[:len(model)-1]
		}
		if f.len() != len(model) {
			t.Fatalf("%d wait, want %d", f.len(), len(model))
		}
	}
	if got := f.take(); !slices.Equal(got, model) || f.len() != 0 {
		t.Error("take gives something else")
	}
}

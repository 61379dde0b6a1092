package engine_test

import (
	"container/heap"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/beammesh/beammesh/simulations/engine"
)

// The law: events come out sorted by time, those of one time in the order of
// their Push, whatever the mix of Push and Pop. The model is a sorted slice.
func TestQueueIsASortedSlice(t *testing.T) {
	type item struct {
		at time.Duration
		id int
	}
	for seed := range uint64(200) {
		r := engine.Stream(seed, "queue", 0)
		var q engine.Queue[int]
		var model []item
		span := 1 + r.IntN(50) // small spans give many equal times
		for id := range 600 {
			if r.IntN(5) < 3 {
				at := q.Now() + time.Duration(r.IntN(span))
				q.Push(at, id)
				i, _ := slices.BinarySearchFunc(model, at, func(m item, at time.Duration) int {
					if m.at <= at {
						return -1
					}
					return 1
				})
				model = slices.Insert(model, i, item{at, id})
				continue
			}
			at, got, ok := q.Pop()
			if ok != (len(model) > 0) {
				t.Fatalf("seed %d: Pop gives %v with %d waiting", seed, ok, len(model))
			}
			if ok {
				if want := model[0]; at != want.at || got != want.id {
					t.Fatalf("seed %d: got %d at %v, want %d at %v", seed, got, at, want.id, want.at)
				}
				model = model[1:]
			}
		}
		if q.Len() != len(model) {
			t.Fatalf("seed %d: %d wait, want %d", seed, q.Len(), len(model))
		}
	}
}

func TestPushIntoThePastPanics(t *testing.T) {
	var q engine.Queue[int]
	q.Push(2, 0)
	q.Pop()
	defer func() {
		if recover() == nil {
			t.Error("an event ahead of its cause was taken")
		}
	}()
	q.Push(1, 0)
}

func TestQueueDoesNotAllocatePerEvent(t *testing.T) {
	var q engine.Queue[[2]int32]
	q.Grow(1000)
	if n := testing.AllocsPerRun(10, func() {
		for i := range 1000 {
			q.Push(q.Now()+time.Duration(i%7), [2]int32{})
		}
		for range 1000 {
			q.Pop()
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

type stdEvent struct {
	at  time.Duration
	seq uint64
	_   [2]int32 // as large as a real event
}

type stdHeap []*stdEvent

func (h stdHeap) Len() int { return len(h) }
func (h stdHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h stdHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *stdHeap) Push(x any)   { *h = append(*h, x.(*stdEvent)) }
func (h *stdHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// One iteration takes an event out and puts one in, with so many waiting.
func BenchmarkQueue(b *testing.B) {
	for _, pending := range []int{1_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("engine/pending=%d", pending), func(b *testing.B) {
			r := engine.Stream(1, "bench", 0)
			var q engine.Queue[[2]int32]
			q.Grow(pending)
			for range pending {
				q.Push(r.Uniform(time.Second), [2]int32{})
			}
			b.ReportAllocs()
			for b.Loop() {
				at, e, _ := q.Pop()
				q.Push(at+r.Uniform(time.Second), e)
			}
		})
		b.Run(fmt.Sprintf("container-heap/pending=%d", pending), func(b *testing.B) {
			r := engine.Stream(1, "bench", 0)
			var h stdHeap
			seq := uint64(0)
			push := func(at time.Duration) {
				seq++
				heap.Push(&h, &stdEvent{at: at, seq: seq})
			}
			for range pending {
				push(r.Uniform(time.Second))
			}
			b.ReportAllocs()
			for b.Loop() {
				e := heap.Pop(&h).(*stdEvent)
				push(e.at + r.Uniform(time.Second))
			}
		})
	}
}

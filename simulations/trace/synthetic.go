package trace

import (
	"fmt"
	"iter"
	"math/bits"
	"math/rand/v2"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
)

// Synthetic makes up work, the same for the same fields on every machine: all of
// it is whole-number arithmetic.
//
// Arrivals are a Poisson process. Each task takes one of Shapes, by weight. How
// long it runs is heavy-tailed, as in every trace that we know: Pareto with
// exponent 1 from Shortest on, cut at Longest. Half of the tasks then take at
// most twice Shortest, and the mean is Shortest * (1 + ln(Longest/Shortest)).
type Synthetic struct {
	Seed uint64
	// Every is the mean time between two arrivals; 0 = one second.
	Every time.Duration
	// Shapes are what tasks ask for, by weight; nil = DefaultShapes.
	Shapes []scheduler.Weighted
	// Shortest and Longest bound the durations; 0 = a minute, and a week.
	Shortest, Longest time.Duration
}

// DefaultShapes is a mix of many small and few large tasks: of a hundred, 15
// without a GPU, 40 on a part of one, 33 on one, 12 on several.
func DefaultShapes() []scheduler.Weighted {
	shape := func(weight, cores, gib int64, gpus int, milli int64) scheduler.Weighted {
		d := scheduler.Demand{CPUMillis: cores * 1000, MemoryMiB: gib << 10}
		if gpus > 0 {
			d.GPUs, d.GPUMilli = []gpu.Want{{Class: gpu.Any, Count: gpus}}, milli
		}
		return scheduler.Weighted{Demand: d, Weight: weight}
	}
	return []scheduler.Weighted{
		shape(6, 2, 4, 0, 0), shape(5, 8, 16, 0, 0), shape(4, 16, 64, 0, 0),
		shape(12, 2, 8, 1, 200), shape(8, 4, 8, 1, 300), shape(14, 6, 16, 1, 500), shape(6, 8, 24, 1, 800),
		shape(14, 8, 32, 1, 1000), shape(12, 12, 48, 1, 1000), shape(7, 4, 16, 1, 1000),
		shape(5, 16, 96, 2, 1000), shape(4, 32, 192, 4, 1000), shape(3, 88, 384, 8, 1000),
	}
}

// Tasks gives the tasks in the order of their arrival, without an end: the
// caller stops when it has enough.
func (s Synthetic) Tasks() iter.Seq[Task] {
	every, shortest, longest := s.Every, s.Shortest, s.Longest
	if every <= 0 {
		every = time.Second
	}
	if shortest <= 0 {
		shortest = time.Minute
	}
	if longest < shortest {
		longest = max(shortest, 7*24*time.Hour)
	}
	shapes := s.Shapes
	if shapes == nil {
		shapes = DefaultShapes()
	}
	return func(yield func(Task) bool) {
		draw := rand.NewPCG(s.Seed, 0x7461736b73) // "tasks"
		var now time.Duration
		for i := 0; ; i++ {
			now += exponential(draw, every)
			t := Task{
				Name:     fmt.Sprintf("task-%d", i),
				Timed:    true,
				Arrival:  now,
				Demand:   shapes[pick(draw, len(shapes), func(i int) int64 { return shapes[i].Weight })].Demand,
				Duration: pareto(draw, shortest, longest),
			}
			if !yield(t) {
				return
			}
		}
	}
}

// nodeKinds are what SyntheticNodes draws from: of a hundred machines 20 have
// eight GPUs, 15 four, 25 two, 30 one and 10 none.
var nodeKinds = [...]struct {
	weight int64
	node   Node
}{
	{8, Node{CPUMillis: 128_000, MemoryMiB: 1 << 20, GPUs: 8, Class: "H100"}},
	{12, Node{CPUMillis: 96_000, MemoryMiB: 512 << 10, GPUs: 8, Class: "A100-80"}},
	{15, Node{CPUMillis: 64_000, MemoryMiB: 256 << 10, GPUs: 4, Class: "A10"}},
	{25, Node{CPUMillis: 32_000, MemoryMiB: 128 << 10, GPUs: 2, Class: "RTX4090"}},
	{30, Node{CPUMillis: 16_000, MemoryMiB: 64 << 10, GPUs: 1, Class: "RTX3090"}},
	{10, Node{CPUMillis: 64_000, MemoryMiB: 256 << 10}},
}

// SyntheticNodes makes up machines, from eight data centre GPUs down to none,
// without an end: the caller stops when it has enough.
func SyntheticNodes(seed uint64) iter.Seq[Node] {
	return func(yield func(Node) bool) {
		draw := rand.NewPCG(seed, 0x6e6f646573) // "nodes"
		for i := 0; ; i++ {
			n := nodeKinds[pick(draw, len(nodeKinds), func(i int) int64 { return nodeKinds[i].weight })].node
			n.Name = fmt.Sprintf("node-%06d", i)
			if !yield(n) {
				return
			}
		}
	}
}

// below draws a number from 0 to n-1. Its bias is below n / 2^64.
func below(draw *rand.PCG, n uint64) uint64 {
	high, _ := bits.Mul64(draw.Uint64(), n)
	return high
}

// pick draws one of n by weight.
func pick(draw *rand.PCG, n int, weight func(int) int64) int {
	var sum int64
	for i := range n {
		sum += max(0, weight(i))
	}
	at := int64(below(draw, uint64(max(1, sum))))
	for i := range n {
		if at -= max(0, weight(i)); at < 0 {
			return i
		}
	}
	return 0
}

// exponential draws a time with that mean: -mean * ln(u).
func exponential(draw *rand.PCG, mean time.Duration) time.Duration {
	// ln 2 in units of 2^-32, and the same unit for the logarithm.
	const ln2 = 2_977_044_472
	high, low := bits.Mul64(negLog2(draw.Uint64()|1), ln2) // < 2^70
	nats := high<<32 | low>>32                             // of 2^-32
	high, low = bits.Mul64(nats, uint64(mean))
	if high >= 1<<31 {
		return 1<<63 - 1
	}
	return time.Duration(high<<32 | low>>32)
}

// negLog2 is -log2(u / 2^64) in units of 2^-32, for u > 0. Each squaring of the
// mantissa, kept in [1, 2), gives the next bit of the logarithm.
func negLog2(u uint64) uint64 {
	shift := bits.LeadingZeros64(u)
	m := u << shift // mantissa in units of 2^-63
	var fraction uint64
	for range 32 {
		high, low := bits.Mul64(m, m) // in units of 2^-126, from 2^126 to 2^128
		fraction <<= 1
		if high >= 1<<63 {
			fraction |= 1
			m = high
		} else {
			m = high<<1 | low>>63
		}
	}
	return uint64(shift+1)<<32 - fraction
}

// pareto draws a time of exponent 1 from shortest on: shortest / u, cut.
func pareto(draw *rand.PCG, shortest, longest time.Duration) time.Duration {
	u := draw.Uint64()>>32 + 1 // 1 to 2^32
	high, low := bits.Mul64(uint64(shortest), 1<<32)
	if high >= u {
		return longest // beyond 64 bits
	}
	q, _ := bits.Div64(high, low, u)
	return time.Duration(min(q, uint64(longest)))
}

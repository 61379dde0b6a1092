package engine

import (
	"math/bits"
	"math/rand/v2"
	"time"
)

// Rand is a stream of random numbers. Copying it copies its position. The zero
// value is not seeded: streams come from Stream.
type Rand struct{ pcg rand.PCG }

// Stream is the stream of a seed, a name and a number. Different names or
// numbers give independent streams: a world gives each actor its own, so that
// one more draw by one does not move all the others.
func Stream(seed uint64, name string, number uint64) Rand {
	// FNV-1a of the name, then two rounds of SplitMix64's finisher (Steele, Lea,
	// Flood, OOPSLA'14) with the seed and the number.
	h := uint64(0xcbf29ce484222325)
	for i := 0; i < len(name); i++ {
		h = (h ^ uint64(name[i])) * 0x100000001b3
	}
	a := mix(mix(h^mix(seed)) + number)
	var r Rand
	r.pcg.Seed(a, mix(a))
	return r
}

func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Uint64 is uniform over all values.
func (r *Rand) Uint64() uint64 { return r.pcg.Uint64() }

// IntN is uniform in [0, n). It panics when n <= 0.
func (r *Rand) IntN(n int) int {
	if n <= 0 {
		panic("engine: IntN of nothing to choose from")
	}
	// Lemire's multiplication (TOMACS 2019), the biased part rejected.
	hi, lo := bits.Mul64(r.Uint64(), uint64(n))
	if lo < uint64(n) {
		reject := -uint64(n) % uint64(n)
		for lo < reject {
			hi, lo = bits.Mul64(r.Uint64(), uint64(n))
		}
	}
	return int(hi)
}

// Chance is true in ppm of a million cases.
func (r *Rand) Chance(ppm int) bool { return r.IntN(1_000_000) < ppm }

// Shuffle permutes n things, each order equally likely.
func (r *Rand) Shuffle(n int, swap func(i, j int)) {
	for i := n - 1; i > 0; i-- {
		swap(i, r.IntN(i+1))
	}
}

// Uniform is uniform in [0, d); 0 when d <= 0.
func (r *Rand) Uniform(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(r.IntN(int(d)))
}

// Exp is exponential with the given mean, which is <= 100 years. It is
// algorithm S of Knuth, The Art of Computer Programming 3.4.1 C: exact but for
// the rounding to a nanosecond, with integers only.
func (r *Rand) Exp(mean time.Duration) time.Duration {
	return clampMul(r.exp32(), mean)
}

// LogNormal is median times e to the power of a normal deviate with standard
// deviation sigmaMilli/1000. Its mean is median*e^(sigma^2/2).
func (r *Rand) LogNormal(median time.Duration, sigmaMilli int) time.Duration {
	x := r.normal32() * int64(sigmaMilli) / 1000 // natural logarithm, 32 fraction bits
	// To base 2, so that the whole part is a shift.
	neg := x < 0
	if neg {
		x = -x
	}
	hi, lo := bits.Mul64(uint64(x), log2e)
	y := int64(hi<<2 | lo>>62)
	if neg {
		y = -y
	}
	whole := y >> 32 // rounds down
	if whole > 62 {
		return maxDuration
	}
	if whole < -62 {
		return 0
	}
	f := exp2(uint32(y)) // in [1, 2) with 62 fraction bits
	hi, lo = bits.Mul64(f, uint64(max(median, 0)))
	shift := 62 - whole
	if shift >= 64 {
		hi, lo, shift = 0, hi, shift-64
	}
	if hi>>shift != 0 {
		return maxDuration
	}
	return time.Duration(min(hi<<(64-shift)|lo>>shift, uint64(maxDuration)))
}

// maxDuration is the most that a random duration may be: sums with the time of a
// run (below 100 years) do not overflow.
const maxDuration = time.Duration(1 << 61)

// clampMul is x*d for an x with 32 fraction bits.
func clampMul(x uint64, d time.Duration) time.Duration {
	hi, lo := bits.Mul64(x, uint64(max(d, 0)))
	if hi >= 1<<29 {
		return maxDuration
	}
	return time.Duration(hi<<32 | lo>>32)
}

// exp32 is exponential with mean 1, with 32 fraction bits.
func (r *Rand) exp32() uint64 {
	u := r.Uint64()
	j := bits.LeadingZeros64(u) // each more with half the chance
	if j == 64 {
		j += bits.LeadingZeros64(r.Uint64() | 1)
	}
	u = r.Uint64()
	if u >= expQ[0] {
		least := min(r.Uint64(), r.Uint64())
		for k := 1; k < len(expQ) && u >= expQ[k]; k++ {
			least = min(least, r.Uint64())
		}
		hi, _ := bits.Mul64(least, expQ[0])
		u = hi
	}
	// j*ln2 + u; u has 64 fraction bits. When u < ln2 at once it is the rest
	// itself, else it became V*ln2.
	hi, lo := bits.Mul64(uint64(j), expQ[0])
	return (hi<<32 | lo>>32) + u>>32
}

// normal32 is a standard normal deviate with 32 fraction bits: Kahn's rejection
// from two exponentials (von Neumann 1951; Knuth 3.4.1 C), integers only.
func (r *Rand) normal32() int64 {
	for {
		x, y := r.exp32(), r.exp32()
		d := int64(x) - 1<<32
		if d < 0 {
			d = -d
		}
		// Accept when y >= (x-1)^2/2, 64 fraction bits on the right.
		hi, lo := bits.Mul64(uint64(d), uint64(d))
		if hi>>32 != 0 || y < hi<<31|lo>>33 {
			continue
		}
		if r.Uint64()&1 == 1 {
			return -int64(x)
		}
		return int64(x)
	}
}

// exp2 is 2 to the power of f/2^32 with 62 fraction bits, to about 34 bits.
func exp2(f uint32) uint64 {
	y := uint64(1) << 62
	for i := range exp2Table {
		if f>>(31-i)&1 == 1 {
			hi, lo := bits.Mul64(y, exp2Table[i])
			y = hi<<2 | lo>>62
		}
	}
	// What is left is below 2^-16: 2^x = 1 + x*ln2.
	hi, _ := bits.Mul64(uint64(f&0xffff)<<32, expQ[0])
	hi, _ = bits.Mul64(y, hi)
	return y + hi
}

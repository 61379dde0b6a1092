package replay

import (
	"slices"
	"time"

	"github.com/beammesh/beammesh/simulations/engine"
)

// Delay is a distribution: quantiles at even distances from the least to the
// greatest. One value is a constant.
type Delay []time.Duration

// maxQuantiles of a Delay; more measurements than that are thinned out.
const maxQuantiles = 65

// Always is the delay that never changes.
func Always(d time.Duration) Delay { return Delay{d} }

// delayOf is the distribution of measurements; nil without any.
func delayOf(samples []time.Duration) Delay {
	slices.Sort(samples)
	n := min(len(samples), maxQuantiles)
	d := make(Delay, n)
	for i := range d {
		d[i] = samples[i*(len(samples)-1)/max(1, n-1)]
	}
	return d
}

// Median of the distribution.
func (d Delay) Median() time.Duration {
	if len(d) == 0 {
		return 0
	}
	return (d[(len(d)-1)/2] + d[len(d)/2]) / 2
}

// luck says where in a Delay something falls: 0 is the least, luckParts-1 just
// below the greatest.
type luck int

const luckParts = 1 << 20

func newLuck(r *engine.Rand) luck { return luck(r.IntN(luckParts)) }

// at is the value at l, even between two quantiles.
func (d Delay) at(l luck) time.Duration {
	if len(d) < 2 {
		return d.Median()
	}
	u := int(l) * (len(d) - 1)
	i, part := u/luckParts, time.Duration(u%luckParts)
	return d[i] + (d[i+1]-d[i])*part/luckParts
}

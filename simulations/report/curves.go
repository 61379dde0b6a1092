package report

import (
	"math"
	"slices"
	"sort"

	"github.com/beammesh/beammesh/simulations/results"
)

// gridPoints is how many places a mean curve has when its runs have no common
// ones: a point every three units of the picture.
const gridPoints = 180

// maxDecades is the longest stretch that a distribution is drawn over.
const maxDecades = 1e4

// curve is one series of one run.
type curve struct{ x, y []float64 }

// meanCurve gives the mean of curves and its standard deviation at common
// places. Where all runs have the same x these are used; else they are spread
// evenly (by their logarithm on a log axis) over the stretch that all curves
// have, or, when every curve rises to the same end as distributions do, over the
// stretch that any has.
func meanCurve(curves []curve) (x, mean, sd []float64) {
	for i := range curves {
		curves[i] = sorted(curves[i])
	}
	curves = slices.DeleteFunc(curves, func(c curve) bool { return len(c.x) == 0 })
	if len(curves) == 0 {
		return nil, nil, nil
	}
	x = places(curves)
	mean, sd = make([]float64, len(x)), make([]float64, len(x))
	at := make([]float64, len(curves))
	same := sameX(curves)
	for i := range x {
		for j, c := range curves {
			if same {
				at[j] = c.y[i]
			} else {
				at[j] = c.value(x[i])
			}
		}
		mean[i], sd[i] = results.MeanSD(at)
	}
	return x, mean, sd
}

// sorted orders a curve by x. Points of equal x keep their order: they are steps.
func sorted(c curve) curve {
	if slices.IsSorted(c.x) {
		return c
	}
	order := make([]int, len(c.x))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(i, j int) bool { return c.x[order[i]] < c.x[order[j]] })
	out := curve{x: make([]float64, len(order)), y: make([]float64, len(order))}
	for i, j := range order {
		out.x[i], out.y[i] = c.x[j], c.y[j]
	}
	return out
}

func sameX(curves []curve) bool {
	return !slices.ContainsFunc(curves, func(c curve) bool { return !slices.Equal(c.x, curves[0].x) })
}

func places(curves []curve) []float64 {
	if sameX(curves) {
		return curves[0].x
	}
	first, last := func(c curve) float64 { return c.x[0] }, func(c curve) float64 { return c.x[len(c.x)-1] }
	low, high := extreme(curves, first, math.Max), extreme(curves, last, math.Min)
	if rising(curves) || low >= high {
		low, high = extreme(curves, first, math.Min), extreme(curves, last, math.Max)
		if low >= 0 {
			// Distributions of times are read over decades, and a few that are
			// nearly 0 would take up all of those.
			low = max(low, high/maxDecades)
		}
	}
	out := make([]float64, gridPoints)
	for i := range out {
		share := float64(i) / (gridPoints - 1)
		if low > 0 && high/low >= 100 { // as Plot chooses
			out[i] = math.Exp(math.Log(low) + share*(math.Log(high)-math.Log(low)))
		} else {
			out[i] = low + share*(high-low)
		}
	}
	out[gridPoints-1] = high
	return out
}

func extreme(curves []curve, of func(curve) float64, pick func(a, b float64) float64) float64 {
	v := of(curves[0])
	for _, c := range curves[1:] {
		v = pick(v, of(c))
	}
	return v
}

// rising tells distributions: no curve falls and all end at one height.
func rising(curves []curve) bool {
	end := curves[0].y[len(curves[0].y)-1]
	return !slices.ContainsFunc(curves, func(c curve) bool {
		return !slices.IsSorted(c.y) || math.Abs(c.y[len(c.y)-1]-end) > 1e-9*(1+math.Abs(end))
	})
}

// clamp holds the band within what the curves reach.
func (l *Line) clamp(curves []curve) {
	low := extreme(curves, func(c curve) float64 { return c.y[0] }, math.Min)
	high := extreme(curves, func(c curve) float64 { return c.y[len(c.y)-1] }, math.Max)
	for i := range l.X {
		l.Low[i], l.High[i] = max(l.Low[i], low), min(l.High[i], high)
	}
}

// value is the curve at x, straight between its points and flat outside.
func (c curve) value(x float64) float64 {
	i := sort.SearchFloat64s(c.x, x) // the first point that is not left of x
	switch {
	case i == 0:
		return c.y[0]
	case i == len(c.x):
		return c.y[len(c.y)-1]
	}
	x0, x1 := c.x[i-1], c.x[i]
	return c.y[i-1] + (c.y[i]-c.y[i-1])*(x-x0)/(x1-x0)
}

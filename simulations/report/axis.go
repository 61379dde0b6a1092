package report

import (
	"math"
	"strconv"
	"strings"
)

// axis maps values to places on the page.
type axis struct {
	min, max float64 // of the values
	from, to float64 // of the page
	log      bool
	ticks    []float64
}

// at is the place of a value.
func (a *axis) at(v float64) float64 {
	low, high := a.min, a.max
	if a.log {
		v, low, high = math.Log10(v), math.Log10(low), math.Log10(high)
	}
	if high == low {
		return (a.from + a.to) / 2
	}
	return a.from + (v-low)/(high-low)*(a.to-a.from)
}

// newAxis chooses limits and ticks. round moves the limits out to ticks; zero
// lets the axis begin at 0 when the values come near it.
func newAxis(min, max, from, to float64, log, round, zero bool, want int) axis {
	a := axis{min: min, max: max, from: from, to: to, log: log}
	if log {
		a.logTicks()
		return a
	}
	if zero && min > 0 && min < 0.6*max {
		a.min = 0
	}
	if a.max == a.min {
		pad := math.Max(math.Abs(a.max)*0.1, 1e-9)
		if a.max == 0 {
			pad = 1
		}
		a.min, a.max = a.min-pad, a.max+pad
		if zero && min >= 0 {
			a.min = 0
		}
	}
	step := niceStep((a.max - a.min) / float64(want))
	if round {
		a.min, a.max = math.Floor(a.min/step+1e-9)*step, math.Ceil(a.max/step-1e-9)*step
	}
	for i := math.Ceil(a.min/step - 1e-9); i*step <= a.max+1e-9*step; i++ {
		a.ticks = append(a.ticks, i*step)
	}
	return a
}

// logTicks are the powers of ten, with 2 and 5 between when there are few.
func (a *axis) logTicks() {
	for e := math.Floor(math.Log10(a.min)); e <= math.Ceil(math.Log10(a.max)); e++ {
		for _, m := range []float64{1, 2, 5} {
			if m > 1 && a.max/a.min > 1000 {
				continue
			}
			if v := m * math.Pow(10, e); v >= a.min*(1-1e-9) && v <= a.max*(1+1e-9) {
				a.ticks = append(a.ticks, v)
			}
		}
	}
}

// niceStep is the next of 1, 2, 5 times a power of ten that is not below v.
func niceStep(v float64) float64 {
	p := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if v <= m*p*(1+1e-9) {
			return m * p
		}
	}
	return 10 * p
}

// tickText prints a tick: 0.5, 200, 10k, 2M.
func tickText(v float64) string {
	a, suffix := math.Abs(v), ""
	switch {
	case a >= 1e9:
		v, suffix = v/1e9, "G"
	case a >= 1e6:
		v, suffix = v/1e6, "M"
	case a >= 1e4:
		v, suffix = v/1e3, "k"
	case a < 1e-12: // what is left of a sum of steps around 0
		return "0"
	}
	s := strconv.FormatFloat(v, 'g', 6, 64)
	return strings.Replace(s, "-", "−", 1) + suffix
}

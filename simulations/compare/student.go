package compare

import "math"

// TQuantile is the value that a variable of Student's t distribution with df
// degrees of freedom (may be a fraction, > 0) stays below with probability p,
// 0 < p < 1. Good to nine digits.
func TQuantile(p, df float64) float64 {
	if p < 0.5 {
		return -TQuantile(1-p, df)
	}
	low, high := 0.0, 1.0
	for tCDF(high, df) < p && high < 1e12 {
		low, high = high, high*2
	}
	for range 200 {
		mid := low + (high-low)/2
		if mid <= low || mid >= high {
			break
		}
		if tCDF(mid, df) < p {
			low = mid
		} else {
			high = mid
		}
	}
	return high
}

// tCDF is the distribution function for t >= 0, by the regularised incomplete
// beta function (Abramowitz and Stegun, 26.7.1 and 26.5.27).
func tCDF(t, df float64) float64 {
	return 1 - 0.5*incompleteBeta(df/(df+t*t), df/2, 0.5)
}

// incompleteBeta is I_x(a, b), by its continued fraction (Abramowitz and Stegun,
// 26.5.8) on the side where that converges fast.
func incompleteBeta(x, a, b float64) float64 {
	if x <= 0 {
		return 0
	}
	if x >= 1 {
		return 1
	}
	if x > (a+1)/(a+b+2) {
		return 1 - incompleteBeta(1-x, b, a)
	}
	la, _ := math.Lgamma(a)
	lb, _ := math.Lgamma(b)
	lab, _ := math.Lgamma(a + b)
	front := math.Exp(lab - la - lb + a*math.Log(x) + b*math.Log1p(-x))
	// Numerator and denominator of the convergents, by their recurrence.
	n0, n1, d0, d1 := 0.0, 1.0, 1.0, 1.0
	last := 1.0
	for i := 1.0; i < 1000; i++ {
		for _, c := range []float64{
			-(a + i - 1) * (a + b + i - 1) * x / ((a + 2*i - 2) * (a + 2*i - 1)),
			i * (b - i) * x / ((a + 2*i - 1) * (a + 2*i)),
		} {
			n0, n1 = n1, n1+c*n0
			d0, d1 = d1, d1+c*d0
		}
		// Scaled so that they neither overflow nor vanish.
		n0, n1, d0, d1 = n0/d1, n1/d1, d0/d1, 1
		if math.Abs(n1-last) < 1e-14*math.Abs(n1) {
			break
		}
		last = n1
	}
	return front * n1 / a
}

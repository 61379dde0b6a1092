// Package compare tells whether two sets of results differ, metric by metric:
// the difference of their means with its 95 % confidence interval.
//
// Where both sets have the same seeds the difference is taken seed by seed
// (a paired t interval): runs of one seed see the same load, so what the load
// does to both cancels out. Else the interval is Welch's, for means of samples
// with different spread. Both suppose that the differences of single seeds are
// near a normal distribution; with five seeds or more the interval forgives much.
//
// Functions are pure and safe for concurrent use.
package compare

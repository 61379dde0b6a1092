//go:build race

package fill

// The race detector makes a run ten times slower, and runs share nothing.
const testSeeds = 2

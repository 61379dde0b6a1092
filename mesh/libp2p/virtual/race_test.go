//go:build race

package virtual_test

// The race detector makes hosts ten times as expensive: eight, each a neighbour
// of nearly all others.
const (
	floodNodes = 8
	wantFrames = 5.0
)

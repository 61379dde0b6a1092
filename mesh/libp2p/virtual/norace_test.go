//go:build !race

package virtual_test

const (
	floodNodes = 100
	wantFrames = 7.0
)

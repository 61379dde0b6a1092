//go:build race

package virtual_test

// The race detector makes hosts ten times as expensive: nine at most.
const (
	defaultNodes = 8
	topicNodes   = 3
)

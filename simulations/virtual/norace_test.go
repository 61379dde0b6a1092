//go:build !race

package virtual_test

const (
	defaultNodes = 24
	topicNodes   = 16
)

//go:build race

package virtual_test

// defaultNodes is few: the race detector makes hosts ten times as expensive.
const defaultNodes = 8

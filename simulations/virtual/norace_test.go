//go:build !race

package virtual_test

const defaultNodes = 24

// Package demotest tests the beginning of tools/demo.sh: what `make demo` says
// before it changes anything. Its whole run is a matter of the end-to-end tests.
package demotest

package ledgertest

import (
	"testing"

	"github.com/beammesh/beammesh/node/ledger"
)

func TestFake(t *testing.T) {
	Run(t, func(*testing.T) ledger.Ledger { return NewFake(nil) })
}

func TestFakeLinearizable(t *testing.T) { Linearizable(t, 1, NewFake(nil)) }

// A ledger that ignores IfRevision must be caught, or the check shows nothing.
func TestLinearizableCatchesLostUpdate(t *testing.T) {
	ops := []struct {
		in  casInput
		out casOutput
	}{
		{casInput{key: "w", name: "a"}, casOutput{name: "a", revision: 1}},
		{casInput{key: "w", name: "b", from: 1}, casOutput{name: "b", revision: 2}},
		{casInput{key: "w", name: "c", from: 1}, casOutput{name: "c", revision: 3}},
	}
	state := casModel.Init()
	for i, op := range ops {
		ok, next := casModel.Step(state, op.in, op.out)
		if want := i < 2; ok != want {
			t.Fatalf("step %d: accepted %v, want %v", i, ok, want)
		}
		state = next
	}
}

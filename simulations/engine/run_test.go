package engine_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/engine"
)

func TestRunStopsWhereThePolicyBreaks(t *testing.T) {
	var none []int
	cases := []struct {
		name  string
		crash func()
		want  string
	}{
		{"invariant", func() { engine.Breakf("worker %d runs two tasks", 3) }, "worker 3 runs two tasks"},
		{"panic", func() { panic("mine") }, "panic: mine (engine/run_test.go:"},
		{"runtime error", func() { none[0] = 1 }, "index out of range [0] with length 0 (engine/run_test.go:"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var q engine.Queue[int]
			for i := range 5 {
				q.Push(time.Duration(i)*time.Millisecond, i)
			}
			err := engine.Run(t.Context(), 77, &q, func(_ time.Duration, i int) {
				if i == 3 {
					c.crash()
				}
			})
			var b *simulations.BrokenError
			if !errors.As(err, &b) {
				t.Fatalf("got %v", err)
			}
			if b.Seed != 77 || b.Event != 4 || b.At != "3ms" || !strings.Contains(b.What, c.want) {
				t.Errorf("got %+v, want %q", b, c.want)
			}
		})
	}
}

func TestRunEnds(t *testing.T) {
	forever := func() *engine.Queue[int] {
		var q engine.Queue[int]
		q.Push(0, 0)
		return &q
	}
	t.Run("with the context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		q := forever()
		err := engine.Run(ctx, 1, q, func(now time.Duration, n int) {
			if n == 10 {
				cancel()
			}
			q.Push(now+1, n+1)
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("by Stop", func(t *testing.T) {
		q, why := forever(), errors.New("enough")
		err := engine.Run(t.Context(), 1, q, func(now time.Duration, n int) {
			if n == 10 {
				engine.Stop(why)
			}
			q.Push(now+1, n+1)
		})
		if err != why || q.Events() != 11 {
			t.Errorf("got %v after %d events", err, q.Events())
		}
	})
}

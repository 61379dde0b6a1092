// Package simtest has a small experiment for tests of what runs, stores and
// draws experiments: a queue with several servers, whose mean wait is known in
// closed form (Erlang's C), and policies that misbehave on cue.
package simtest

import (
	"container/heap"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/beammesh/beammesh/simulations"
)

// Queue is M/M/c: customers come and are served after exponential times. It may
// be used by several goroutines.
type Queue struct {
	// Waiting is sent to, if not nil, when a run of the policy "waits" waits.
	Waiting chan<- uint64
}

// Name is part of simulations.Experiment, as are the methods below.
func (Queue) Name() string { return "mmc" }

// Doc says what it is.
func (Queue) Doc() string { return "customers at several counters, for tests" }

// Policies: the first three serve, the others break. "panics" is caught by the
// experiment, "explodes" is not, "waits" ends with its context only, "nan" gives
// a metric that is no number.
func (Queue) Policies() []string {
	return []string{"fifo", "lifo", "random", "panics", "explodes", "waits", "nan"}
}

// Params are the world's.
func (Queue) Params() []simulations.Param {
	return []simulations.Param{
		{Name: "servers", Kind: simulations.Int, Default: "2", Doc: "counters"},
		{Name: "load", Kind: simulations.Float, Default: "0.8", Doc: "share of the counters that is busy, below 1"},
		{Name: "customers", Kind: simulations.Int, Default: "2000", Doc: "customers in all"},
	}
}

type ends []float64

func (h ends) Len() int           { return len(h) }
func (h ends) Less(i, j int) bool { return h[i] < h[j] }
func (h ends) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *ends) Push(x any)        { *h = append(*h, x.(float64)) }
func (h *ends) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// Run serves all customers.
func (q Queue) Run(ctx context.Context, s simulations.Settings) (*simulations.Result, error) {
	r := s.Reader(q.Params())
	servers, load, customers := r.Int("servers"), r.Float("load"), r.Int("customers")
	if err := r.Err(); err != nil {
		return nil, err
	}
	if servers < 1 {
		return nil, errors.New("servers is 0: nobody would ever be served")
	}
	switch s.Policy {
	case "panics":
		return nil, &simulations.BrokenError{Seed: s.Seed, Event: 7, At: "1.5s", What: "panic: index out of range"}
	case "explodes":
		panic("exploded")
	case "waits":
		if q.Waiting != nil {
			q.Waiting <- s.Seed
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return q.serve(ctx, s, servers, load, customers)
}

func (Queue) serve(ctx context.Context, s simulations.Settings, servers int, load float64, customers int) (*simulations.Result, error) {
	rng := rand.New(rand.NewPCG(s.Seed, 0))
	var busy ends
	var queue, waits []float64
	next, arrived := 0.0, 0
	for len(waits) < customers {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var now float64
		if arrived < customers && (len(busy) == 0 || next < busy[0]) {
			now = next
			queue = append(queue, now)
			arrived++
			next += rng.ExpFloat64() / (load * float64(servers))
		} else {
			now = heap.Pop(&busy).(float64)
		}
		if len(queue) > 0 && len(busy) < servers {
			i := 0
			switch s.Policy {
			case "lifo":
				i = len(queue) - 1
			case "random":
				i = rng.IntN(len(queue))
			}
			waits = append(waits, now-queue[i])
			queue = slices.Delete(queue, i, i+1)
			heap.Push(&busy, now+rng.ExpFloat64())
			if s.Progress != nil && len(waits)%1000 == 0 {
				s.Progress(int64(len(waits)), int64(customers))
			}
		}
	}
	return summary(s.Policy, waits), nil
}

func summary(policy string, waits []float64) *simulations.Result {
	var sum float64
	for _, w := range waits {
		sum += w
	}
	slices.Sort(waits)
	res := &simulations.Result{}
	res.Add("wait_mean", "s", -1, sum/float64(len(waits)))
	res.Add("wait_p99", "s", -1, waits[len(waits)*99/100])
	res.Add("served", "", 0, float64(len(waits)))
	cdf := simulations.Series{Plot: "waiting time", XLabel: "wait (s)", YLabel: "share of customers"}
	for i := range 101 {
		cdf.X = append(cdf.X, waits[min(i*len(waits)/100, len(waits)-1)])
		cdf.Y = append(cdf.Y, float64(i)/100)
	}
	res.Series = append(res.Series, cdf)
	if policy == "nan" {
		res.Add("nonsense", "", 0, math.NaN())
	}
	return res
}

package replay

import (
	"context"
	"math"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// calibrationCalls bounds the part of a recording that Calibrate tries models on.
	calibrationCalls = 1000
	// fewPlaces is with how few placements in it there is nothing to compare.
	fewPlaces = 20
)

// crowds are the ways to slow down that Calibrate tries.
var crowds = []Crowd{
	{StartLoad: 1, Power: 2}, {StartLoad: 2, Power: 2}, {StartLoad: 4, Power: 2}, {StartLoad: 8, Power: 2},
	{StartLoad: 1, Power: 3}, {StartLoad: 2, Power: 3}, {StartLoad: 4, Power: 3}, {StartLoad: 8, Power: 3},
}

// Calibrate fits models to a recording as Fit does, and tries them on it. How a
// machine slows down under load cannot be read off its journals: of some ways it
// takes the one whose placements come closest to the recorded ones, with messages
// made longer or shorter so that they are as long on the whole. A recording with
// few placements is fitted only.
func Calibrate(ctx context.Context, js []Journal, cores int, hostOf func(node string) string) (Models, error) {
	f := newFitter(js, hostOf)
	load := LoadOf(js)
	if len(load.Calls) > calibrationCalls {
		end := load.Calls[calibrationCalls].At
		load.Calls = load.Calls[:calibrationCalls]
		js = until(js, end)
	}
	want := Measure(js).Places
	if len(want) < fewPlaces {
		return f.models(Crowd{cores, Defaults.Crowd.StartLoad, Defaults.Crowd.Power}), ctx.Err()
	}
	type try struct {
		models Models
		miss   float64
	}
	tries := make([]try, len(crowds))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, cores))
	for i, c := range crowds {
		c.Processors = cores
		m := f.models(c)
		g.Go(func() error {
			// A world that breaks under a model, such as leases that expire since
			// their renewals take too long, is not the recorded one.
			tries[i] = try{m, math.Inf(1)}
			places, err := simulatedPlaces(ctx, load, m, hostOf)
			if err != nil {
				return ctx.Err()
			}
			mean, _ := distance(want, places)
			m = m.scaled(mean)
			if places, err = simulatedPlaces(ctx, load, m, hostOf); err != nil {
				return ctx.Err()
			}
			_, miss := distance(want, places)
			tries[i] = try{m, miss}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return Models{}, err
	}
	best := slices.MinFunc(tries, func(a, b try) int {
		switch {
		case a.miss < b.miss:
			return -1
		case a.miss > b.miss:
			return 1
		}
		return 0
	})
	return best.models, nil
}

// simulatedPlaces are the placement latencies of some runs, sorted.
func simulatedPlaces(ctx context.Context, l Load, m Models, hostOf func(string) string) ([]time.Duration, error) {
	const runs = 3
	var all []time.Duration
	for seed := range uint64(runs) {
		js, _, err := Simulate(ctx, l, m, Options{Seed: seed, HostOf: hostOf})
		if err != nil {
			return nil, err
		}
		all = append(all, Measure(js).Places...)
	}
	slices.Sort(all)
	return all, nil
}

// distance compares deciles: the mean of log(want/got), and the mean of its
// deviations from 0.
func distance(want, got []time.Duration) (mean, off float64) {
	const deciles = 10
	for i := range deciles {
		permille := 1000/deciles*i + 1000/deciles/2
		l := math.Log(float64(max(1, quantile(want, permille))) / float64(max(1, quantile(got, permille))))
		mean += l / deciles
		off += math.Abs(l) / deciles
	}
	return mean, off
}

// scaled has messages take e to the power of log times as long.
func (m Models) scaled(log float64) Models {
	permille := time.Duration(math.Round(1000 * math.Exp(max(-3, min(3, log)))))
	scale := func(d Delay) Delay {
		d = slices.Clone(d)
		for i := range d {
			d[i] = d[i] * permille / 1000
		}
		return d
	}
	m.Link, m.Award, m.Local = scale(m.Link), scale(m.Award), scale(m.Local)
	return m
}

// until leaves out what came later.
func until(js []Journal, at time.Duration) []Journal {
	js = slices.Clone(js)
	for i := range js {
		j := &js[i]
		n := 0
		for n < len(j.Records) && j.at(&j.Records[n]) <= at {
			n++
		}
		j.Records = j.Records[:n]
	}
	return js
}

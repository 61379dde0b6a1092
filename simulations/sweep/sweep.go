package sweep

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/beammesh/beammesh/simulations/results"
	"github.com/beammesh/beammesh/simulations/scenario"
)

// Options are what a sweep can be told. The zero value runs one after another.
type Options struct {
	Jobs    int    // runs at a time, at least 1
	Traces  string // directory of the traces; "" where there is none
	Version string // of this program, for the log
	// Progress is told of every step; calls do not overlap. nil = nobody asks.
	Progress func(State)
}

// State is how far a sweep is.
type State struct {
	Total   int // runs of the scenario
	Before  int // that a sweep before this one did
	Done    int // that this one did, failed ones included
	Failed  int
	Elapsed time.Duration
	// Share is the share of the runs of this sweep that is done, running ones
	// counted as far as they are; 0 to 1.
	Share float64
	// Ended is the run that just ended; nil on steps between.
	Ended *results.Record
	// Torn tells, on the first call, that half a line of a killed sweep was cut off.
	Torn bool
}

// Left guesses how long the rest takes, from the pace so far; 0 = not known.
func (s State) Left() time.Duration {
	if s.Share <= 0 || s.Share > 1 {
		return 0
	}
	return time.Duration(float64(s.Elapsed) * (1 - s.Share) / s.Share)
}

// Run does all runs of s that path has no result of and adds them to path. It
// gives the last state also with an error. ctx's end stops the running ones;
// what is done stays. Runs that failed are no error: they are in State.Failed.
func Run(ctx context.Context, s *scenario.Scenario, path string, o Options) (state State, err error) {
	x := &Executor{Experiment: s.Experiment, Traces: o.Traces, Version: o.Version, Jobs: max(1, o.Jobs)}
	runs := s.Runs()
	state.Total = len(runs)
	records := make([]*results.Record, len(runs))
	for i, r := range runs {
		if records[i], err = x.Identify(r); err != nil {
			return state, err
		}
	}
	store, err := results.Open(path)
	if err != nil {
		return state, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()

	w := &work{executor: x, store: store, progress: o.Progress, start: time.Now(), part: map[int]float64{}}
	for i, r := range runs {
		if !store.Done(records[i].Key()) {
			w.todo = append(w.todo, job{run: r, record: records[i]})
		}
	}
	w.state = State{Total: len(runs), Before: len(runs) - len(w.todo), Torn: store.Torn()}
	w.report(nil)
	w.state.Torn = false

	inner, stop := context.WithCancel(ctx)
	defer stop()
	var workers sync.WaitGroup
	for range min(x.Jobs, len(w.todo)) {
		workers.Go(func() {
			if err := w.loop(inner); err != nil {
				w.fail(err)
				stop()
			}
		})
	}
	workers.Wait()
	if ctx.Err() != nil {
		return w.state, ctx.Err()
	}
	if w.err != nil {
		return w.state, w.err
	}
	return w.state, store.Finish()
}

type job struct {
	run    scenario.Run
	record *results.Record
}

// work is what the workers of a sweep share.
type work struct {
	executor *Executor
	progress func(State)
	start    time.Time

	mu    sync.Mutex
	store *results.Store
	todo  []job
	next  int
	part  map[int]float64 // share of each running job that is done; at most Jobs entries
	state State
	err   error
}

// loop does jobs until there is none or ctx ends. Its error is of the store: the
// results cannot be kept, so running on would be for nothing.
func (w *work) loop(ctx context.Context) error {
	for ctx.Err() == nil {
		i, ok := w.take()
		if !ok {
			return nil
		}
		j := w.todo[i]
		entry, err := w.executor.Execute(ctx, j.run, j.record, func(done, total int64) { w.step(i, done, total) })
		if err != nil && ctx.Err() != nil {
			return nil
		}
		if err := w.end(i, entry); err != nil {
			return err
		}
	}
	return nil
}

func (w *work) take() (int, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.next == len(w.todo) {
		return 0, false
	}
	w.next++
	return w.next - 1, true
}

func (w *work) step(i int, done, total int64) {
	if total <= 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.part[i] = min(1, max(0, float64(done)/float64(total)))
	w.report(nil)
}

func (w *work) end(i int, entry results.LogEntry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.part, i)
	r := w.todo[i].record
	if err := w.store.Append(r, entry); err != nil {
		return fmt.Errorf("keep the result of %s, seed %d: %w", r.Policy, r.Seed, err)
	}
	w.state.Done++
	if r.Failed != nil {
		w.state.Failed++
	}
	w.report(r)
	// The next hours need the store's index only, not every curve.
	w.todo[i] = job{}
	return nil
}

// report tells the state; w.mu is held, except before the workers start.
func (w *work) report(ended *results.Record) {
	w.state.Elapsed = time.Since(w.start)
	w.state.Share = 1
	if n := len(w.todo); n > 0 {
		share := float64(w.state.Done)
		for _, p := range w.part {
			share += p
		}
		w.state.Share = share / float64(n)
	}
	if w.progress != nil {
		w.state.Ended = ended
		w.progress(w.state)
		w.state.Ended = nil
	}
}

func (w *work) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

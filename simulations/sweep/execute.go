package sweep

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/results"
	"github.com/beammesh/beammesh/simulations/scenario"
)

// Executor does single runs. It may be used by several goroutines.
type Executor struct {
	Experiment simulations.Experiment
	Traces     string // directory of the traces; "" where there is none
	Version    string // of this program, for the log
	Jobs       int    // how many runs share the machine, for the log

	mu     sync.Mutex
	hashes map[string]string // of trace files that were read once
}

// Identify gives the record of a run before it ran. Its error is about traces
// that cannot be read, and ends a sweep before it begins.
func (x *Executor) Identify(r scenario.Run) (*results.Record, error) {
	rec := &results.Record{Experiment: x.Experiment.Name(), Policy: r.Policy, Seed: r.Seed, Params: r.Params}
	t, ok := x.Experiment.(simulations.Traced)
	if !ok {
		return rec, nil
	}
	s := r.Settings(x.Experiment)
	s.Traces = x.Traces
	files, err := t.TraceFiles(s)
	if f := (*fault.Error)(nil); err != nil && !errors.As(err, &f) {
		err = fault.New(fault.Invalid, err.Error(), "")
	}
	if err != nil || len(files) == 0 {
		return rec, err
	}
	all := sha256.New()
	for _, f := range files {
		h, err := x.hash(f)
		if err != nil {
			return rec, err
		}
		fmt.Fprintf(all, "%s %s\n", h, filepath.Base(f))
	}
	rec.Trace = hex.EncodeToString(all.Sum(nil))
	return rec, nil
}

func (x *Executor) hash(path string) (string, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if h, ok := x.hashes[path]; ok {
		return h, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fault.Wrap(fault.NotFound, err, "a trace cannot be read", "--traces DIR or BEAM_TRACES names the folder of the traces")
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fault.Wrap(fault.NotFound, err, "a trace cannot be read", "")
	}
	if x.hashes == nil {
		x.hashes = map[string]string{}
	}
	x.hashes[path] = hex.EncodeToString(sum.Sum(nil))
	return x.hashes[path], nil
}

// Execute does one run and completes rec, which Identify made. A run that
// failed has its reason in rec and in the error. When ctx ended, the error is
// ctx's and rec is as before.
func (x *Executor) Execute(ctx context.Context, r scenario.Run, rec *results.Record, progress func(done, total int64)) (results.LogEntry, error) {
	s := r.Settings(x.Experiment)
	s.Traces, s.Progress = x.Traces, progress
	start := time.Now()
	res, err := x.guarded(ctx, s)
	entry := results.LogEntry{Wall: time.Since(start), Jobs: max(1, x.Jobs), PeakRSS: peakRSS(), Version: x.Version,
		Go: runtime.Version(), Arch: runtime.GOARCH, Ended: time.Now().UTC().Truncate(time.Second)}
	if err == nil {
		err = rec.SetResult(res)
	}
	if err != nil && ctx.Err() != nil {
		return entry, ctx.Err()
	}
	if err != nil {
		rec.Metrics, rec.Series = nil, nil
		rec.Failed = &results.Failure{What: err.Error()}
		if broken := (*simulations.BrokenError)(nil); errors.As(err, &broken) {
			rec.Failed = &results.Failure{What: broken.What, Event: broken.Event, At: broken.At}
		}
		return entry, err
	}
	if m, ok := res.Metric("events"); ok && entry.Wall > 0 {
		entry.EventsPerSecond = m.Value / entry.Wall.Seconds()
	}
	return entry, nil
}

// guarded turns a panic that the experiment did not catch into an error.
func (x *Executor) guarded(ctx context.Context, s simulations.Settings) (res *simulations.Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			res, err = nil, fmt.Errorf("panic: %v, at %s", p, origin())
		}
	}()
	res, err = x.Experiment.Run(ctx, s)
	if err == nil && (res == nil || len(res.Metrics) == 0) {
		err = errors.New("the run ended without a metric")
	}
	return res, err
}

// origin is where the code that panicked stands: file and line, without the
// folder, which would differ between machines.
func origin() string {
	pc := make([]uintptr, 32)
	frames := runtime.CallersFrames(pc[:runtime.Callers(3, pc)])
	for {
		f, more := frames.Next()
		if !strings.HasPrefix(f.Function, "runtime.") {
			return fmt.Sprintf("%s:%d", filepath.Base(f.File), f.Line)
		}
		if !more {
			return "an unknown place"
		}
	}
}

// peakRSS is the most memory this process ever had, in bytes.
func peakRSS() int64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Maxrss << 10 // Linux counts in KiB
}

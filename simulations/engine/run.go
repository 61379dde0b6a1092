package engine

import (
	"context"
	"fmt"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"time"

	"github.com/beammesh/beammesh/simulations"
)

// ctxEvery is how many events pass between two looks at the context: a few
// milliseconds of work.
const ctxEvery = 1 << 12

// Run pops events and gives them to handle until none is left, handle calls
// Stop, or ctx ends (then its error). A panic in handle, or Breakf, ends the run
// with a *simulations.BrokenError that has the seed and the event.
func Run[E any](ctx context.Context, seed uint64, q *Queue[E], handle func(now time.Duration, ev E)) error {
	return Guard(seed, func() (uint64, time.Duration) { return q.Events(), q.Now() }, func() error {
		for {
			if q.Events()%ctxEvery == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			now, ev, ok := q.Pop()
			if !ok {
				return nil
			}
			handle(now, ev)
		}
	})
}

// Stop ends a Run from inside handle with err, which may be nil.
func Stop(err error) { panic(stopped{err}) }

type stopped struct{ err error }

// Breakf ends a Run or Guard: the policy broke an invariant of the world.
func Breakf(format string, args ...any) {
	panic(broken(fmt.Sprintf(format, args...)))
}

type broken string

// Guard calls run and turns a panic or Breakf inside it into a
// *simulations.BrokenError; where is asked for the event (counted from 1) and
// its virtual time. It is for worlds that have no Queue; the others use Run.
func Guard(seed uint64, where func() (event uint64, at time.Duration), run func() error) (err error) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		var what string
		switch p := p.(type) {
		case stopped:
			err = p.err
			return
		case broken:
			what = string(p)
		default:
			what = fmt.Sprintf("panic: %v%s", p, panicAt())
		}
		event, at := where()
		err = &simulations.BrokenError{Seed: seed, Event: event, At: at.String(), What: what}
	}()
	return run()
}

// panicAt names the line that panicked, as its author would: the first frame
// above the runtime's own.
func panicAt() string {
	var pcs [32]uintptr
	frames := goruntime.CallersFrames(pcs[:goruntime.Callers(2, pcs[:])])
	panicking := false
	for {
		f, more := frames.Next()
		inRuntime := strings.HasPrefix(f.Function, "runtime.")
		if panicking && !inRuntime {
			return fmt.Sprintf(" (%s/%s:%d)", filepath.Base(filepath.Dir(f.File)), filepath.Base(f.File), f.Line)
		}
		panicking = panicking || inRuntime
		if !more {
			return ""
		}
	}
}

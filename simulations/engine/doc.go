// Package engine is what every simulated world stands on: a queue of events in
// virtual time, seeded random streams, and a loop that turns a broken policy
// into an error that leads back to it.
//
//	var q engine.Queue[event] // event is a small struct of the world
//	r := engine.Stream(seed, "arrivals", 0)
//	q.Push(r.Exp(time.Millisecond), event{kind: arrive})
//	err := engine.Run(ctx, seed, &q, func(now time.Duration, e event) {
//		q.Push(now+latency, event{kind: reply})
//	})
//
// Virtual time is a time.Duration since the start of the run. Events of the same
// instant come out in the order in which they were pushed, so a run is a
// function of its seed.
//
// Everything a decision may depend on is integer arithmetic: random numbers have
// the same bits on every machine. (Go may fuse x*y+z into one rounding on arm64,
// and math.Log and math.Exp are assembly on some machines: with floats the runs
// of amd64 and arm64 would part.) Floats are for what a run reports.
//
// Nothing here is safe for concurrent use; one run has one goroutine. Runs of
// different Settings may of course go side by side.
package engine

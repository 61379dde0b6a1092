package queue

import (
	"slices"
	"time"

	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/engine"
)

func newWorld(c config) *World {
	w := &World{
		Workers: c.workers, Slots: c.slots, Owners: c.owners, Delay: c.delay,
		Rand: engine.Stream(c.seed, "policy", 0), cfg: c,
		free: make([]int32, c.workers), dead: make([]bool, c.workers), down: make([]bool, c.workers),
		arrivals: engine.Stream(c.seed, "arrivals", 0),
		jobAt:    make([]time.Duration, c.jobs), jobOwner: make([]Peer, c.jobs), jobLeft: make([]int32, c.jobs),
		jobTimes: make([]time.Duration, 0, c.jobs),
		tasks:    make([]state, c.jobs*c.tasks), holder: make([]int32, c.jobs*c.tasks), left: c.jobs * c.tasks,
	}
	for i := range w.free {
		w.free[i] = int32(c.slots)
	}
	w.Kind("task")
	w.Kind("result")
	return w
}

// checkEnd says what is lost when nothing is left to happen.
func (w *World) checkEnd() error {
	if w.left == 0 {
		return nil
	}
	task := slices.IndexFunc(w.tasks, func(s state) bool { return s != done })
	return engine.Guard(w.cfg.seed, w.at, func() error {
		engine.Breakf("%d tasks are lost: nothing is left to happen, and of task %d %s", w.left, task, w.where(int32(task)))
		return nil
	})
}

func (w *World) at() (uint64, time.Duration) { return w.q.Events(), w.q.Now() }

// report is what the run found out.
func (w *World) report() *simulations.Result {
	slices.Sort(w.jobTimes)
	job := func(permille int) time.Duration {
		return w.jobTimes[min(len(w.jobTimes)*permille/1000, len(w.jobTimes)-1)]
	}
	r := &simulations.Result{}
	r.Add("job_p50", "ms", -1, ms(job(500)))
	r.Add("job_p95", "ms", -1, ms(job(950)))
	r.Add("job_p99", "ms", -1, ms(job(990)))
	r.Add("task_wait_p50", "ms", -1, ms(w.waits.quantile(500)))
	r.Add("task_wait_p99", "ms", -1, ms(w.waits.quantile(990)))
	perTask := func(n int64) float64 { return float64(n) / float64(w.Total()) }
	r.Add("messages", "messages/task", -1, perTask(w.messages))
	for k, n := range w.sent {
		r.Add("messages_"+w.kinds[k], "messages/task", 0, perTask(n))
	}
	r.Add("replaced_tasks", "", 0, float64(w.replaced))
	r.Add("events", "", 0, float64(w.q.Events()))
	r.Add("simulated", "s", 0, w.q.Now().Seconds())
	r.Series = append(r.Series,
		curve("job latency", "job latency (ms)", job),
		curve("task wait", "task wait (ms)", func(permille int) time.Duration { return w.waits.quantile(int64(permille)) }))
	return r
}

// curve is a distribution function in steps of half a percent, and finer at its
// end.
func curve(plot, label string, quantile func(permille int) time.Duration) simulations.Series {
	s := simulations.Series{Plot: plot, XLabel: label, YLabel: "share (%)"}
	for permille := 0; permille <= 1000; permille += 5 {
		if permille > 990 {
			permille -= 4
		}
		s.X = append(s.X, ms(quantile(permille)))
		s.Y = append(s.Y, float64(permille)/10)
	}
	return s
}

// ms is d in milliseconds. One correctly rounded division, so it has the same
// bits everywhere.
func ms(d time.Duration) float64 { return float64(d) / 1e6 }

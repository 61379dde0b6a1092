package queue

import (
	"time"

	"github.com/beammesh/beammesh/simulations/engine"
)

// kill ends the share of workers that the run asks for, chosen at random, all at
// once: a rack without power. What they run and hold goes with them.
func (w *World) kill(now time.Duration) {
	r := engine.Stream(w.cfg.seed, "kill", 0)
	order := make([]int32, w.Workers)
	for i := range order {
		order[i] = int32(i)
	}
	r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for _, worker := range order[:w.cfg.kill] {
		w.dead[worker] = true
	}
	w.diedAt = now
	w.q.Push(now+w.cfg.detect, Message{what: noticed})
}

// notice tells the policy of the dead, worker by worker, with the tasks that
// were lost there.
func (w *World) notice() {
	lost := make([][]int32, w.Workers)
	for task, s := range w.tasks {
		if at := w.holder[task]; (s == held || s == running) && w.dead[at] {
			lost[at] = append(lost[at], int32(task))
		}
	}
	for worker, dead := range w.dead {
		if dead {
			w.down[worker] = true
		}
	}
	for worker, dead := range w.dead {
		if dead {
			w.giveBack(int32(worker), lost[worker])
		}
	}
}

func (w *World) giveBack(worker int32, lost []int32) {
	for _, task := range lost {
		w.tasks[task] = waiting
	}
	w.replaced += int64(len(lost))
	w.policy.Down(worker, lost)
}

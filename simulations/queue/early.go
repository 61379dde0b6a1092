package queue

// early binds a task to a worker's queue at once: to any worker (choices 1), or
// to the least loaded of some that it asks (Mitzenmacher 2001). With steals, a
// worker that falls idle asks that many others, one after the other, for the
// last task of their queue.
type early struct {
	w       *World
	choices int
	steals  uint8
	queues  []fifo  // tasks of a worker that wait there
	tries   []uint8 // steals that a worker may still try

	// Of a task whose owner waits for answers:
	asked []uint8
	best  []int32 // the worker that said the least so far, -1 = none
	least []int32

	probe, load, steal, nothing, moved Kind
}

func newEarly(w *World, choices int, steals uint8) Policy {
	p := &early{w: w, choices: choices, steals: steals, queues: make([]fifo, w.Workers)}
	if choices > 1 {
		p.probe, p.load = w.Kind("probe"), w.Kind("load")
		n := w.Total()
		p.asked, p.best, p.least = make([]uint8, n), make([]int32, n), make([]int32, n)
	}
	if steals > 0 {
		p.steal, p.nothing, p.moved = w.Kind("steal"), w.Kind("nothing"), w.Kind("moved")
		p.tries = make([]uint8, w.Workers)
	}
	return p
}

func (p *early) Submit(job Job) {
	for t := range job.Tasks {
		p.place(job.First + t)
	}
}

func (p *early) place(task int32) {
	owner := p.w.OwnerOf(task)
	if p.choices == 1 {
		p.w.SendTask(Task, owner, task, someone(p.w))
		return
	}
	p.best[task] = -1
	p.asked[task] = uint8(p.choices)
	for range p.choices {
		p.w.Send(p.probe, owner, Peer(someone(p.w)), task, 0)
	}
}

func (p *early) Receive(m Message) {
	switch m.Kind {
	case Task:
		worker := int32(m.To)
		if p.w.Free(worker) > 0 {
			p.w.Start(worker, m.Arg)
		} else {
			p.queues[worker].push(m.Arg)
		}
	case p.probe:
		if m.Failed {
			p.answer(m.Arg, -1, 0)
		} else {
			p.w.Send(p.load, m.To, m.From, m.Arg, p.loadOf(int32(m.To)))
		}
	case p.load:
		p.answer(m.Arg, int32(m.From), m.Val)
	case p.steal:
		p.stolen(m)
	case p.nothing:
		p.stealNext(int32(m.To))
	}
}

func (p *early) loadOf(worker int32) int32 {
	return int32(p.queues[worker].len() + p.w.Slots - p.w.Free(worker))
}

// answer is what a worker said, or -1 for one that is dead.
func (p *early) answer(task, worker, load int32) {
	if worker >= 0 && (p.best[task] < 0 || load < p.least[task]) {
		p.best[task], p.least[task] = worker, load
	}
	p.asked[task]--
	switch {
	case p.asked[task] > 0:
	case p.best[task] < 0 || p.w.Down(p.best[task]):
		p.place(task)
	default:
		p.w.SendTask(Task, p.w.OwnerOf(task), task, p.best[task])
	}
}

func (p *early) Ended(worker, _ int32) {
	switch {
	case p.queues[worker].len() > 0:
		p.w.Start(worker, p.queues[worker].pop())
	case p.steals > 0 && p.tries[worker] == 0:
		p.tries[worker] = p.steals
		p.stealNext(worker)
	}
}

// stealNext asks the next victim, while the thief has nothing better to do.
func (p *early) stealNext(thief int32) {
	if p.tries[thief] == 0 || p.w.Free(thief) == 0 {
		p.tries[thief] = 0
		return
	}
	p.tries[thief]--
	p.w.Send(p.steal, Peer(thief), Peer(someone(p.w)), 0, 0)
}

// stolen is a thief's wish at its victim, or its return from a dead one.
func (p *early) stolen(m Message) {
	victim, thief := int32(m.To), int32(m.From)
	switch {
	case m.Failed:
		p.stealNext(victim) // it came back: To is the thief
	case p.queues[victim].len() == 0:
		p.w.Send(p.nothing, m.To, m.From, 0, 0)
	default:
		task := p.queues[victim].popLast()
		p.w.SendTask(Task, m.To, task, thief)
		p.w.Count(p.moved) // the owner must know where to look for the task
		p.tries[thief] = 0
	}
}

func (p *early) Down(worker int32, lost []int32) {
	p.queues[worker].take() // all of them are among the lost
	for _, task := range lost {
		p.place(task)
	}
}

package queue

// ideal is the bound: one queue for all, which knows every slot at every moment.
// A task pays one delay when a slot is free, and none when it had to wait, since
// it was sent ahead to the slot that would fall free first.
type ideal struct {
	w     *World
	idle  []int32 // a worker for each free slot
	queue fifo
}

func newIdeal(w *World) Policy {
	p := &ideal{w: w}
	for range w.Slots {
		for i := range w.Workers {
			p.idle = append(p.idle, int32(i))
		}
	}
	return p
}

func (p *ideal) Submit(job Job) {
	for t := range job.Tasks {
		p.place(job.First + t)
	}
}

func (p *ideal) place(task int32) {
	for len(p.idle) > 0 {
		worker := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if !p.w.Down(worker) {
			p.w.SendTask(Task, p.w.OwnerOf(task), task, worker)
			return
		}
	}
	p.queue.push(task)
}

func (p *ideal) Receive(m Message) { p.w.Start(int32(m.To), m.Arg) }

func (p *ideal) Ended(worker, _ int32) {
	if p.queue.len() == 0 {
		p.idle = append(p.idle, worker)
		return
	}
	task := p.queue.pop()
	p.w.Count(Task)
	p.w.Bind(p.w.OwnerOf(task), task, worker)
	p.w.Start(worker, task)
}

func (p *ideal) Down(_ int32, lost []int32) {
	for _, task := range lost {
		p.place(task)
	}
}

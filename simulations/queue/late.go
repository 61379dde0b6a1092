package queue

// late is Sparrow's batch sampling with late binding: the owner of a job of m
// tasks leaves d*m reservations in queues of workers, and a worker that comes to
// one pulls a task of the job, if any is left. (Ousterhout, Wendell, Zaharia,
// Stoica: Sparrow, SOSP 2013, sections 3.4 and 3.5, without proactive
// cancellation.)
type late struct {
	w            *World
	reservations int
	queues       []fifo  // jobs whose reservations wait at a worker
	pulling      []int32 // slots of a worker that wait for an answer
	launched     []int32 // tasks of a job that were pulled; they go in order
	again        map[int32][]int32

	reserve, pull, none Kind
}

func newLate(w *World, reservations int) Policy {
	return &late{
		w: w, reservations: reservations,
		queues: make([]fifo, w.Workers), pulling: make([]int32, w.Workers),
		launched: make([]int32, w.cfg.jobs), again: map[int32][]int32{},
		reserve: w.Kind("reserve"), pull: w.Kind("pull"), none: w.Kind("none"),
	}
}

func (p *late) Submit(job Job) {
	id := job.First / job.Tasks
	for range int(job.Tasks) * p.reservations {
		p.reserveOne(id)
	}
}

func (p *late) ownerOf(job int32) Peer { return p.w.jobOwner[job] }

func (p *late) reserveOne(job int32) {
	p.w.Send(p.reserve, p.ownerOf(job), Peer(someone(p.w)), job, 0)
}

// unlaunched is how many tasks of a job are at their owner.
func (p *late) unlaunched(job int32) int {
	return p.w.cfg.tasks - int(p.launched[job]) + len(p.again[job])
}

func (p *late) Receive(m Message) {
	switch m.Kind {
	case Task:
		p.pulling[m.To]--
		p.w.Start(int32(m.To), m.Arg)
	case p.reserve:
		if m.Failed {
			p.reservationLost(m.Arg)
			return
		}
		p.queues[m.To].push(m.Arg)
		p.next(int32(m.To))
	case p.pull:
		p.pulled(m.Arg, m.From)
	case p.none:
		if !m.Failed {
			p.pulling[m.To]--
			p.next(int32(m.To))
		}
	}
}

// next pulls for the reservations of a worker, as far as slots are free.
func (p *late) next(worker int32) {
	for p.queues[worker].len() > 0 && p.w.Free(worker) > int(p.pulling[worker]) {
		job := p.queues[worker].pop()
		p.pulling[worker]++
		p.w.Send(p.pull, Peer(worker), p.ownerOf(job), job, 0)
	}
}

func (p *late) pulled(job int32, worker Peer) {
	owner := p.ownerOf(job)
	if again := p.again[job]; len(again) > 0 {
		p.again[job] = again[1:]
		p.w.SendTask(Task, owner, again[0], int32(worker))
		return
	}
	if p.unlaunched(job) == 0 {
		p.w.Send(p.none, owner, worker, 0, 0)
		return
	}
	task := job*int32(p.w.cfg.tasks) + p.launched[job]
	p.launched[job]++
	p.w.SendTask(Task, owner, task, int32(worker))
}

func (p *late) Ended(worker, _ int32) { p.next(worker) }

// Down: each reservation that was lost while tasks were left is made again, so
// that a job always has at least as many reservations as tasks at its owner.
func (p *late) Down(worker int32, lost []int32) {
	for _, task := range lost {
		job := task / int32(p.w.cfg.tasks)
		p.again[job] = append(p.again[job], task)
		p.reserveOne(job)
	}
	for _, job := range p.queues[worker].take() {
		p.reservationLost(job)
	}
}

func (p *late) reservationLost(job int32) {
	if p.unlaunched(job) > 0 {
		p.reserveOne(job)
	}
}

package queue

import (
	"time"

	"github.com/beammesh/beammesh/simulations/engine"
)

// Peer is an address: workers count from 0 up, owners from -1 down.
type Peer int32

// Owner is the address of the owner with this index.
func Owner(index int) Peer { return Peer(-1 - index) }

// OwnerIndex is the index of an owner's address.
func (p Peer) OwnerIndex() int { return int(-1 - p) }

// Kind is a kind of message; see World.Kind.
type Kind uint8

// Message is what goes over the network. It arrives one Delay after Send.
type Message struct {
	Kind Kind
	// Failed: To is dead, this comes back to From.
	Failed   bool
	what     what
	From, To Peer
	// Arg and Val are what the policy put in; Arg of a SendTask is the task.
	Arg, Val int32
}

// what says what an event is; the rest of its Message depends on it.
type what uint8

const (
	delivered what = iota // a message reaches To
	withTask              // the same, and it carries the task Arg
	result                // From tells To that the task Arg ended
	ended                 // the task Arg ends at To
	arrived               // the job Arg reaches its owner
	killed                // workers die
	noticed               // their owners notice
)

// Job is a batch of tasks that one owner answers for. Its tasks are numbered
// from First.
type Job struct {
	Owner Peer
	First int32
	Tasks int32
}

// state is where a task is.
type state uint8

const (
	unborn  state = iota
	waiting       // at its owner, with nobody else
	held          // at a worker or on the way there
	running
	done
)

// World is the mesh that a policy acts in: it delivers messages, runs tasks,
// counts, and checks that no task is lost or runs twice. The exported fields are
// for reading.
type World struct {
	Workers int           // addresses 0 to Workers-1
	Slots   int           // tasks that a worker runs at once
	Owners  int           // addresses Owner(0) to Owner(Owners-1)
	Delay   time.Duration // of a message, one way
	Rand    engine.Rand   // for the policy's decisions

	cfg    config
	q      engine.Queue[Message]
	policy Policy

	free []int32 // slots of a worker
	dead []bool
	down []bool // dead, and the owners know
	// diedAt is when all of the dead died.
	diedAt time.Duration

	jobs     int32         // arrived
	nextAt   time.Duration // of the next arrival, in 1/1024 ns
	arrivals engine.Rand
	jobAt    []time.Duration
	jobOwner []Peer
	jobLeft  []int32 // tasks that are not done

	tasks  []state
	holder []int32 // the worker of a task that is held or running
	left   int     // tasks of the run that are not done

	kinds    []string
	sent     []int64
	replaced int64
	messages int64

	waits    latencies
	jobTimes []time.Duration // from arrival at the owner to the end of the last task

	progress func(done, total int64)
}

// Kind gives a policy a kind of message of its own; it is for the constructor.
// The name becomes the metric messages_<name>.
func (w *World) Kind(name string) Kind {
	w.kinds = append(w.kinds, name)
	w.sent = append(w.sent, 0)
	return Kind(len(w.kinds) - 1)
}

// The kinds that every policy has.
const (
	Task   Kind = iota // brings a task to a worker
	Result             // tells the owner that a task ended
)

// Now is the virtual time.
func (w *World) Now() time.Duration { return w.q.Now() }

// Since is when the job of a task arrived at its owner.
func (w *World) Since(task int32) time.Duration { return w.jobAt[int(task)/w.cfg.tasks] }

// OwnerOf is who answers for a task.
func (w *World) OwnerOf(task int32) Peer { return w.jobOwner[int(task)/w.cfg.tasks] }

// Total is how many tasks the run will have; they are numbered from 0.
func (w *World) Total() int { return w.cfg.jobs * w.cfg.tasks }

// Free is how many slots of a worker run nothing. Only the worker itself knows.
func (w *World) Free(worker int32) int { return int(w.free[worker]) }

// Down says that a worker is dead and its owners noticed.
func (w *World) Down(worker int32) bool { return w.down[worker] }

// Send sends a message. When a worker it goes to is dead it comes back Failed,
// once that was noticed.
func (w *World) Send(kind Kind, from, to Peer, arg, val int32) {
	w.Count(kind)
	w.q.Push(w.q.Now()+w.Delay, Message{Kind: kind, From: from, To: to, Arg: arg, Val: val})
}

// SendTask sends a task to a worker, from its owner or from the worker that has
// it and does not run it. If the receiver dies with it, Policy.Down gives it
// back to its owner.
func (w *World) SendTask(kind Kind, from Peer, task int32, worker int32) {
	w.Bind(from, task, worker)
	w.Count(kind)
	w.q.Push(w.q.Now()+w.Delay, Message{Kind: kind, what: withTask, From: from, To: Peer(worker), Arg: task})
}

// Count counts a message whose arrival decides nothing.
func (w *World) Count(kind Kind) {
	w.sent[kind]++
	w.messages++
	if w.messages > mostMessages*int64(w.Total()) {
		engine.Breakf("the policy has sent more than %d messages per task; it seems to go round in a circle", mostMessages)
	}
}

// mostMessages per task is far above any sensible policy's number.
const mostMessages = 1000

// Bind moves a task to a worker in no time and with no message. Nothing real
// can; it is for a policy that knows all, as a bound for the others.
func (w *World) Bind(from Peer, task int32, worker int32) {
	switch s := w.tasks[task]; {
	case s == waiting && from == w.OwnerOf(task), s == held && int32(from) == w.holder[task]:
	default:
		engine.Breakf("peer %d sends task %d, which it does not have (%s)", from, task, w.where(task))
	}
	if worker < 0 || int(worker) >= w.Workers {
		engine.Breakf("task %d is sent to %d, which is no worker", task, worker)
	}
	w.tasks[task] = held
	w.holder[task] = worker
}

// Start runs a task that a worker holds in a free slot of it.
func (w *World) Start(worker, task int32) {
	switch {
	case w.tasks[task] != held || w.holder[task] != worker:
		engine.Breakf("worker %d starts task %d, which it does not have (%s)", worker, task, w.where(task))
	case w.free[worker] == 0:
		engine.Breakf("worker %d starts task %d with no free slot", worker, task)
	case w.dead[worker]:
		engine.Breakf("worker %d starts task %d, but is dead", worker, task)
	}
	w.free[worker]--
	w.tasks[task] = running
	w.waits.add(w.Now() - w.Since(task))
	w.q.Push(w.q.Now()+w.cfg.duration(task), Message{what: ended, To: Peer(worker), Arg: task})
}

func (w *World) where(task int32) string {
	switch w.tasks[task] {
	case unborn:
		return "it has not arrived"
	case waiting:
		return "it waits at its owner"
	case held:
		return "another peer holds it"
	case running:
		return "it runs"
	}
	return "it is done"
}

// handle is one event.
func (w *World) handle(now time.Duration, m Message) {
	if w.q.Events()%progressEvery == 0 && w.progress != nil {
		w.progress(int64(w.Total()-w.left), int64(w.Total()))
	}
	switch m.what {
	case delivered, withTask:
		w.deliver(now, m)
	case result:
		if p, ok := w.policy.(Resulter); ok {
			p.Result(int32(m.From), m.Arg)
		}
	case ended:
		w.end(now, int32(m.To), m.Arg)
	case arrived:
		w.arrive(now)
	case killed:
		w.kill(now)
	case noticed:
		w.notice()
	}
}

// progressEvery is a number of events that take some tenths of a second.
const progressEvery = 1 << 19

func (w *World) deliver(now time.Duration, m Message) {
	if m.To < 0 || !w.dead[m.To] {
		w.policy.Receive(m)
		return
	}
	switch {
	case m.what == withTask:
		// What was on its way when the death was noticed was given back then,
		// what comes before that will be.
		if w.down[m.To] && w.tasks[m.Arg] == held && w.holder[m.Arg] == int32(m.To) {
			w.giveBack(int32(m.To), []int32{m.Arg})
		}
	case !m.Failed:
		m.From, m.To, m.Failed = m.To, m.From, true
		w.q.Push(max(now+w.Delay, w.diedAt+w.cfg.detect), m)
	}
}

func (w *World) end(now time.Duration, worker, task int32) {
	if w.dead[worker] {
		return
	}
	if w.tasks[task] != running || w.holder[task] != worker {
		engine.Breakf("task %d ends at worker %d, but %s", task, worker, w.where(task))
	}
	w.tasks[task] = done
	w.free[worker]++
	w.left--
	job := int(task) / w.cfg.tasks
	w.jobLeft[job]--
	if w.jobLeft[job] == 0 {
		w.jobTimes = append(w.jobTimes, now-w.jobAt[job])
	}
	w.Count(Result)
	if _, ok := w.policy.(Resulter); ok {
		w.q.Push(now+w.Delay, Message{what: result, From: Peer(worker), To: w.jobOwner[job], Arg: task})
	}
	w.policy.Ended(worker, task)
}

// arrive brings the next job to its owner and plans the one after it.
func (w *World) arrive(now time.Duration) {
	j := w.jobs
	w.jobs++
	w.jobAt[j] = now
	w.jobOwner[j] = Owner(w.arrivals.IntN(w.Owners))
	w.jobLeft[j] = int32(w.cfg.tasks)
	first := j * int32(w.cfg.tasks)
	for t := range w.cfg.tasks {
		w.tasks[int(first)+t] = waiting
	}
	if int(w.jobs) < w.cfg.jobs {
		w.planArrival()
	}
	w.policy.Submit(Job{Owner: w.jobOwner[j], First: first, Tasks: int32(w.cfg.tasks)})
}

func (w *World) planArrival() {
	w.nextAt += w.arrivals.Exp(w.cfg.meanGap)
	w.q.Push(w.nextAt>>10, Message{what: arrived})
}

package queue

// Policy decides who runs what. One value serves one run and sees both sides of
// the network, the owners' and the workers': it must let a peer act only on what
// that peer was told. What crosses the network goes through World.Send and
// SendTask, which count it.
//
// The World calls it, one event after another. Slices it is given are its own to
// read until it returns.
type Policy interface {
	// Submit: a job has arrived at its owner.
	Submit(job Job)
	// Receive: a message has arrived at m.To, or came back to m.To with Failed.
	Receive(m Message)
	// Ended: a task ended at a worker, whose slot is free now. The Result is on
	// its way to the owner.
	Ended(worker, task int32)
	// Down: the owners have noticed that a worker is dead. The lost tasks, which
	// it held, wait at their owners again. It may be called again for the same
	// worker, with tasks that were on the way to it.
	Down(worker int32, lost []int32)
}

// Resulter is a Policy whose owners act on results.
type Resulter interface {
	// Result: the owner of a task hears that the task ended at worker.
	Result(worker, task int32)
}

// entry is a policy of the list.
type entry struct {
	name string
	doc  string
	make func(w *World) Policy
}

// policies are all there are. To add one: write a type in a file of its own (see
// early.go for a short example), and a line here.
var policies = []entry{
	{"ours", "a task waits at its owner for a slot that is known to be free; owners lend free slots to each other", newOurs},
	{"ideal", "one queue that knows all, sends ahead and pays one message", newIdeal},
	{"late-4", "Sparrow: batch sampling and late binding, 4 reservations per task", func(w *World) Policy { return newLate(w, 4) }},
	{"late-2", "Sparrow: batch sampling and late binding, 2 reservations per task", func(w *World) Policy { return newLate(w, 2) }},
	{"two-choices-steal", "the shorter of two queues; idle workers steal", func(w *World) Policy { return newEarly(w, 2, 4) }},
	{"two-choices", "the shorter of two queues", func(w *World) Policy { return newEarly(w, 2, 0) }},
	{"random-steal", "any queue; idle workers steal", func(w *World) Policy { return newEarly(w, 1, 4) }},
	{"random", "any queue", func(w *World) Policy { return newEarly(w, 1, 0) }},
}

// someone is a worker that is not known to be down; the run is impossible when
// there is none, and config.check has seen to that.
func someone(w *World) int32 {
	for {
		if x := int32(w.Rand.IntN(w.Workers)); !w.Down(x) {
			return x
		}
	}
}

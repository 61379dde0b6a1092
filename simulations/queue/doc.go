// Package queue simulates short tasks on slots that are ready: how long they
// wait, and for how many messages. It is the question of a call to a container
// that is warm; placing containers is the subject of packages fill and mesh.
//
//	r, err := queue.Experiment{}.Run(ctx, simulations.Settings{
//		Seed: 42, Policy: "ours", Values: map[string]string{"workers": "10000", "load": "0.9"},
//	})
//
// # What is modelled
//
// Workers with some slots each; owners, to which jobs come in a Poisson process,
// each job to a random owner; jobs of equally many tasks, which are done when
// their last task is. Every message takes the same one-way delay and is an event
// of its own. A task's wait is from the arrival of its job to its start; a job's
// latency is to the end of its last task at the worker. Durations and arrivals
// come from streams of the seed that a policy cannot move, so all policies of a
// seed get the same work.
//
// Some of the workers may die at one moment. A message to a dead worker comes
// back when the death was noticed; tasks that were there are given back to their
// owners then. The World checks every step: a task that is lost, starts twice or
// starts where it is not, or a slot that runs two tasks, ends the run with a
// simulations.BrokenError.
//
// Not modelled: the size of messages and the work of handling one, links that
// differ or lose messages (streams repeat what is lost), workers that differ,
// workers that come back, owners that die.
//
// # The policies
//
// A Policy is a type in a file of its own and a line in policy.go. What is there
// follows these:
//
//   - two-choices: M. Mitzenmacher, The Power of Two Choices in Randomized Load
//     Balancing, IEEE TPDS 12(10), 2001.
//   - late-2, late-4: K. Ousterhout et al., Sparrow: Distributed, Low Latency
//     Scheduling, SOSP 2013. A job of m tasks has d*m reservations.
//   - that queues at workers should be short and bounded: J. Rasley et al.,
//     Efficient Queue Management for Cluster Scheduling (Yaq), EuroSys 2016.
//     "ours" has none at all: see ours.go.
//   - "ideal" is the bound that the others are measured by.
package queue

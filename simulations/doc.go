// Package simulations is the contract of the simulator behind "beam sim": an
// Experiment runs a simulated world from Settings and gives a Result. The child
// packages are the worlds and what they share:
//
//	engine    the event queue and seeded random streams
//	trace     readers of cluster traces and the synthetic generator
//	fill      placement only: tasks arrive, nothing departs (fragmentation)
//	queue     short calls on slots: late binding, choices, stealing (latency)
//	mesh      owners and workers of package scheduler/market, message by message
//
// What decides in a simulation is the code of package scheduler, the same that
// runs in a node. A policy for comparison is a small type in the package of its
// experiment; docs/simulations.md shows how to add one.
package simulations

// Package replay runs the load that a mesh recorded through the machines again:
// to check that the scheduler is a function of its inputs, and to ask what would
// have been.
//
// The nodes keep journals (package scheduler/record). Read takes them, Verify
// feeds each into fresh machines and compares every decision. LoadOf takes out
// what the users wanted (which calls came when, how long each ran, what a
// container of the function needs) and what the machines are; Fit measures the
// links and the container starts, and Calibrate finds how they slow down under
// load; Simulate runs the load on these models through
// the same owners, workers and pools that the nodes run, with changes: a node
// less, a node more, other settings. The simulated mesh keeps journals too, so
// one function, Measure, reads both worlds.
//
// What is modelled: messages with the measured latency and container starts, which
// take their machine's processors from each other, images that are pulled once, calls that
// last as long as they did. What is not: nodes that die, calls that fail (they
// last as long, and succeed), bandwidth between nodes.
package replay

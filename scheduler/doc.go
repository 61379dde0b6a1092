// Package scheduler decides where work may run and where it runs best.
//
// It is pure: no I/O, no goroutine, no clock and no randomness. A decision is a
// function of what is passed in, all scores are integers and all ties fall in
// one canonical order (hash of the node id), so two nodes with
// the same view decide the same, and a simulation repeats from a seed.
//
// The parts:
//
//   - Demand is what one container needs, Capacity what a node has, Advert a
//     node's own statement of its capacity.
//   - Feasible says every reason why a node cannot take a demand, and whether
//     that can ever change. Allocate picks the devices.
//   - ScoreOf says how good a feasible node is, in expected milliseconds until
//     the container runs; View.Rank orders the nodes of a view by it.
//   - Mix is what the mesh was asked for lately, the measure of how fragmented a
//     node's idle GPUs are and how much a placement adds; Recent gathers it.
//   - View is an owner's picture of the mesh, corrected by what the owner has
//     asked for but not heard back about.
//
// Package gpu (below) knows GPU names; package market holds the protocol between
// owner and worker as two state machines; package replicas holds the warm
// containers and the call queue of one stub.
//
// Time, here and below, is a time.Duration on a monotonic clock of the caller's
// choosing: time.Since(processStart) in a node, virtual time in a simulation.
// Nothing in these packages is safe for concurrent use; one goroutine owns a
// machine or a view.
package scheduler

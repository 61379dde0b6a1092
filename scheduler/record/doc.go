// Package record is the journal of a node's decisions: everything that went into
// its market and pool machines, with the time, and what they decided.
//
// The machines are pure, so feeding the same events at the same times into fresh
// ones gives the same decisions: Verifier does that and counts what differs. It is
// how "the scheduler of production is the one in the simulator" is checked, and
// the source of what-if questions: who asked for what, when, and how long it ran.
//
// A journal is a file of JSON lines:
//
//	{"at":1200000,"m":"owner","in":"Submit","ev":{...},"out":["ask box2 function-1"]}
//
// at is the node's monotonic clock in nanoseconds. m is the machine: "owner",
// "worker", "pool <key>" for the pool of a stub, or "gap" where the writer could
// not keep up and lost N records. A machine begins with a Start record that
// carries its configuration; a node that restarts begins them anew.
//
// Nothing here does I/O or reads a clock. Only the functions are safe for
// concurrent use.
package record

// Package owner answers for the tasks that this node took.
//
// It is the shell around two pure machines: scheduler/market.Owner, which finds
// nodes for containers, and one scheduler/replicas.Pool per stub, which gives
// calls to them. The Owner feeds them events and carries out their actions:
//
//	Submit ─► pool ─Acquire─► market ─Ask/Award─► a worker
//	            │                └─Placed─► lease stream ─Ready─► pool
//	            └─Dispatch─► lease stream ─Ended─► pool ─Finished─► subscribers
//
// A task is journalled (fsynced) before its id is given out, and its end before
// it is told. A task whose client went away is cancelled unless it is headless.
//
// Owner is safe for concurrent use; one mutex guards both machines, and no I/O
// happens under it.
package owner

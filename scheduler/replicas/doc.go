// Package replicas keeps the warm containers of one stub and the calls that
// wait for them, as a pure state machine. It runs at the owner, above package
// market: the market finds nodes for containers, a Pool gives calls to them
// with no auction.
//
//	p := replicas.New(replicas.Config{Max: 8, KeepWarm: 30 * time.Second})
//	acts := p.Step(now, replicas.Submit{Call: replicas.Call{ID: "t1"}})
//	// Acquire{1} -> the shell submits an offer to the market
//	acts = p.Step(now, replicas.ReplicaReady{Replica: "lease-1", Node: "box2"})
//	// Dispatch{Replica: "lease-1", Call: "t1", Attempt: 1}
//	acts = p.Step(now, replicas.Result{Replica: "lease-1", Call: "t1", Attempt: 1})
//	// Finished{Call: "t1", Outcome: OK}
//
// Binding is late: a call waits here, not at a busy container, but for a small
// window that hides the round trip. A call that was sent ahead and has not begun
// is called back when another container falls idle.
//
// At most one result per (call, attempt) is accepted: one that comes from
// another replica or attempt than the current is dropped. A call may begin more
// than once (a node was lost); it finishes once.
//
// Not safe for concurrent use. The slice that Step returns is valid until the
// next Step.
package replicas

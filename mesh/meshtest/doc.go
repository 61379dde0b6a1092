// Package meshtest has an in-memory mesh for tests and the suite that every
// mesh.Mesh must pass.
//
//	net := meshtest.NewNetwork()
//	a, b := net.Join("a"), net.Join("b")
//	b.Handle("echo/1", echo)
//	a.Start(); b.Start()
//	net.Cut(a, b)  // packets vanish: MemberDown, streams break
//	net.Heal(a, b)
//
// Nodes are peers with real Ed25519 identities, so signatures are real; there
// are no sockets, no latency and no membership to redeem. Every node is a
// member from Start to Close. Events, streams, gossip and the directory keep
// the contract's promises, no more: gossip to a node that is cut off is lost.
//
// All types are safe for concurrent use, and nothing here needs real time, so
// it works inside a testing/synctest bubble.
package meshtest

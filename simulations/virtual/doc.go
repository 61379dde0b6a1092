// Package virtual joins the two machines of scheduler/market with real nodes of
// mesh/libp2p in virtual time: the scheduler's messages travel in the product's
// own protobuf form, on its own market streams, through QUIC, TLS, membership
// and gossipsub, over links with a latency. It is the middle of three worlds:
//
//	simulations/mesh     messages are function calls; 10^3 to 10^6 nodes
//	simulations/virtual  real libp2p hosts, virtual time; 10 to 1,000 nodes
//	beam dev             real processes; 2 to 30 nodes
//
// A World lives in one testing/synctest bubble:
//
//	synctest.Test(t, func(t *testing.T) {
//		w, err := virtual.New(t.Context(), virtual.Config{Nodes: 30, Dir: t.TempDir()})
//		w.Submit(0, market.Offer{ID: "a", Demand: d})
//		err = w.Await(t.Context(), func(r virtual.Report) bool { return r.Placed == 1 })
//		fmt.Println(w.Report())
//		err = w.Close()
//	})
//
// Production code: scheduler/market and the topics of package scheduler, node/link, node/marketwire and everything
// that mesh/libp2p/virtual names. Made up: containers (timers), and the small
// shell in node.go and adverts.go that stands for package node, where adverts
// and leases are tied to files, tokens and a runtime. With Config.Neighbours the
// topology is made up too: every node connects to a few of its own advert topic
// where the product would connect to 256 members by itself, and is told of the
// others there and of the owners; owners are told where everybody is. (An advert
// carries no address, so an owner could not ask a node that it has only heard of
// by gossip; and nobody passes on what a member says that he has not heard of.)
//
// A World is safe for concurrent use. Identities are random, so two runs are
// alike but not equal.
package virtual

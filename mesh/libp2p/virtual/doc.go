// Package virtual is a simulated internet for mesh/libp2p: the real nodes of a
// mesh in one process, on a network and a clock that cost nothing to wait for.
//
//	synctest.Test(t, func(t *testing.T) {
//		n := virtual.New(25*time.Millisecond, 100<<20)
//		m, err := libp2p.New(t.Context(), n.Attach(libp2p.Config{DataDir: dir}))
//		...                  // Found, Invite, Join, Handle, Start as ever
//		time.Sleep(time.Hour) // virtual: takes as long as the work in it
//		m.Close()
//		n.Close()
//	})
//
// Everything above the UDP socket is what a node runs: QUIC with TLS, the host
// and its resource limits, tickets and certificates, hello behind the gate,
// pings and re-dials, gossipsub with this project's settings, streams, the
// directory. What is not:
//
//   - UDP sockets are endpoints of simnet: a fixed latency, a rate per host and
//     direction, no loss but what the queues drop, no NAT
//   - TCP and mDNS are switched off: a real Accept or ReadFrom would stop the
//     clock of the bubble
//   - the addresses of new QUIC connections are not validated, nor counted by the
//     resource manager before their handshake
//
// Files are real: give each node a data directory of its own. Keys come from
// crypto/rand, so two runs are alike but not equal.
//
// A Network is safe for concurrent use. All of it must live in one bubble of
// testing/synctest, or in none (then it runs in real time). After the last Close
// a bubble must sleep for Linger: some goroutines of the libraries end by timers.
package virtual

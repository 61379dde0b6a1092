// Package libp2p is the mesh.Mesh that talks to a real network: a go-libp2p
// host on QUIC and TCP, a Kademlia directory, gossip, mDNS, and the membership
// rules of mesh/membership enforced below all of them.
//
// A node uses it in this order:
//
//	m, err := libp2p.New(ctx, libp2p.Config{DataDir: dir, Listen: []string{"0.0.0.0:7946"}, Name: "box1"})
//	if !m.Joined() {
//		err = m.Found(ctx)          // a mesh of one, or
//		err = m.Join(ctx, ticket)   // somebody else's mesh
//	}
//	m.Handle("ask/1", serveAsk)
//	err = m.Start(ctx)
//	ticket, err := m.Invite(ctx, libp2p.Invitation{Tier: membership.Own})
//	defer m.Close()
//
// New locks the data directory and reads or makes the identity; Found and Join
// write the membership there, so the next start needs neither, nor the founder.
//
// Until a connection has shown a valid certificate in hello it carries
// identify, ping, hello and join and nothing else; the wrapped host (gate.go)
// refuses every other stream, those of the DHT and of gossip included.
//
// Only this package and content/bitswap import libp2p. Relays, hole punching
// and tunnels are not here.
package libp2p

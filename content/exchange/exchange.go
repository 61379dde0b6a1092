// Package exchange moves the blocks of trees between nodes over byte streams.
//
// The serving side runs Server.Serve for each stream that a peer opened:
//
//	srv := exchange.NewServer(store, exchange.ServerOptions{})
//	go srv.Serve(ctx, peer, stream) // returns when the stream is over
//
// The fetching side asks one or more peers that hold a root:
//
//	f := exchange.NewFetcher(store, opener, exchange.FetcherOptions{})
//	res, err := f.Fetch(ctx, root, []string{"peerA", "peerB"}, progress)
//
// Each block is verified by its hash before it is stored. What was stored
// stays when a fetch fails, so the next one goes on from there, and a node
// that is still fetching serves what it has. frame.go has the wire format.
//
// Prefetch brings a tree before anybody asks for it: it stands back for every
// Fetch, and a Fetch of the same root joins it.
//
// Server and Fetcher are safe for concurrent use. They know no network, no
// membership and no policy: the node opens the streams and decides who may.
package exchange

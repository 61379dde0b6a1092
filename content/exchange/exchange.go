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
// Server and Fetcher are safe for concurrent use.
package exchange

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/beammesh/beammesh/content"
)

// ServerOptions bounds what peers may use. Zero fields take the defaults.
type ServerOptions struct {
	StreamsPerPeer int           // default 4
	Streams        int           // default 64
	WindowBytes    int64         // unconfirmed bytes per stream, at most; default 16 MiB
	IdleTimeout    time.Duration // no request and no credit for so long ends a stream; default 60 s
	// Allow refuses a request by returning an error; nil allows every peer.
	Allow func(peer string, root content.Root) error
	Log   *slog.Logger
}

// FetcherOptions bounds a fetch. Zero fields take the defaults.
type FetcherOptions struct {
	SourcesPerFetch int           // streams open at once for one root; default 4
	WindowBytes     int64         // bytes asked for and not stored yet, per source; default 8 MiB
	StallTimeout    time.Duration // no bytes for so long drops a source; default 10 s
	OpenTimeout     time.Duration // for Opener; default 10 s
	MaxCorrupt      int           // bad blocks before a source is dropped; default 3
	Log             *slog.Logger
}

// Result is what a fetch did.
type Result struct {
	Bytes    int64                  // block bytes received and stored
	Blocks   int64                  // blocks received and stored
	Present  int64                  // bytes that were here before
	Sources  map[string]SourceStats // by peer
	Duration time.Duration
}

// SourceStats is one source's share in a fetch.
type SourceStats struct {
	Bytes, Blocks int64
	Corrupt       int64  // blocks that did not match their hash
	Lacked        int64  // blocks the source did not have
	Dropped       string // why it was given up; "" while it is good
}

// PeerCounters counts one peer's traffic since start.
type PeerCounters struct {
	BytesIn, BytesOut   int64
	BlocksIn, BlocksOut int64
	Corrupt             int64 // bad blocks from this peer
	Retries             int64 // blocks asked for again elsewhere
	Stalls              int64
}

// Metrics is a copy of the counters. Peers beyond the first 256 are summed
// under "other".
type Metrics struct {
	Peers map[string]PeerCounters
	Total PeerCounters
}

var _ io.Closer = io.ReadWriteCloser(nil)
var _ context.Context

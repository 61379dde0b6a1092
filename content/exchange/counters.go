package exchange

import (
	"maps"
	"sync"
)

// PeerCounters counts one peer's traffic since start.
type PeerCounters struct {
	BytesIn, BytesOut   int64 // of blocks
	BlocksIn, BlocksOut int64
	Corrupt             int64 // bad blocks from this peer
	Retries             int64 // blocks that had to be asked for elsewhere because of this peer
	Lacked              int64 // blocks this peer did not have for us, or we for it
	Drops               int64 // times it was given up as a source
	Refused             int64 // streams of this peer we did not serve
}

func (c *PeerCounters) add(d PeerCounters) {
	c.BytesIn += d.BytesIn
	c.BytesOut += d.BytesOut
	c.BlocksIn += d.BlocksIn
	c.BlocksOut += d.BlocksOut
	c.Corrupt += d.Corrupt
	c.Retries += d.Retries
	c.Lacked += d.Lacked
	c.Drops += d.Drops
	c.Refused += d.Refused
}

// Metrics is a copy of the counters. Peers beyond the first 256 are summed
// under "other".
type Metrics struct {
	Peers map[string]PeerCounters
	Total PeerCounters
}

const (
	maxPeers   = 256
	otherPeers = "other"
)

type counters struct {
	mu    sync.Mutex
	peers map[string]PeerCounters
	total PeerCounters
}

func (c *counters) add(peer string, d PeerCounters) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total.add(d)
	if c.peers == nil {
		c.peers = map[string]PeerCounters{}
	}
	p, ok := c.peers[peer]
	if !ok && len(c.peers) >= maxPeers {
		peer = otherPeers
		p = c.peers[peer]
	}
	p.add(d)
	c.peers[peer] = p
}

func (c *counters) metrics() Metrics {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Metrics{Peers: maps.Clone(c.peers), Total: c.total}
}

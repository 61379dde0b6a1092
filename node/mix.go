package node

import (
	"context"
	"sync"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/node/marketwire"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
)

const (
	topicMix = "mix"
	// mixEvery bounds how often a node reports what it placed, and how often its
	// machines get a new mix: each change ranks all nodes anew.
	mixEvery = 15 * time.Second
)

// mixer keeps the mix of the mesh's recent demands, by which GPUs are packed:
// what this node's owner asks for, and what the others report by gossip.
type mixer struct {
	clock   func() time.Duration
	set     func([]scheduler.Weighted) // into both machines
	publish func(context.Context, []byte)
	change  chan struct{} // one token: there is news

	mu     sync.Mutex
	recent scheduler.Recent
}

func (m *mixer) news() {
	select {
	case m.change <- struct{}{}:
	default:
	}
}

// observe counts a container that this node's owner asks for. It does not block.
func (m *mixer) observe(d scheduler.Demand) {
	m.mu.Lock()
	m.recent.Observe(m.clock(), &d)
	m.mu.Unlock()
	m.news()
}

// heard takes a peer's report.
func (m *mixer) heard(_ mesh.PeerID, data []byte) {
	told, err := marketwire.MixIn(data)
	if err != nil || len(told) == 0 {
		return
	}
	m.mu.Lock()
	m.recent.Merge(m.clock(), told)
	m.mu.Unlock()
	m.news()
}

// run reports and applies what changed, until ctx ends.
func (m *mixer) run(ctx context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-m.change:
		case <-ctx.Done():
			return
		}
		m.mu.Lock()
		told, mix := m.recent.Take(), m.recent.Mix()
		m.mu.Unlock()
		m.set(mix.Shapes())
		if len(told) > 0 {
			if b, err := marketwire.MixOut(told, mesh.MaxGossip-signatureRoom); err == nil {
				m.publish(ctx, b)
			}
		}
		pause.Reset(mixEvery)
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) setMix(shapes []scheduler.Weighted) {
	n.owner.Step(market.SetMix{Shapes: shapes})
	if n.worker != nil {
		n.worker.Step(market.SetMix{Shapes: shapes}, nil)
	}
}

func (n *Node) publishMix(ctx context.Context, b []byte) {
	if n.cfg.NoGossip {
		return
	}
	if err := n.mesh.Publish(ctx, topicMix, b); err != nil && ctx.Err() == nil {
		n.log.Debug("gossip the mix", "err", err)
	}
}

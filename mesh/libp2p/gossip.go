package libp2p

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsubpb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/beammesh/beammesh/mesh"
)

// Bounds of gossip.
const (
	maxTopics       = 1024 // topics this node takes part in, and a peer may name at once
	maxTopicName    = 256
	gossipBuffer    = 256      // messages a slow subscriber may lag; older ones are lost
	maxGossipRPC    = 64 << 10 // one frame between two peers: many messages
	gossipPeerQueue = 128      // frames waiting for one peer
)

// gossip is gossipsub over the gate: members only, every message signed by its
// author, at most mesh.MaxGossip bytes.
type gossip struct {
	m  *Mesh
	ps *pubsub.PubSub // nil when switched off

	mu     sync.Mutex
	topics map[string]*topic
}

type topic struct {
	t    *pubsub.Topic
	subs int
}

func (g *gossip) start(m *Mesh) error {
	g.m, g.topics = m, map[string]*topic{}
	if m.cfg.NoGossip {
		return nil
	}
	var err error
	g.ps, err = pubsub.NewGossipSub(m.ctx, m.gate, append([]pubsub.Option{
		pubsub.WithMessageSignaturePolicy(pubsub.StrictSign),
		pubsub.WithMaxMessageSize(maxGossipRPC),
		pubsub.WithPeerOutboundQueueSize(gossipPeerQueue),
		pubsub.WithDefaultValidator(g.validate, pubsub.WithValidatorInline(true)),
		pubsub.WithSubscriptionFilter(topicLimit{}),
		pubsub.WithLogger(slog.New(slog.DiscardHandler)),
		pubsub.WithRPCLogger(slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.Level(100)})))},
		m.cfg.GossipOptions...)...)
	return err
}

// validate runs on every message before it is delivered or passed on. Its author
// need not be the neighbour that it comes from, and only the neighbour stands
// behind the gate: what a member hands on of somebody who is none, or of a
// denied one, is dropped. Whom this node has not met yet says it again.
func (g *gossip) validate(_ context.Context, _ peer.ID, msg *pubsub.Message) pubsub.ValidationResult {
	if len(msg.Data) > mesh.MaxGossip {
		return pubsub.ValidationReject
	}
	author := mesh.PeerID(msg.GetFrom().String())
	if _, denied := g.m.cfg.Deny(author); denied {
		return pubsub.ValidationIgnore
	}
	if !g.m.table.speaks(author, g.m.cfg.Clock(), g.m.cfg.WantConnected) && !g.m.gate.member(author) {
		return pubsub.ValidationIgnore
	}
	return pubsub.ValidationAccept
}

// topicLimit bounds what a peer's subscriptions can make us remember.
type topicLimit struct{}

func (topicLimit) CanSubscribe(t string) bool { return len(t) <= maxTopicName }

func (topicLimit) FilterIncomingSubscriptions(_ peer.ID, subs []*pubsubpb.RPC_SubOpts) ([]*pubsubpb.RPC_SubOpts, error) {
	if len(subs) > maxTopics {
		return nil, pubsub.ErrTooManySubscriptions
	}
	return pubsub.FilterSubscriptions(subs, func(t string) bool { return len(t) <= maxTopicName }), nil
}

// topicLocked joins a topic or gives the joined one.
func (g *gossip) topicLocked(name string) (*topic, error) {
	if t := g.topics[name]; t != nil {
		return t, nil
	}
	if name == "" || len(name) > maxTopicName || len(g.topics) >= maxTopics {
		return nil, fmt.Errorf("name of %d bytes (1 to %d), %d topics (at most %d)", len(name), maxTopicName, len(g.topics), maxTopics)
	}
	pt, err := g.ps.Join(name)
	if err != nil {
		return nil, err
	}
	t := &topic{t: pt}
	g.topics[name] = t
	return t, nil
}

// Publish is mesh.Gossip's.
func (m *Mesh) Publish(ctx context.Context, name string, data []byte) error {
	g := &m.gossip
	if err := m.usable(); err != nil {
		return fmt.Errorf("publish on %s: %w", name, err)
	}
	switch {
	case g.ps == nil:
		return fmt.Errorf("publish on %s: gossip: %w", name, mesh.ErrDisabled)
	case len(data) > mesh.MaxGossip:
		return fmt.Errorf("publish on %s: %d bytes: %w", name, len(data), mesh.ErrTooLarge)
	}
	g.mu.Lock()
	t, err := g.topicLocked(name)
	g.mu.Unlock()
	if err == nil {
		err = t.t.Publish(ctx, data)
	}
	if err != nil {
		return fmt.Errorf("publish on %s: %w", name, err)
	}
	return nil
}

// Subscribe is mesh.Gossip's.
func (m *Mesh) Subscribe(name string, fn func(from mesh.PeerID, data []byte)) (cancel func(), err error) {
	g := &m.gossip
	if err := m.usable(); err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", name, err)
	}
	if g.ps == nil {
		return nil, fmt.Errorf("subscribe to %s: gossip: %w", name, mesh.ErrDisabled)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	t, err := g.topicLocked(name)
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", name, err)
	}
	sub, err := t.t.Subscribe(pubsub.WithBufferSize(gossipBuffer))
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", name, err)
	}
	t.subs++
	ctx, stop := context.WithCancel(m.ctx)
	m.spawn(func() {
		for {
			msg, err := sub.Next(ctx)
			if err != nil {
				return
			}
			if from := mesh.PeerID(msg.GetFrom().String()); from != m.self {
				fn(from, msg.Data)
			}
		}
	})
	var once sync.Once
	return func() {
		once.Do(func() {
			stop()
			sub.Cancel()
			g.mu.Lock()
			defer g.mu.Unlock()
			if t.subs--; t.subs == 0 && m.ctx.Err() == nil {
				// Close fails while a publish uses the topic; then it stays joined.
				if t.t.Close() == nil && g.topics[name] == t {
					delete(g.topics, name)
				}
			}
		})
	}, nil
}

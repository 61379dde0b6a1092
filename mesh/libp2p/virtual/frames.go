package virtual

import (
	"sync"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/beammesh/beammesh/mesh/libp2p"
)

// Frames counts what gossip costs: a frame is one message on one link, a first
// delivery or a duplicate. One Frames may watch many nodes.
type Frames struct {
	mu     sync.Mutex
	topics map[string]int
}

// Watch gives cfg a tracer that counts the frames that its node receives.
func (f *Frames) Watch(cfg libp2p.Config) libp2p.Config {
	cfg.GossipOptions = append(cfg.GossipOptions, pubsub.WithRawTracer(tracer{f}))
	return cfg
}

// Of is the number of frames of a topic so far.
func (f *Frames) Of(topic string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.topics[topic]
}

// Total is the number of frames of all topics whose name match accepts.
func (f *Frames) Total(match func(topic string) bool) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for topic, k := range f.topics {
		if match(topic) {
			n += k
		}
	}
	return n
}

// tracer is pubsub's RawTracer; only RecvRPC matters.
type tracer struct{ f *Frames }

func (t tracer) RecvRPC(rpc *pubsub.RPC) {
	t.f.mu.Lock()
	defer t.f.mu.Unlock()
	if t.f.topics == nil {
		t.f.topics = map[string]int{}
	}
	for _, m := range rpc.GetPublish() {
		t.f.topics[m.GetTopic()]++
	}
}

func (tracer) OnNewOutboundStream(peer.ID, protocol.ID) {}
func (tracer) OnClosedOutboundStream(peer.ID)           {}
func (tracer) Join(string)                              {}
func (tracer) Leave(string)                             {}
func (tracer) Graft(peer.ID, string)                    {}
func (tracer) Prune(peer.ID, string)                    {}
func (tracer) ValidateMessage(*pubsub.Message)          {}
func (tracer) DeliverMessage(*pubsub.Message)           {}
func (tracer) RejectMessage(*pubsub.Message, string)    {}
func (tracer) DuplicateMessage(*pubsub.Message)         {}
func (tracer) ThrottlePeer(peer.ID)                     {}
func (tracer) SendRPC(*pubsub.RPC, peer.ID)             {}
func (tracer) DropRPC(*pubsub.RPC, peer.ID)             {}
func (tracer) UndeliverableMessage(*pubsub.Message)     {}

package libp2p

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/network"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/libp2p/go-libp2p/x/rate"
)

// Limits of one host. The library's defaults are made for a public network of
// strangers (75 streams a peer, 16 new connections a minute from one address);
// here every peer with streams has shown a certificate, so a member may hold
// thousands, and whole labs sit behind one address. What strangers can reach is
// bounded in gate.go and hello.go instead.
const (
	limitConns          = 4096 // connections, both directions
	limitConnsFromIP    = 256  // from one IPv4 address or IPv6 /56
	limitConnsPerPeer   = 32
	limitHalfOpen       = 512 // connections still shaking hands
	limitStreams        = 128 << 10
	limitStreamsPerPeer = 32 << 10
	limitMemory         = 2 << 30 // accounted buffers, not a reservation
	limitFD             = 8192
)

func resourceManager() (network.ResourceManager, error) {
	streams := func(n int) rcmgr.ResourceLimits {
		return rcmgr.ResourceLimits{Streams: rcmgr.LimitVal(n), StreamsInbound: rcmgr.LimitVal(n), StreamsOutbound: rcmgr.LimitVal(n),
			Conns: limitConns, ConnsInbound: limitConns, ConnsOutbound: limitConns, FD: limitFD, Memory: limitMemory}
	}
	peer := streams(limitStreamsPerPeer)
	peer.Conns, peer.ConnsInbound, peer.ConnsOutbound = limitConnsPerPeer, limitConnsPerPeer, limitConnsPerPeer
	transient := streams(4096)
	transient.Conns, transient.ConnsInbound, transient.ConnsOutbound = limitHalfOpen, limitHalfOpen, limitHalfOpen
	open := streams(16) // identify and ping are open to strangers
	limits := rcmgr.PartialLimitConfig{
		System:               streams(limitStreams),
		Transient:            transient,
		AllowlistedSystem:    streams(limitStreams),
		AllowlistedTransient: transient,
		ServiceDefault:       streams(limitStreams),
		ServicePeerDefault:   streams(limitStreamsPerPeer),
		ServicePeer:          map[string]rcmgr.ResourceLimits{identify.ServiceName: open, ping.ServiceName: open},
		ProtocolDefault:      streams(limitStreams),
		ProtocolPeerDefault:  streams(limitStreamsPerPeer),
		PeerDefault:          peer,
		Conn:                 streams(limitStreamsPerPeer),
		Stream:               streams(1),
	}.Build(rcmgr.InfiniteLimits)

	perIP := func(bits int) rcmgr.ConnLimitPerSubnet {
		return rcmgr.ConnLimitPerSubnet{PrefixLength: bits, ConnCount: limitConnsFromIP}
	}
	attempts := rate.Limit{RPS: 20, Burst: 2 * limitConnsFromIP}
	rm, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits), rcmgr.WithMetricsDisabled(),
		rcmgr.WithLimitPerSubnet([]rcmgr.ConnLimitPerSubnet{perIP(32)}, []rcmgr.ConnLimitPerSubnet{perIP(56)}),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: nil,
			SubnetRateLimiter: rate.SubnetLimiter{
				IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: attempts}},
				IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 56, Limit: attempts}},
			}}))
	if err != nil {
		return nil, fmt.Errorf("resource manager: %w", err)
	}
	return rm, nil
}

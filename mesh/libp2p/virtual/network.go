package virtual

import (
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"sync"
	"time"

	golibp2p "github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/marcopolo/simnet"
	"github.com/quic-go/quic-go"
	"go.uber.org/fx"

	"github.com/beammesh/beammesh/mesh/libp2p"
)

// Linger is how long a bubble sleeps after everything was closed.
const Linger = 2 * time.Minute

// listenPort is where every host listens; dialPort is the first that it dials
// from before it listens.
const (
	listenPort = 8000
	dialPort   = 20000
)

// never is longer than any simulation: the latency of a host that went silent.
const never = math.MaxInt32 * time.Second

// Network is a simulated internet. Each host has one public IPv4 address.
type Network struct {
	sim  *simnet.Simnet
	link simnet.NodeBiDiLinkSettings

	mu     sync.Mutex
	hosts  int
	silent map[netip.Addr]bool
}

// New makes a network that is latency from any host to any other, one way, where
// every host sends and receives bitsPerSecond at most.
func New(latency time.Duration, bitsPerSecond int) *Network {
	link := simnet.LinkSettings{BitsPerSecond: bitsPerSecond}
	n := &Network{link: simnet.NodeBiDiLinkSettings{Downlink: link, Uplink: link}, silent: map[netip.Addr]bool{}}
	n.sim = &simnet.Simnet{Logger: slog.New(slog.DiscardHandler), LatencyFunc: func(p *simnet.Packet) time.Duration {
		if n.dropped(p) {
			return never
		}
		return latency
	}}
	n.sim.Start()
	return n
}

func (n *Network) dropped(p *simnet.Packet) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, end := range []net.Addr{p.From, p.To} {
		if n.silent[addrOf(end)] {
			return true
		}
	}
	return false
}

func addrOf(a net.Addr) netip.Addr {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.Addr{}
	}
	return u.AddrPort().Addr().Unmap()
}

// Attach gives cfg a new host of the network to run on.
func (n *Network) Attach(cfg libp2p.Config) libp2p.Config {
	n.mu.Lock()
	ip := simnet.IntToPublicIPv4(n.hosts)
	n.hosts++
	n.mu.Unlock()
	cfg.Listen = []string{fmt.Sprintf("%s:%d", ip, listenPort)}
	cfg.NoTCP, cfg.NoMDNS = true, true
	h := &host{net: n, ip: ip}
	cfg.HostOptions, cfg.Simulated = append(cfg.HostOptions, h.quic()), true
	return cfg
}

// Silence makes packets from and to the host of an attached cfg vanish, as when
// its cable is pulled or its process killed.
func (n *Network) Silence(cfg libp2p.Config) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, text := range cfg.Listen {
		if ap, err := netip.ParseAddrPort(text); err == nil {
			n.silent[ap.Addr().Unmap()] = true
		}
	}
}

// Close ends the network; close what runs on it first.
func (n *Network) Close() { n.sim.Close() }

// host is one machine's UDP.
type host struct {
	net *Network
	ip  net.IP

	mu     sync.Mutex
	dialed int
}

// listen makes a socket. QUIC asks for no particular address when it dials
// before it listens: such a socket gets the host's own and a port of its own.
func (h *host) listen(_ string, at *net.UDPAddr) (net.PacketConn, error) {
	own := &net.UDPAddr{IP: h.ip, Port: at.Port}
	if own.Port == 0 {
		h.mu.Lock()
		own.Port = dialPort + h.dialed
		h.dialed++
		h.mu.Unlock()
	}
	h.net.mu.Lock() // simnet's list of endpoints has no lock
	defer h.net.mu.Unlock()
	return h.net.sim.NewEndpoint(own, h.net.link), nil
}

// PreferredSourceIPForDestination is quicreuse.SourceIPSelector's.
func (h *host) PreferredSourceIPForDestination(*net.UDPAddr) (net.IP, error) { return h.ip, nil }

// quic is the option that puts QUIC on the host's sockets.
func (h *host) quic() golibp2p.Option {
	manager := func(life fx.Lifecycle, reset quic.StatelessResetKey, token quic.TokenGeneratorKey, opts ...quicreuse.Option) (*quicreuse.ConnManager, error) {
		m, err := quicreuse.NewConnManager(reset, token, opts...)
		if err == nil {
			life.Append(fx.StopHook(m.Close)) // the library closes only a manager of its own making
		}
		return m, err
	}
	return golibp2p.QUICReuse(manager, quicreuse.OverrideListenUDP(h.listen),
		quicreuse.OverrideSourceIPSelector(func() (quicreuse.SourceIPSelector, error) { return h, nil }))
}

package libp2p

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	golibp2p "github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/p2p/transport/tcpreuse"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/beammesh/beammesh/proto/fault"
)

// newHost builds the libp2p host without listening yet: handlers go in first.
func (m *Mesh) newHost() (host.Host, error) {
	key, err := crypto.UnmarshalEd25519PrivateKey(m.key)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	rm, err := resourceManager()
	if err != nil {
		return nil, err
	}
	opts := []golibp2p.Option{
		golibp2p.Identity(key),
		golibp2p.NoListenAddrs,
		golibp2p.ResourceManager(rm),
		// The library's own manager cuts connections above 192 down to 160 every
		// minute, in the middle of calls; resourceManager has the bounds here.
		golibp2p.ConnectionManager(connmgr.NullConnMgr{}),
		golibp2p.ConnectionGater(gater{m}),
		golibp2p.DisableRelay(),
		golibp2p.DisableMetrics(),
		golibp2p.DisableIdentifyAddressDiscovery(),
		golibp2p.AddrsFactory(m.announced),
		golibp2p.UserAgent("beammesh/" + m.cfg.Version),
		golibp2p.Security(libp2ptls.ID, libp2ptls.New),
		golibp2p.Security(noise.ID, noise.New),
		// A mesh may live on a network without UDP or IPv6 and must notice when
		// that changes: never stop trying because of past failures.
		golibp2p.SwarmOpts(swarm.WithUDPBlackHoleSuccessCounter(nil), swarm.WithIPv6BlackHoleSuccessCounter(nil)),
	}
	if !m.cfg.NoTCP {
		opts = append(opts, golibp2p.Transport(func(u transport.Upgrader, rm network.ResourceManager, shared *tcpreuse.ConnMgr) (*besideTCP, error) {
			t, err := tcp.NewTCPTransport(u, rm, shared)
			if err != nil {
				return nil, err
			}
			m.tcp = newBeside(t)
			return &besideTCP{m.tcp, t}, nil
		}))
	}
	if !m.cfg.NoQUIC {
		opts = append(opts, golibp2p.Transport(func(k crypto.PrivKey, cm *quicreuse.ConnManager, psk pnet.PSK, g connmgr.ConnectionGater, rm network.ResourceManager) (*beside, error) {
			t, err := quic.NewTransport(k, cm, psk, g, rm)
			if err != nil {
				return nil, err
			}
			named, ok := t.(namedTransport)
			if !ok {
				return nil, fmt.Errorf("QUIC transport %T has no name", t)
			}
			m.quic = newBeside(named)
			return m.quic, nil
		}))
	}
	h, err := golibp2p.New(append(opts, m.cfg.HostOptions...)...)
	if err != nil {
		rm.Close()
		return nil, fmt.Errorf("make libp2p host: %w", err)
	}
	return h, nil
}

// listen opens the configured addresses. For port 0 one port is chosen that is
// free on TCP and UDP, last time's first, so that members who remember us find
// us again.
func (m *Mesh) listen() error {
	chosen := m.store.port()
	for _, text := range m.cfg.Listen {
		ap := netip.MustParseAddrPort(text) // checked by Config.complete
		tries := []int{int(ap.Port())}
		if ap.Port() == 0 {
			tries = []int{chosen, 0, 0, 0, 0, 0, 0, 0}
			if chosen == 0 {
				tries = tries[1:]
			}
		}
		var err error
		for _, port := range tries {
			var got int
			if got, err = m.listenOn(ap.Addr(), port); err == nil {
				if ap.Port() == 0 {
					chosen = got
				}
				break
			}
		}
		if err != nil && ap.Addr().Is6() && ap.Addr().IsUnspecified() && len(m.cfg.Listen) > 1 {
			m.log.Info("no IPv6 on this machine", "err", err) // the default listens on both families
			continue
		}
		if err != nil {
			return fault.Wrap(fault.Conflict, err, "cannot listen on "+text,
				"another program may use the port: see 'ss -lntup', or choose another with --listen")
		}
	}
	if chosen != m.store.port() {
		if err := m.store.write(filePort, fmt.Appendf(nil, "%d\n", chosen)); err != nil {
			return fmt.Errorf("store listen port: %w", err)
		}
	}
	return nil
}

// listenOn opens one address on the transports in use and gives the port.
func (m *Mesh) listenOn(ip netip.Addr, port int) (int, error) {
	family := "ip4"
	if ip.Is6() {
		family = "ip6"
	}
	at := func(kind string, port int) ma.Multiaddr {
		return ma.StringCast(fmt.Sprintf("/%s/%s/"+kind, family, ip, port))
	}
	var tcpAddr ma.Multiaddr
	if !m.cfg.NoTCP {
		before := m.host.Network().ListenAddresses()
		tcpAddr = at("tcp/%d", port)
		if err := m.host.Network().Listen(tcpAddr); err != nil {
			return 0, err
		}
		if port == 0 {
			tcpAddr, port = newPort(before, m.host.Network().ListenAddresses())
		}
	}
	if !m.cfg.NoQUIC {
		before := m.host.Network().ListenAddresses()
		if err := m.host.Network().Listen(at("udp/%d/quic-v1", port)); err != nil {
			if tcpAddr != nil {
				if s, ok := m.host.Network().(*swarm.Swarm); ok {
					s.ListenClose(tcpAddr)
				}
			}
			return 0, err
		}
		if port == 0 {
			_, port = newPort(before, m.host.Network().ListenAddresses())
		}
	}
	return port, nil
}

// newPort finds the listen address that was not there before.
func newPort(before, after []ma.Multiaddr) (ma.Multiaddr, int) {
	for _, a := range after {
		if !ma.Contains(before, a) {
			if ap, ok := addrPort(a); ok {
				return a, int(ap.Port())
			}
		}
	}
	return nil, 0
}

// addrPort is the ip and port at the start of a.
func addrPort(a ma.Multiaddr) (netip.AddrPort, bool) {
	na, err := manet.ToNetAddr(a)
	if err != nil {
		// manet knows /quic-v1 only without its last part
		first, _ := ma.SplitFunc(a, func(c ma.Component) bool { return c.Protocol().Code == ma.P_QUIC_V1 })
		if na, err = manet.ToNetAddr(first); err != nil {
			return netip.AddrPort{}, false
		}
	}
	ap, err := netip.ParseAddrPort(na.String())
	return ap, err == nil
}

// ifaces caches which local addresses may be announced: the address factory is
// asked often and every answer is a netlink dump.
type ifaces struct {
	mu     sync.Mutex
	at     time.Time
	barred map[netip.Addr]bool // every local address: whether it must stay here
}

const ifacesFresh = 5 * time.Second

// blocked judges the local addresses. Those of own that it has not seen yet
// make it look again: the node's bridge comes up right before it announces.
func (c *ifaces) blocked(use func(net.Interface) bool, own []netip.Addr) map[netip.Addr]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh := c.barred != nil && time.Since(c.at) < ifacesFresh
	for _, ip := range own {
		if _, known := c.barred[ip]; !known && !ip.IsUnspecified() {
			fresh = false
		}
	}
	if fresh {
		return c.barred
	}
	barred := map[netip.Addr]bool{}
	all, _ := net.Interfaces()
	for _, i := range all {
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				ip := p.Addr().Unmap()
				barred[ip] = barred[ip] || !use(i)
			}
		}
	}
	for _, ip := range own {
		if _, known := barred[ip]; !known {
			barred[ip] = false // of no interface after all: looked for once, not at every question
		}
	}
	c.barred, c.at = barred, time.Now()
	return barred
}

// announced is libp2p's address factory: what we tell others. Addresses of
// barred interfaces never leave; loopback and link-local ones only when there
// is nothing else (a mesh on one machine without a network).
func (m *Mesh) announced(own []ma.Multiaddr) []ma.Multiaddr {
	var ips []netip.Addr
	for _, a := range own {
		if ap, ok := addrPort(a); ok {
			ips = append(ips, ap.Addr().Unmap().WithZone(""))
		}
	}
	barred := m.ifaces.blocked(m.cfg.Interface, ips)
	var good, local []ma.Multiaddr
	for _, a := range own {
		ap, ok := addrPort(a)
		switch ip := ap.Addr().Unmap(); {
		case !ok || ip.IsUnspecified() || barred[ip.WithZone("")]:
		case ip.IsLoopback() || ip.IsLinkLocalUnicast():
			local = append(local, a)
		default:
			good = append(good, a)
		}
	}
	for _, text := range m.cfg.Announce {
		ap := netip.MustParseAddrPort(text)
		family := "ip4"
		if ap.Addr().Is6() {
			family = "ip6"
		}
		if !m.cfg.NoQUIC {
			good = append(good, ma.StringCast(fmt.Sprintf("/%s/%s/udp/%d/quic-v1", family, ap.Addr(), ap.Port())))
		}
		if !m.cfg.NoTCP {
			good = append(good, ma.StringCast(fmt.Sprintf("/%s/%s/tcp/%d", family, ap.Addr(), ap.Port())))
		}
	}
	if len(good) == 0 {
		good = local
	}
	return ma.Unique(good)
}

// addrs are our announced addresses right now. The host's own list follows a
// moment after listening begins, too late for the first hello.
func (m *Mesh) addrs() []ma.Multiaddr {
	type listener interface {
		InterfaceListenAddresses() ([]ma.Multiaddr, error)
	}
	own, err := m.host.Network().(listener).InterfaceListenAddresses()
	if err != nil {
		m.log.Warn("cannot list own addresses", "err", err)
	}
	return m.announced(own)
}

func (m *Mesh) addrTexts(limit int) []string {
	var out []string
	for _, a := range m.addrs() {
		if len(out) < limit {
			out = append(out, a.String())
		}
	}
	return out
}

func encodeAddrs(texts []string) [][]byte {
	var out [][]byte
	for _, t := range texts {
		if a, err := ma.NewMultiaddr(t); err == nil && len(out) < maxAddrs {
			out = append(out, a.Bytes())
		}
	}
	return out
}

// decodeAddrs reads what a peer sent; bad and surplus entries are dropped.
func decodeAddrs(in [][]byte) []string {
	var out []string
	for _, b := range in {
		if len(b) > 256 || len(out) >= maxAddrs {
			continue
		}
		if a, err := ma.NewMultiaddrBytes(b); err == nil && !strings.Contains(a.String(), "/p2p-circuit") {
			out = append(out, a.String())
		}
	}
	return out
}

func parseAddrs(texts []string) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, t := range texts {
		if a, err := ma.NewMultiaddr(t); err == nil {
			out = append(out, a)
		}
	}
	return out
}

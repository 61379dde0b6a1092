package libp2p

import (
	"context"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/zeroconf/v2"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/membership"
)

// mDNS finds members on the same network segment without any address. The
// service label is "_beam-" and the mesh id, 15 characters: one more and
// responders drop it silently.
//
// What is found is a hint like any other: the peer is dialled and must prove
// itself in hello.
const (
	mdnsDomain = "local."
	// mdnsAgain is how often the interfaces are looked at again: laptops change
	// networks, and the library binds to the interfaces of the start.
	mdnsAgain  = time.Minute
	mdnsText   = "a=" // a TXT record: one multiaddr with /p2p/
	maxText    = 200  // bytes of one record
	maxRecord  = 8    // records announced and read
	mdnsBuffer = 64   // answers waiting to be looked at
)

func (m *Mesh) mdnsService() string { return "_beam-" + m.ID() + "._udp" }

// keepFindable announces and browses on the allowed interfaces, again whenever
// they or our addresses change.
func (m *Mesh) keepFindable() {
	for {
		ifs, state := m.mdnsState()
		ctx, cancel := context.WithCancel(m.ctx)
		stop := func() {}
		if len(ifs) > 0 {
			stop = m.mdnsRun(ctx, ifs)
		}
		same := true
		for same && m.rest(mdnsAgain, nil) {
			_, now := m.mdnsState()
			same = slices.Equal(now, state)
		}
		cancel()
		stop()
		if m.ctx.Err() != nil {
			return
		}
	}
}

// mdnsState is the interfaces to use and everything that, changed, asks for a
// fresh start.
func (m *Mesh) mdnsState() (ifs []net.Interface, state []string) {
	all, err := net.Interfaces()
	if err != nil {
		m.log.Warn("cannot list network interfaces", "err", err)
	}
	for _, i := range all {
		if mdnsInterface(i) && m.cfg.Interface(i) {
			ifs = append(ifs, i)
			state = append(state, i.Name)
		}
	}
	return ifs, append(state, m.addrTexts(maxAddrs)...)
}

// mdnsRun starts one round; stop waits for its end.
func (m *Mesh) mdnsRun(ctx context.Context, ifs []net.Interface) (stop func()) {
	texts, ips := m.mdnsTexts()
	if len(ips) == 0 {
		return func() {}
	}
	// Port and host only satisfy the record format; the texts count.
	server, err := zeroconf.RegisterProxy(string(m.self)[len(m.self)-32:], m.mdnsService(), mdnsDomain, 4001,
		string(m.self)[len(m.self)-32:], ips, texts, ifs)
	if err != nil {
		m.log.Info("mDNS is not available", "err", err)
		return func() {}
	}
	entries := make(chan *zeroconf.ServiceEntry, mdnsBuffer)
	browsed := make(chan struct{})
	go func() {
		defer close(browsed)
		if err := zeroconf.Browse(ctx, m.mdnsService(), mdnsDomain, entries, zeroconf.SelectIfaces(ifs)); err != nil && ctx.Err() == nil {
			m.log.Info("mDNS browsing ended", "err", err)
		}
	}()
	read := make(chan struct{})
	go func() {
		defer close(read)
		for {
			select {
			case e, ok := <-entries:
				if !ok {
					return
				}
				m.mdnsFound(e.Text)
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		server.Shutdown()
		<-browsed
		<-read
	}
}

// mdnsTexts are our TXT records and plain addresses.
func (m *Mesh) mdnsTexts() (texts, ips []string) {
	for _, a := range m.addrs() {
		ap, ok := addrPort(a)
		if t := mdnsText + a.String() + "/p2p/" + string(m.self); ok && len(t) <= maxText && len(texts) < maxRecord {
			texts = append(texts, t)
			if ip := ap.Addr().String(); !slices.Contains(ips, ip) {
				ips = append(ips, ip)
			}
		}
	}
	return texts, ips
}

// mdnsFound takes one answer from the network.
func (m *Mesh) mdnsFound(texts []string) {
	found := map[mesh.PeerID][]string{}
	for _, t := range texts[:min(len(texts), maxRecord)] {
		rest, ok := strings.CutPrefix(t, mdnsText)
		if !ok || len(rest) > maxText {
			continue
		}
		a, err := ma.NewMultiaddr(rest)
		if err != nil {
			continue
		}
		id, err := a.ValueForProtocol(ma.P_P2P)
		if err != nil {
			continue
		}
		peer := mesh.PeerID(id)
		if _, err := membership.KeyOf(peer); err == nil {
			found[peer] = append(found[peer], strings.TrimSuffix(rest, "/p2p/"+id))
		}
	}
	for p, addrs := range found {
		if p != m.self {
			m.table.learn(p, "", "", addrs, mesh.ViaMDNS, m.cfg.Clock())
			m.table.retry(p, m.cfg.Clock())
		}
	}
}

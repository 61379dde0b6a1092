package network

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	maxQueries          = 512 // in flight for the node
	maxQueriesPerSource = 64  // so that one container does not take them all
	upstreamTimeout     = 3 * time.Second
	resolvConf          = "/etc/resolv.conf"
)

// forwarder answers containers' DNS queries by asking the machine's servers.
// Containers cannot reach those themselves when they are private.
type forwarder struct {
	port     uint16
	upstream []string // none = /etc/resolv.conf
	blocked  func(netip.Addr) bool
	log      *slog.Logger
	servers  []*dns.Server
	wg       sync.WaitGroup

	mu       sync.Mutex
	inFlight map[netip.Addr]int
	total    int
}

// listenDNS listens on a free port of addr; the table redirects port 53 there,
// which another server of the machine may hold on all addresses.
func listenDNS(addr netip.Addr, upstream []string, blocked func(netip.Addr) bool, log *slog.Logger) (*forwarder, error) {
	f := &forwarder{upstream: upstream, blocked: blocked, log: log, inFlight: map[netip.Addr]int{}}
	var err error
	for range 20 { // a port that is free for UDP may be taken for TCP
		var pc net.PacketConn
		if pc, err = net.ListenPacket("udp4", netip.AddrPortFrom(addr, 0).String()); err != nil {
			break
		}
		ap := netip.MustParseAddrPort(pc.LocalAddr().String())
		var l net.Listener
		if l, err = net.Listen("tcp4", ap.String()); err != nil {
			pc.Close()
			continue
		}
		f.port = ap.Port()
		f.servers = []*dns.Server{
			{PacketConn: pc, Handler: f},
			{Listener: l, Handler: f, MaxTCPQueries: 128},
		}
		for _, s := range f.servers {
			f.wg.Add(1)
			ready := make(chan struct{})
			s.NotifyStartedFunc = func() { close(ready) }
			go func() {
				defer f.wg.Done()
				if err := s.ActivateAndServe(); err != nil && !errors.Is(err, net.ErrClosed) {
					log.Error("dns forwarder ended", "err", err)
				}
			}()
			<-ready
		}
		return f, nil
	}
	return nil, fmt.Errorf("listen for dns on %s: %w", addr, err)
}

func (f *forwarder) close() {
	for _, s := range f.servers {
		_ = s.Shutdown()
	}
	f.wg.Wait()
}

// ServeDNS answers one query.
func (f *forwarder) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	src := netip.MustParseAddrPort(w.RemoteAddr().String()).Addr().Unmap()
	if f.blocked(src) {
		f.fail(w, q, dns.RcodeRefused)
		return
	}
	if !f.enter(src) {
		f.fail(w, q, dns.RcodeServerFailure)
		return
	}
	defer f.leave(src)
	servers := f.upstream
	if len(servers) == 0 {
		servers = resolvers()
	}
	// Over TCP the container wants the whole answer; over UDP a truncated one
	// is passed on, and it comes back over TCP.
	c := dns.Client{Net: w.LocalAddr().Network(), Timeout: upstreamTimeout, UDPSize: dns.MaxMsgSize}
	for _, s := range servers {
		r, _, err := c.Exchange(q, s)
		if err != nil {
			f.log.Debug("dns server does not answer", "server", s, "err", err)
			continue
		}
		if c.Net == "udp" {
			size := dns.MinMsgSize
			if o := q.IsEdns0(); o != nil {
				size = int(o.UDPSize())
			}
			r.Truncate(size)
		}
		_ = w.WriteMsg(r) // the container may be gone
		return
	}
	f.fail(w, q, dns.RcodeServerFailure)
}

func (f *forwarder) fail(w dns.ResponseWriter, q *dns.Msg, code int) {
	_ = w.WriteMsg(new(dns.Msg).SetRcode(q, code))
}

func (f *forwarder) enter(src netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.total >= maxQueries || f.inFlight[src] >= maxQueriesPerSource {
		return false
	}
	f.total++
	f.inFlight[src]++
	return true
}

func (f *forwarder) leave(src netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.total--
	if f.inFlight[src]--; f.inFlight[src] == 0 {
		delete(f.inFlight, src)
	}
}

var resolvCache struct {
	sync.Mutex
	modified time.Time
	servers  []string
}

// resolvers are the machine's DNS servers, at most three, as the C library
// uses them.
func resolvers() []string {
	resolvCache.Lock()
	defer resolvCache.Unlock()
	fi, err := os.Stat(resolvConf)
	if err != nil {
		return nil
	}
	if fi.ModTime().Equal(resolvCache.modified) {
		return resolvCache.servers
	}
	b, err := os.ReadFile(resolvConf)
	if err != nil {
		return nil
	}
	resolvCache.modified, resolvCache.servers = fi.ModTime(), parseResolvConf(b)
	return resolvCache.servers
}

func parseResolvConf(b []byte) []string {
	var out []string
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan() && len(out) < 3; {
		f := strings.Fields(s.Text())
		if len(f) >= 2 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				out = append(out, netip.AddrPortFrom(a, 53).String())
			}
		}
	}
	return out
}

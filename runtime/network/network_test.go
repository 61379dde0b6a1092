package network

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/userns"
)

// TestMain runs the tests again in a network namespace of their own, where
// they may do as they like.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv("BEAM_TEST_NETNS") != "" {
		os.Exit(m.Run())
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), "BEAM_TEST_NETNS=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := c.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const internetIP = "198.51.100.7"

// world is a machine in the middle: a node with two containers on one side, a
// router with the internet behind it on the other.
type world struct {
	n        *Network
	a, b     *userns.Pair
	aAddr    netip.Addr
	bAddr    netip.Addr
	internet *userns.Pair
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

func newWorld(t *testing.T, cfg Config) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	w := &world{}
	pair := func() *userns.Pair {
		p := must[*userns.Pair](t)(userns.New(1<<30, 1<<16))
		t.Cleanup(func() { p.Close() })
		return p
	}
	w.a, w.b, w.internet = pair(), pair(), pair()
	run(t, "ip link set lo up")
	la := netlink.NewLinkAttrs()
	la.Name = "up0"
	check(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "up1", PeerNamespace: netlink.NsFd(int(w.internet.Net.Fd()))}))
	t.Cleanup(func() { deleteLink("up0") })
	run(t, "ip addr add 192.0.2.1/30 dev up0; ip link set up0 up; ip route add default via 192.0.2.2")
	h := must[*netlink.Handle](t)(netlink.NewHandleAt(netns.NsHandle(int(w.internet.Net.Fd()))))
	defer h.Close()
	for dev, addr := range map[string]string{"up1": "192.0.2.2/30", "lo": internetIP + "/32"} {
		l := must[netlink.Link](t)(h.LinkByName(dev))
		check(t, h.AddrAdd(l, must[*netlink.Addr](t)(netlink.ParseAddr(addr))), h.LinkSetUp(l))
		if dev == "lo" { // a live target in a private range
			check(t, h.AddrAdd(l, must[*netlink.Addr](t)(netlink.ParseAddr("192.168.77.7/32"))))
		}
	}
	serve(t, w.internet, "0.0.0.0:80")

	cfg.Name = "engtst"
	cfg.Subnets = []netip.Prefix{netip.MustParsePrefix("10.213.0.0/16")}
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	w.n = must[*Network](t)(New(cfg))
	t.Cleanup(func() { check(t, w.n.Close()) })
	w.aAddr = must[netip.Addr](t)(w.n.Attach(w.a, 0))
	w.bAddr = must[netip.Addr](t)(w.n.Attach(w.b, 1))
	return w
}

// serve answers each connection with the address it came from.
func serve(t *testing.T, p *userns.Pair, addr string) net.Addr {
	t.Helper()
	var l net.Listener
	listen := func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}
	if p == nil {
		check(t, listen())
	} else {
		check(t, p.InNet(listen))
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			io.WriteString(c, host)
			c.Close()
		}
	}()
	return l.Addr()
}

// get connects from a pair and returns who the server saw.
func get(p *userns.Pair, addr string) (string, error) {
	var got []byte
	err := p.InNet(func() error {
		c, err := net.DialTimeout("tcp", addr, 20*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		got, err = io.ReadAll(c)
		return err
	})
	return string(got), err
}

func refused(t *testing.T, what string, p *userns.Pair, addr string) {
	t.Helper()
	start := time.Now()
	if got, err := get(p, addr); err == nil {
		t.Errorf("%s: %s answered %q", what, addr, got)
	} else if time.Since(start) > 15*time.Second {
		t.Errorf("%s: %s: silence instead of a refusal: %v", what, addr, err)
	}
}

func reached(t *testing.T, what string, p *userns.Pair, addr string) {
	t.Helper()
	if _, err := get(p, addr); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

func TestReach(t *testing.T) {
	w := newWorld(t, Config{})
	got, err := get(w.a, internetIP+":80")
	if err != nil || got != "192.0.2.1" {
		t.Errorf("internet from a container: saw %q, %v; want the node's address", got, err)
	}
	refused(t, "private address behind the router", w.a, "192.168.77.7:80")
	refused(t, "router on the connected network", w.a, "192.0.2.2:80")

	anyPort := serve(t, nil, "0.0.0.0:0").(*net.TCPAddr).Port
	refused(t, "node's port at the bridge", w.a, fmt.Sprintf("%s:%d", w.n.Gateway(), anyPort))
	refused(t, "node's port at its own network", w.a, fmt.Sprintf("192.0.2.1:%d", anyPort))
	reached(t, "container's own loopback", w.a, serve(t, w.a, "127.0.0.1:0").String())

	in := serve(t, w.b, "0.0.0.0:7000")
	_ = in
	refused2(t, "other container", w.a, fmt.Sprintf("%s:7000", w.bAddr))
	// With an explicit route through the node instead of the shared bridge.
	check(t, w.a.InNet(func() error {
		return exec.Command("ip", "route", "add", w.bAddr.String()+"/32", "via", w.n.Gateway().String(), "dev", "eth0").Run()
	}))
	refused2(t, "other container through the node", w.a, fmt.Sprintf("%s:7000", w.bAddr))
	// From the node itself it is reachable: that is how ports are served.
	c, err := net.DialTimeout("tcp", fmt.Sprintf("%s:7000", w.bAddr), 20*time.Second)
	if err != nil {
		t.Errorf("node to container: %v", err)
	} else {
		c.Close()
	}
}

// refused2 is refused for targets where silence is the expected answer.
func refused2(t *testing.T, what string, p *userns.Pair, addr string) {
	t.Helper()
	if err := p.InNet(func() error {
		c, err := net.DialTimeout("tcp", addr, 2*time.Second)
		if err == nil {
			c.Close()
		}
		return err
	}); err == nil {
		t.Errorf("%s: %s answered", what, addr)
	}
}

func TestPolicy(t *testing.T) {
	w := newWorld(t, Config{Reach: []netip.Prefix{netip.MustParsePrefix("192.168.77.0/24")}})
	reached(t, "private prefix that the owner opened", w.a, "192.168.77.7:80")

	check(t, w.n.SetPolicy(w.aAddr, runtime.Network{Block: true}))
	refused2(t, "blocked container", w.a, internetIP+":80")
	reached(t, "the other one", w.b, internetIP+":80")

	check(t, w.n.SetPolicy(w.aAddr, runtime.Network{Allow: []netip.Prefix{
		netip.MustParsePrefix("198.51.100.0/28"), netip.MustParsePrefix("198.51.100.4/30"), netip.MustParsePrefix("2001:db8::/32")}}))
	reached(t, "allowed prefix", w.a, internetIP+":80")
	refused(t, "outside the allow list", w.a, "192.168.77.7:80")

	check(t, w.n.SetPolicy(w.aAddr, runtime.Network{Allow: []netip.Prefix{netip.MustParsePrefix("198.51.100.128/25")}}))
	refused(t, "outside the allow list", w.a, internetIP+":80")

	check(t, w.n.Detach(0))
	addr := must[netip.Addr](t)(w.n.Attach(must[*userns.Pair](t)(userns.New(1<<30, 1<<16)), 0))
	if p, ok := w.n.policies[addr]; ok {
		t.Errorf("policy of the last container on the slot is still there: %+v", p)
	}
}

func TestForeignFirewalls(t *testing.T) {
	for name, script := range map[string]string{
		"iptables drop":  "iptables -P FORWARD DROP; iptables -P INPUT DROP",
		"nft drop":       "nft 'add table inet fw; add chain inet fw f { type filter hook forward priority 0; policy drop; }'",
		"nft last rule":  "nft 'add table inet fw; add chain inet fw f { type filter hook forward priority 0; }; add rule inet fw f counter reject'",
		"flushed by all": "nft flush ruleset; iptables -P FORWARD DROP",
	} {
		for _, when := range []string{"before", "after"} {
			t.Run(name+" "+when, func(t *testing.T) {
				t.Cleanup(func() { run(t, "nft flush ruleset") })
				if when == "before" {
					run(t, script)
				}
				w := newWorld(t, Config{})
				if when == "after" {
					run(t, script)
				}
				eventually(t, func() error { _, err := get(w.a, internetIP+":80"); return err })
				refused2(t, "private address", w.a, "192.168.77.7:80")
				if _, err := exec.LookPath("iptables"); err == nil && strings.Contains(name, "iptables") {
					if out := run(t, "iptables -S FORWARD"); !strings.Contains(out, "-i engtst -j ACCEPT") {
						t.Errorf("iptables cannot read our rule:\n%s", out)
					}
				}
				check(t, w.n.Close())
				if out := run(t, "nft list ruleset"); strings.Contains(out, "engtst") {
					t.Errorf("left after Close:\n%s", out)
				}
			})
		}
	}
}

// eventually waits for what another firewall's change sets going; there is no
// event for "the node has noticed".
func eventually(t *testing.T, f func() error) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestDNS(t *testing.T) {
	pc := must[net.PacketConn](t)(net.ListenPacket("udp", "127.0.0.1:0"))
	l := must[net.Listener](t)(net.Listen("tcp", pc.LocalAddr().String()))
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg).SetReply(q)
		count := 1
		if strings.HasPrefix(q.Question[0].Name, "long.") {
			count = 100
		}
		for range count {
			r.Answer = append(r.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(198, 51, 100, 7)})
		}
		w.WriteMsg(r)
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: l, Handler: handler}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
	// The first server is dead: the second is asked.
	w := newWorld(t, Config{Upstream: []string{"127.0.0.1:1", pc.LocalAddr().String()}})
	ask := func(proto, name string) (*dns.Msg, error) {
		var r *dns.Msg
		err := w.a.InNet(func() error {
			conn, err := dns.DialTimeout(proto, w.n.Gateway().String()+":53", 20*time.Second)
			if err != nil {
				return err
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			if err := conn.WriteMsg(new(dns.Msg).SetQuestion(name, dns.TypeA)); err != nil {
				return err
			}
			r, err = conn.ReadMsg()
			return err
		})
		return r, err
	}
	for _, proto := range []string{"udp", "tcp"} {
		r, err := ask(proto, "x.example.")
		if err != nil || len(r.Answer) != 1 {
			t.Fatalf("%s: %v, %v", proto, r, err)
		}
	}
	if r, err := ask("udp", "long.example."); err != nil || !r.Truncated {
		t.Errorf("long answer over udp: %v, truncated %v", err, r != nil && r.Truncated)
	}
	if r, err := ask("tcp", "long.example."); err != nil || len(r.Answer) != 100 {
		t.Errorf("long answer over tcp: %v", err)
	}
	check(t, w.n.SetPolicy(w.aAddr, runtime.Network{Block: true}))
	refusedDNS := w.a.InNet(func() error {
		conn, err := dns.DialTimeout("udp", w.n.Gateway().String()+":53", time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Second))
		conn.WriteMsg(new(dns.Msg).SetQuestion("x.example.", dns.TypeA))
		_, err = conn.ReadMsg()
		return err
	})
	if refusedDNS == nil {
		t.Error("a container without network got an answer")
	}
}

func TestSweepAfterKill(t *testing.T) {
	w := newWorld(t, Config{})
	_ = w // as if this process had been killed here
	check(t, Sweep("engtst"))
	out := run(t, "ip link; nft list ruleset")
	if strings.Contains(out, "engtst") {
		t.Errorf("left after Sweep:\n%s", out)
	}
	check(t, Sweep("engtst")) // and again
}

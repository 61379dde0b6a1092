package libp2p

import (
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/membership"
	"github.com/beammesh/beammesh/mesh/meshtest"
)

// relay carries TCP and UDP between one port of its own and a target, until it
// is paused: then packets vanish while every process and socket lives on.
type relay struct {
	addr string
	tcp  net.Listener
	udp  net.PacketConn

	mu     sync.Mutex
	target string
	open   chan struct{} // closed while packets pass
	paused bool
	ends   []io.Closer
}

func newRelay(t *testing.T) *relay {
	t.Helper()
	r := &relay{open: make(chan struct{})}
	close(r.open)
	var err error
	for range 20 { // one port free on both
		if r.tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if r.udp, err = net.ListenPacket("udp", r.tcp.Addr().String()); err == nil {
			break
		}
		r.tcp.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	r.addr = r.tcp.Addr().String()
	r.ends = []io.Closer{r.tcp, r.udp}
	go r.serveTCP()
	go r.serveUDP()
	t.Cleanup(func() {
		r.pause(false)
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, c := range r.ends {
			c.Close()
		}
	})
	return r
}

func (r *relay) to(target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = target
}

func (r *relay) pause(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if on == r.paused {
		return
	}
	if r.paused = on; on {
		r.open = make(chan struct{})
	} else {
		close(r.open)
	}
}

func (r *relay) state() (target string, paused bool, open chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.target, r.paused, r.open
}

func (r *relay) keep(c io.Closer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ends = append(r.ends, c)
}

func (r *relay) serveTCP() {
	for {
		in, err := r.tcp.Accept()
		if err != nil {
			return
		}
		r.keep(in)
		target, _, _ := r.state()
		out, err := net.Dial("tcp", target)
		if err != nil {
			in.Close()
			continue
		}
		r.keep(out)
		pass := func(to, from net.Conn) {
			defer to.Close()
			b := make([]byte, 32<<10)
			for {
				n, err := from.Read(b)
				_, _, open := r.state()
				<-open
				if _, werr := to.Write(b[:n]); err != nil || werr != nil {
					return
				}
			}
		}
		go pass(in, out)
		go pass(out, in)
	}
}

func (r *relay) serveUDP() {
	back := map[string]net.Conn{}
	b := make([]byte, 64<<10)
	for {
		n, from, err := r.udp.ReadFrom(b)
		if err != nil {
			return
		}
		target, paused, _ := r.state()
		if paused {
			continue
		}
		key := from.String() + target
		c := back[key]
		if c == nil {
			if c, err = net.Dial("udp", target); err != nil {
				continue
			}
			r.keep(c)
			back[key] = c
			go func() {
				b := make([]byte, 64<<10)
				for {
					n, err := c.Read(b)
					if err != nil && strings.Contains(err.Error(), "closed") {
						return
					}
					if _, paused, _ := r.state(); !paused && n > 0 {
						r.udp.WriteTo(b[:n], from)
					}
				}
			}()
		}
		c.Write(b[:n])
	}
}

// behind makes a node reachable only through r.
func behind(cfg Config, r *relay) Config {
	cfg.Interface = func(net.Interface) bool { return false }
	cfg.Announce = []string{r.addr}
	return cfg
}

// aim points r at the node's real port.
func aim(t *testing.T, r *relay, m *Mesh) {
	t.Helper()
	for _, a := range m.host.Network().ListenAddresses() {
		if ap, ok := addrPort(a); ok {
			r.to(ap.String())
			return
		}
	}
	t.Fatal("the node does not listen")
}

func TestSilentPeerGoesDownAndComesBack(t *testing.T) {
	quick := func(c Config) Config {
		c.PingEvery, c.SilentAfter, c.RedialWait = 300*time.Millisecond, 2*time.Second, 500*time.Millisecond
		return c
	}
	ra, rb := newRelay(t), newRelay(t)
	a := opened(t, behind(quick(testConfig(t, "a")), ra))
	if err := a.Found(t.Context()); err != nil {
		t.Fatal(err)
	}
	started(t, a, nil)
	aim(t, ra, a)
	b := opened(t, behind(quick(testConfig(t, "b")), rb))
	if err := b.Join(timeout(t), invited(t, a, Invitation{})); err != nil {
		t.Fatal(err)
	}
	started(t, b, nil)
	aim(t, rb, b)
	meshtest.AwaitUp(t, a, b.PeerID())
	meshtest.AwaitUp(t, b, a.PeerID())

	atA, atB := meshtest.NewLog(t, a), meshtest.NewLog(t, b)
	down := func(e mesh.Event) bool { return e.Type == mesh.MemberDown }
	ra.pause(true)
	rb.pause(true)
	atA.Await(t, "MemberDown", down)
	atB.Await(t, "MemberDown", down)
	if k, _ := a.table.get(b.PeerID()); k.Connected || k.Path != mesh.PathNone {
		t.Errorf("a silent member is still %+v", k)
	}
	ra.pause(false)
	rb.pause(false)
	meshtest.AwaitUp(t, a, b.PeerID())
	meshtest.AwaitUp(t, b, a.PeerID())
}

// The promise is 8 s for packets that vanish and 1 s for a broken connection;
// it is the sum of these whatever the machine's load.
func TestLivenessBudget(t *testing.T) {
	c, err := Config{DataDir: "x"}.complete()
	if err != nil {
		t.Fatal(err)
	}
	if sum := c.SilentAfter + c.RedialWait; sum > 7*time.Second {
		t.Errorf("a silent member is down after %v, want at most 7 s and a second for the work", sum)
	}
	if c.RedialWait > 900*time.Millisecond {
		t.Errorf("one re-dial takes %v", c.RedialWait)
	}
	if besidePings*c.PingEvery > 8*time.Second {
		t.Errorf("a ping stream beside another is used every %v, libp2p ends it after 10 s", besidePings*c.PingEvery)
	}
	if 2*c.PingEvery >= c.SilentAfter {
		t.Errorf("one lost ping ends a connection: ping every %v, silent after %v", c.PingEvery, c.SilentAfter)
	}
}

// copyOf copies what makes a machine's identity, as somebody who copies a disk does.
func copyOf(t *testing.T, from Config, name string) Config {
	t.Helper()
	to := testConfig(t, name)
	for _, f := range []string{fileIdentity, fileMembership, fileMembers} {
		copyFile(t, filepath.Join(from.DataDir, f), filepath.Join(to.DataDir, f))
	}
	return to
}

func TestSameIdentityTwice(t *testing.T) {
	founder := founded(t, testConfig(t, "founder"), nil)
	cfg := testConfig(t, "original")
	original := joined(t, founder, cfg, Invitation{}, nil)
	meshtest.AwaitUp(t, founder, original.PeerID())
	at := meshtest.NewLog(t, founder)

	copied := opened(t, copyOf(t, cfg, "copy"))
	log := meshtest.NewLog(t, copied)
	started(t, copied, nil)
	e := log.Await(t, "MemberRefused", func(e mesh.Event) bool { return e.Type == mesh.MemberRefused })
	if e.Member.ID != founder.PeerID() || !strings.Contains(e.Reason, "already runs at") {
		t.Errorf("the copy was refused by %s: %q", e.Member.ID, e.Reason)
	}
	e = at.Await(t, "MemberRefused", func(e mesh.Event) bool { return e.Type == mesh.MemberRefused })
	if e.Member.ID != original.PeerID() || !strings.Contains(e.Reason, "already runs at") {
		t.Errorf("the founder refused %s: %q", e.Member.ID, e.Reason)
	}
	if k, _ := founder.table.get(original.PeerID()); !k.Connected || k.BootID != original.boot {
		t.Errorf("the original lost its place: %+v", k)
	}
	// The original stops: then the copy is simply the machine, restarted.
	if err := original.Close(); err != nil {
		t.Fatal(err)
	}
	at.Await(t, "MemberUp of the copy", func(e mesh.Event) bool { return e.Type == mesh.MemberUp && e.Member.BootID == copied.boot })
}

// A node that was killed comes back before anybody noticed: its old connection
// is dead but looks alive. It is let in after the old one failed to answer.
func TestRestartIsNoDoubleIdentity(t *testing.T) {
	r, nowhere := newRelay(t), newRelay(t)
	founder := opened(t, behind(testConfig(t, "founder"), r)) // silent only after 30 s
	if err := founder.Found(t.Context()); err != nil {
		t.Fatal(err)
	}
	started(t, founder, nil)
	aim(t, r, founder)
	nowhere.pause(true) // nobody dials the node: its one connection goes through r
	cfg := testConfig(t, "node")
	node := joined(t, founder, behind(cfg, nowhere), Invitation{}, nil)
	meshtest.AwaitUp(t, founder, node.PeerID())
	at := meshtest.NewLog(t, founder)
	r.pause(true)

	again := opened(t, copyOf(t, cfg, "node"))
	var direct []string
	for _, a := range founder.host.Network().ListenAddresses() {
		direct = append(direct, a.String())
	}
	again.table.learn(founder.PeerID(), "founder", membership.Own, direct, mesh.ViaTicket, time.Now())
	started(t, again, nil)
	at.Await(t, "MemberDown", func(e mesh.Event) bool { return e.Type == mesh.MemberDown && e.Reason == restarted })
	at.Await(t, "MemberUp", func(e mesh.Event) bool { return e.Type == mesh.MemberUp && e.Member.BootID == again.boot })
}

func TestClockSkew(t *testing.T) {
	founder := founded(t, testConfig(t, "founder"), nil)
	for name, off := range map[string]time.Duration{"ahead": 10 * time.Minute, "behind": -10 * time.Minute} {
		cfg := testConfig(t, name)
		cfg.Clock = func() time.Time { return time.Now().Add(off) }
		m := joined(t, founder, cfg, Invitation{}, nil)
		near := func(d time.Duration) bool { return d.Abs() < 20*time.Second }
		if k := meshtest.AwaitUp(t, founder, m.PeerID()); !near(k.ClockSkew - off) {
			t.Errorf("%s: the founder measured %v, want %v", name, k.ClockSkew, off)
		}
		if k := meshtest.AwaitUp(t, m, founder.PeerID()); !near(k.ClockSkew + off) {
			t.Errorf("%s: the node measured %v, want %v", name, k.ClockSkew, -off)
		}
	}
	cfg := testConfig(t, "far behind")
	cfg.Clock = func() time.Time { return time.Now().Add(-membership.Leeway - time.Minute) }
	wantFault(t, "16 minutes behind", opened(t, cfg).Join(timeout(t), invited(t, founder, Invitation{})), "invalid_argument", "clocks")
}

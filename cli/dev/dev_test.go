package dev

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
)

func TestUpEnvDown(t *testing.T) {
	m := up(t, Options{Nodes: 3, GPUs: "H100:2,RTX4090:1"})
	if len(m.Nodes) != 3 || m.Nodes[0].GPUs != "" || m.Nodes[1].GPUs != "H100:2" || m.Nodes[2].GPUs != "RTX4090:1" {
		t.Fatalf("%+v", m.Nodes)
	}
	for _, n := range m.Nodes {
		if !n.Alive() || n.ID != "peer-of-"+n.Name {
			t.Fatalf("%+v", n)
		}
		if got, err := ask(n.GRPC, 30*time.Second); err != nil || !strings.HasPrefix(got, n.Name) {
			t.Fatalf("%s answers %q %v", n.Name, got, err)
		}
	}
	// The host's loopback leads to node 1.
	lines, err := Env(m.Root, 1)
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for _, l := range lines {
		k, v, _ := strings.Cut(l, "=")
		env[k] = v
	}
	if env["GATEWAY_HOST"] != "127.0.0.1" || env["BEAM_TOKEN"] != "token-1" {
		t.Fatalf("%v", env)
	}
	for _, addr := range []string{env["GATEWAY_HOST"] + ":" + env["GATEWAY_PORT"], env["API_HOST"] + ":" + env["API_PORT"]} {
		if got, err := ask(addr, 30*time.Second); err != nil || got != "node1 up" {
			t.Fatalf("%s answers %q %v", addr, got, err)
		}
	}
	if lines, err = Env(m.Root, 3); err != nil || !strings.Contains(strings.Join(lines, " "), m.Nodes[2].Addr.String()) {
		t.Fatalf("%v %v", lines, err)
	}
	if _, err := Env(m.Root, 4); fault.CodeOf(err) != fault.NotFound {
		t.Fatalf("env of node 4: %v", err)
	}
	// Others joined by tickets of node 1, each by its own: a ticket works once.
	if b, err := os.ReadFile(filepath.Join(m.Nodes[1].Dir, "ticket")); err != nil || string(b) != "ticket-1" {
		t.Fatalf("%q %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(m.Nodes[2].Dir, "ticket")); err != nil || !strings.HasPrefix(string(b), "ticket-of-") {
		t.Fatalf("%q %v", b, err)
	}
	// Up again gives the same mesh; another one is refused.
	again, err := Up(testCtx(t), Options{Root: m.Root, Name: testName, Nodes: 3, GPUs: "H100:2,RTX4090:1"}, nil)
	if err != nil || again.Nodes[0].PID != m.Nodes[0].PID {
		t.Fatalf("second up: %v", err)
	}
	if _, err := Up(testCtx(t), Options{Root: m.Root, Name: testName, Nodes: 2}, nil); fault.CodeOf(err) != fault.Conflict {
		t.Fatalf("up of another mesh: %v", err)
	}
	// A node dies and starts again.
	ctx := testCtx(t)
	if err := Kill(ctx, m.Root, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := Env(m.Root, 2); fault.CodeOf(err) != fault.Unreachable {
		t.Fatalf("env of a dead node: %v", err)
	}
	if err := Start(ctx, m.Root, 2); err != nil {
		t.Fatal(err)
	}
	if got, err := ask(m.Nodes[1].GRPC, 30*time.Second); err != nil || got != "node2 up" {
		t.Fatalf("restarted node answers %q %v", got, err)
	}
	if err := Stop(ctx, m.Root, 3); err != nil {
		t.Fatal(err)
	}
}

func TestSilenceAndThrottle(t *testing.T) {
	m := up(t, Options{Nodes: 2, Throttle: map[int]float64{2: 0.2}})
	n := m.Nodes[1]
	quota := func() string {
		file := "cpu.cfs_quota_us"
		if unified() {
			file = "cpu.max"
		}
		b, err := os.ReadFile(filepath.Join(cpuDir(n.Cgroup), file))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(b))[0]
	}
	if want := fmt.Sprint(int(n.CPUs * 20000)); quota() != want {
		t.Fatalf("quota %s, want %s", quota(), want)
	}
	if err := Throttle(m.Root, 2, 1); err != nil {
		t.Fatal(err)
	}
	if q := quota(); q != "-1" && q != "max" {
		t.Fatalf("quota %s", q)
	}
	ctx := testCtx(t)
	if err := Silence(ctx, m.Root, 2, true); err != nil {
		t.Fatal(err)
	}
	if got, err := ask(n.GRPC, 2*time.Second); err == nil {
		t.Fatalf("silent node answers %q", got)
	} else if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
		t.Fatalf("silence is an error: %v", err)
	}
	if !n.Alive() {
		t.Fatal("silence ended the node")
	}
	if got, err := ask(m.Nodes[0].GRPC, 30*time.Second); err != nil {
		t.Fatalf("the other node answers %q %v", got, err)
	}
	if err := Silence(ctx, m.Root, 2, false); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(n.GRPC, 30*time.Second); err != nil {
		t.Fatalf("after the silence: %v", err)
	}
}

// A firewall that drops forwarded packets, as Docker and ufw set one up.
func TestOutsideIsReachedPastAForeignFirewall(t *testing.T) {
	needMachine(t)
	const foreign = "ledger_foreign"
	ctx := testCtx(t)
	// A host outside: a namespace behind a link of its own.
	const outside = "ledgeroutside"
	cleanup := func() {
		_, _ = tool(context.Background(), "", "", "nft", "delete", "table", "inet", foreign)
		_, _ = tool(context.Background(), "", "", "ip", "netns", "del", outside)
		_, _ = tool(context.Background(), "", "", "ip", "link", "del", "ledgerout")
	}
	cleanup()
	t.Cleanup(cleanup)
	for _, args := range []string{"netns add " + outside, "link add ledgerout type veth peer name eth0 netns " + outside,
		"addr add 198.18.7.1/24 dev ledgerout", "link set ledgerout up",
		"-n " + outside + " addr add 198.18.7.2/24 dev eth0", "-n " + outside + " link set eth0 up", "-n " + outside + " link set lo up"} {
		if _, err := tool(ctx, "", "", "ip", strings.Fields(args)...); err != nil {
			t.Fatal(err)
		}
	}
	rules := "table inet " + foreign + " {\n chain FORWARD { type filter hook forward priority 0; policy drop; }\n}\n"
	if _, err := tool(ctx, "", rules, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	m := up(t, Options{Nodes: 2})
	var l net.Listener
	inside(t, outside, func() (err error) { l, err = net.Listen("tcp4", "198.18.7.2:7007"); return err })
	defer l.Close()
	from := make(chan string, len(m.Nodes))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			from <- c.RemoteAddr().String()
			_ = c.Close()
		}
	}()
	for _, n := range m.Nodes {
		inside(t, n.NetNS, func() error {
			c, err := net.DialTimeout("tcp4", "198.18.7.2:7007", 30*time.Second)
			if err != nil {
				return fmt.Errorf("%s does not reach the outside: %w", n.Name, err)
			}
			return c.Close()
		})
		if addr := <-from; !strings.HasPrefix(addr, "198.18.7.1:") {
			t.Fatalf("%s is seen as %s, not by the host's address", n.Name, addr)
		}
	}
	if err := Down(ctx, DownOptions{Root: m.Root}, nil); err != nil {
		t.Fatal(err)
	}
	out, err := tool(ctx, "", "", "nft", "list", "table", "inet", foreign)
	// Rules that let other nodes of this machine through are not ours to look at.
	if err != nil || strings.Contains(out, m.Bridge) {
		t.Fatalf("the foreign firewall is not as it was: %v\n%s", err, out)
	}
}

// A resolver on the host's loopback is reached from a namespace through the
// server behind it. The "host" here answers on the bridge.
func TestLocalResolverIsRedirected(t *testing.T) {
	m := up(t, Options{Nodes: 1})
	pc, err := net.ListenPacket("udp4", fmt.Sprint(gateway(m.Subnet), ":53"))
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		b := make([]byte, 64)
		for {
			n, addr, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(b[:n], addr)
		}
	}()
	if err := redirectDNS(testCtx(t), m.Nodes[0], gateway(m.Subnet)); err != nil {
		t.Fatal(err)
	}
	inside(t, m.Nodes[0].NetNS, func() error {
		c, err := net.Dial("udp4", "127.0.0.53:53")
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Write([]byte("question")); err != nil {
			return err
		}
		b := make([]byte, 64)
		n, err := c.Read(b)
		if err == nil && string(b[:n]) != "question" {
			err = fmt.Errorf("answer %q", b[:n])
		}
		return err
	})
}

func TestFailedUpLeavesNothing(t *testing.T) {
	needMachine(t)
	for name, c := range map[string]struct {
		env  string
		code fault.Code
		text string
	}{
		"node ends early": {"FAKE_FAILS=node2", fault.Failed, "cheese"},
		"node hangs":      {"FAKE_HANGS=node2", fault.Timeout, "not ready within"},
	} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "dev")
			limit := time.Minute
			if c.code == fault.Timeout {
				limit = 3 * time.Second
			}
			_, err := Up(testCtx(t), Options{Root: root, Name: testName, Nodes: 2, NodeEnv: []string{c.env}, ReadyTimeout: limit}, nil)
			if fault.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v", err)
			}
			nothingLeft(t, root)
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		root := filepath.Join(t.TempDir(), "dev")
		ctx, cancel := context.WithCancel(testCtx(t))
		_, err := Up(ctx, Options{Root: root, Name: testName, Nodes: 2, NodeEnv: []string{"FAKE_HANGS=node2"}}, func(line string) {
			if strings.Contains(line, "node1 is ready") {
				cancel()
			}
		})
		if fault.CodeOf(err) != fault.Cancelled {
			t.Errorf("got %v", err)
		}
		nothingLeft(t, root)
	})
}

// TestDownAfterUpWasKilled ends `up` with SIGKILL at several points.
func TestDownAfterUpWasKilled(t *testing.T) {
	needMachine(t)
	for _, at := range []string{"network:", "node1 is ready", "node2 is ready"} {
		t.Run(at, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "dev")
			out, err := exec.Command(os.Args[0], "up-and-die", root, at).CombinedOutput()
			if err == nil {
				t.Fatalf("it lives: %s", out)
			}
			if _, err := Load(root); err != nil {
				t.Fatalf("no state is left to clean up by: %v %s", err, out)
			}
			if err := Down(testCtx(t), DownOptions{Root: root}, nil); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t, root)
		})
	}
	t.Run("anywhere", func(t *testing.T) {
		for round := range 8 {
			root := filepath.Join(t.TempDir(), "dev")
			cmd := exec.Command(os.Args[0], "up-and-die", root, "no such line")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// The whole takes about half a second here; where the kill falls is
			// left to chance, the clean-up must not care.
			time.Sleep(time.Duration(rand.IntN(100)+round*60) * time.Millisecond)
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if err := Down(testCtx(t), DownOptions{Root: root, Now: round%2 == 0}, nil); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			nothingLeft(t, root)
		}
	})
	t.Run("processes that no pid tells of", func(t *testing.T) {
		m := up(t, Options{Nodes: 2})
		// As if the crash came between the start and its record.
		for _, n := range m.Nodes {
			n.PID, n.Start = 0, 0
		}
		if err := m.save(); err != nil {
			t.Fatal(err)
		}
		if err := Down(testCtx(t), DownOptions{Root: m.Root}, nil); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, m.Root)
	})
}

func TestDownOfNothing(t *testing.T) {
	root := filepath.Join(t.TempDir(), "none")
	if err := Down(context.Background(), DownOptions{Root: root}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Env(root, 1); fault.CodeOf(err) != fault.NotFound || fault.From(err).Hint == "" {
		t.Fatalf("env: %v", err)
	}
	if _, err := os.Stat(root); err == nil {
		t.Fatal("down made the folder")
	}
}

func TestAssignGPUs(t *testing.T) {
	for _, c := range []struct {
		list  string
		nodes int
		want  string
	}{
		{"", 2, "[ ]"},
		{"H100:2,RTX4090:1", 3, "[ H100:2 RTX4090:1]"},
		{"H100:2, RTX4090", 2, "[ H100:2,RTX4090]"},
		{"a:1,b:1,c:1", 3, "[ a:1,c:1 b:1]"},
		{"H100:2", 1, "[H100:2]"},
	} {
		got, err := assignGPUs(c.list, c.nodes)
		if err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%q over %d nodes: %v %v, want %s", c.list, c.nodes, got, err, c.want)
		}
	}
	for _, bad := range []string{"H100:x", ":2", "H100:2;rm", ","} {
		if _, err := assignGPUs(bad, 2); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, o := range map[string]Options{
		"no nodes":      {},
		"many nodes":    {Nodes: MaxNodes + 1},
		"bad name":      {Nodes: 1, Name: "Mesh One"},
		"blank in root": {Nodes: 1, Root: "/srv/a b"},
		"overcommit":    {Nodes: 1, CPUOvercommit: 0.5},
		"throttle":      {Nodes: 1, Throttle: map[int]float64{2: 0.5}},
		"gpus":          {Nodes: 1, GPUs: "!"},
	} {
		if _, err := Up(context.Background(), o, nil); fault.CodeOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, err := ParseThrottle("3=0.2, 2=1"); err != nil || got[3] != 0.2 || got[2] != 1 {
		t.Errorf("%v %v", got, err)
	}
	if _, err := ParseThrottle("3"); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("bad throttle: %v", err)
	}
}

func TestParsing(t *testing.T) {
	m := parseMounts("36 35 0:30 / /a\\040b rw,relatime shared:1 - overlay overlay rw,lowerdir=/x/l,upperdir=/x/u\nbroken\n")
	if len(m) != 1 || m[0].point != "/a b" || !strings.Contains(m[0].options, "upperdir=/x/u") {
		t.Fatalf("%+v", m)
	}
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte("# x\nnameserver 127.0.0.53\nnameserver fd00::1\nsearch a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := nameservers(path); len(got) != 2 || got[0] != netip.MustParseAddr("127.0.0.53") {
		t.Fatalf("%v", got)
	}
	p, err := freeSubnet()
	if err != nil || p.Bits() != 24 || gateway(p).As4()[3] != 1 || nodeAddr(p, 1).As4()[3] != 11 {
		t.Fatalf("%v %v", p, err)
	}
}

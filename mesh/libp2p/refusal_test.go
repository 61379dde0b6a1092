package libp2p

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/meshtest"
)

// TestMain runs a node that another test kills, when it is asked to.
func TestMain(m *testing.M) {
	if dir := os.Getenv("BEAM_TEST_NODE_DIR"); dir != "" {
		if err := victim(dir); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// victim joins, says so, and lives until it is killed.
func victim(dir string) error {
	without := os.Getenv("BEAM_TEST_NODE_WITHOUT")
	m, err := New(context.Background(), Config{DataDir: dir, Listen: []string{"127.0.0.1:0"}, Name: "victim", NoMDNS: true,
		NoTCP: without == "tcp", NoQUIC: without == "quic", SilentAfter: 30 * time.Second})
	if err != nil {
		return err
	}
	if err := m.Join(context.Background(), os.Getenv("BEAM_TEST_NODE_TICKET")); err != nil {
		return err
	}
	if err := m.Start(context.Background()); err != nil {
		return err
	}
	fmt.Println("id", m.PeerID())
	select {}
}

// The kernel of a machine answers for a process that was killed: the node is
// down at once, long before the re-dial or its pings would tell, whichever
// transports there are.
func TestKilledPeerIsDownByRefusal(t *testing.T) {
	for _, without := range []string{"", "tcp", "quic"} {
		t.Run("without "+without, func(t *testing.T) {
			cfg := testConfig(t, "founder") // re-dials for 5 s, silent only after 30 s
			cfg.NoTCP, cfg.NoQUIC = without == "tcp", without == "quic"
			m := founded(t, cfg, nil)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "BEAM_TEST_NODE_DIR="+t.TempDir(), "BEAM_TEST_NODE_WITHOUT="+without, "BEAM_TEST_NODE_TICKET="+invited(t, m, Invitation{}))
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
			line, err := bufio.NewReader(out).ReadString('\n')
			id, ok := strings.CutPrefix(strings.TrimSpace(line), "id ")
			if !ok {
				t.Fatalf("the node said %q, %v", line, err)
			}
			p := mesh.PeerID(id)
			meshtest.AwaitUp(t, m, p)
			// Ready once a refusal would be believed, and TCP is there to break.
			awaitLinks(t, m, func() bool {
				ls := m.gate.links(p, true)
				for _, l := range ls {
					if !m.gate.open(l) {
						return false
					}
				}
				return len(ls) > 0 && (without == "tcp" || m.gate.hasTCP(p))
			})
			log := meshtest.NewLog(t, m)
			killed := time.Now()
			cmd.Process.Kill()
			log.Await(t, "MemberDown", func(e mesh.Event) bool { return e.Type == mesh.MemberDown && e.Member.ID == p })
			took := time.Since(killed)
			t.Logf("down after %s", took)
			if took > cfg.RedialWait-time.Second {
				t.Errorf("down after %s: nobody believed the refusal", took)
			}
		})
	}
}

// One of two connections breaks and the peer lives: nothing happens.
func TestBrokenConnectionBesideALivePeer(t *testing.T) {
	founder := founded(t, testConfig(t, "founder"), nil)
	m := joined(t, founder, testConfig(t, "member"), Invitation{}, nil)
	meshtest.AwaitUp(t, founder, m.PeerID())
	meshtest.AwaitUp(t, m, founder.PeerID())
	awaitLinks(t, founder, func() bool { return len(founder.gate.links(m.PeerID(), true)) >= 2 })
	down := make(chan mesh.Event, 16)
	for _, at := range []*Mesh{founder, m} {
		defer at.Watch(func(e mesh.Event) {
			if e.Type == mesh.MemberDown {
				down <- e
			}
		})()
	}
	before := founder.gate.links(m.PeerID(), true)
	for _, l := range before {
		if isTCP(l) {
			l.conn.Close()
		}
	}
	awaitLinks(t, founder, func() bool { return len(founder.gate.links(m.PeerID(), true)) < len(before) })
	awaitLinks(t, m, func() bool { return len(m.gate.links(founder.PeerID(), true)) < len(before) })
	for _, l := range founder.gate.links(m.PeerID(), true) {
		if !founder.answers(l) {
			t.Errorf("the connection by %s was closed too", l.conn.RemoteMultiaddr())
		}
	}
	select {
	case e := <-down:
		t.Errorf("%s is down: %s", e.Member.ID, e.Reason)
	default:
	}
}

// awaitLinks waits until a condition on m's connections holds.
func awaitLinks(t *testing.T, m *Mesh, ok func() bool) {
	t.Helper()
	ctx := timeout(t)
	for {
		moved := m.gate.changes()
		if ok() {
			return
		}
		select {
		case <-moved:
		case <-time.After(50 * time.Millisecond): // open is found out in the background
		case <-ctx.Done():
			t.Fatal("the connections did not become as wanted")
		}
	}
}

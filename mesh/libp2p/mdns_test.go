package libp2p

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/beammesh/beammesh/mesh/meshtest"
)

// mdnsChild marks the run inside the network namespace.
const mdnsChild = "BEAM_TEST_MDNS_CHILD"

// Two members that know no address of each other meet by mDNS. The test runs
// itself again in a network namespace of its own, so that it neither needs a
// network nor talks to the one of the machine.
func TestMDNSFindsMembers(t *testing.T) {
	if os.Getenv(mdnsChild) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestMDNSFindsMembers$", "-test.v")
		cmd.Env = append(os.Environ(), mdnsChild+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("in a namespace: %v\n%s", err, out)
		}
		return
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "lan0", "type", "veth", "peer", "name", "lan1"},
		{"link", "set", "lan1", "up"},
		{"link", "set", "lan0", "up"},
		{"address", "add", "10.77.0.1/24", "dev", "lan0"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v %s", args, err, out)
		}
	}
	lan := func(name string) Config {
		c := testConfig(t, name)
		c.Listen, c.NoMDNS = []string{"10.77.0.1:0"}, false
		return c
	}
	fc, mc := lan("founder"), lan("member")
	founder := founded(t, fc, nil)
	member := opened(t, mc)
	if err := member.Join(timeout(t), invited(t, founder, Invitation{})); err != nil {
		t.Fatal(err)
	}
	if err := member.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(mc.DataDir + "/" + fileMembers); err != nil {
		t.Fatal(err)
	}
	member = started(t, opened(t, mc), nil)
	meshtest.AwaitUp(t, founder, member.PeerID())
	meshtest.AwaitUp(t, member, founder.PeerID())
}

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/cli/dev"
)

// sh runs a line of shell on this machine.
func sh(t testing.TB, line string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", line).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
	return strings.TrimSpace(string(out))
}

// The two lines that the demo prints for another machine, typed on one: a
// namespace with a link to this machine, an address of its own and no other way
// out.
func TestAnotherMachineJoins(t *testing.T) {
	m := ownMesh(t, dev.Options{Nodes: 2})
	m.mustPython(1, square) // the mesh has a base image: the machine has no mirror
	ns, link := meshName+"out", meshName+"o"
	clean := func() {
		_ = exec.Command("ip", "link", "del", link).Run()
		_ = exec.Command("ip", "netns", "del", ns).Run()
	}
	clean()
	t.Cleanup(clean)
	// As tools/demo.sh finds them.
	subnet := sh(t, "ip -4 -o route show dev "+meshName+" proto kernel | awk '{ print $1; exit }'")
	prefix := subnet[:strings.LastIndex(subnet, ".")+1]
	here := sh(t, "hostname -I | tr ' ' '\\n' | grep -v '^"+prefix+"' | head -n 1")
	ticket, errs, code := m.beam(1, "node", "invite")
	if code != 0 || here == "" {
		t.Fatalf("invite: exit %d %s; this machine is at %q", code, errs, here)
	}
	for _, line := range []string{
		"ip netns add " + ns, "ip link add " + link + " type veth peer name eth0 netns " + ns,
		"ip addr add 198.18.9.1/24 dev " + link, "ip link set " + link + " up",
		"ip -n " + ns + " link set lo up", "ip -n " + ns + " addr add 198.18.9.2/24 dev eth0", "ip -n " + ns + " link set eth0 up",
		"ip -n " + ns + " route add " + here + " dev eth0", // they stand in one network
		"ip -n " + ns + " route add " + subnet + " via " + here,
	} {
		sh(t, line)
	}
	home, data := t.TempDir(), t.TempDir()
	t.Cleanup(func() { _ = os.RemoveAll(stateOf(&dev.Node{Dir: data})) })
	inside := func(args ...string) (name string, all []string) {
		return "nsenter", append([]string{"--net=/run/netns/" + ns}, args...)
	}
	env := []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "NO_COLOR=1", "BEAM_PYTHON=" + python(),
		"PYTHONPATH=" + filepath.Join(repo, "sdk", "python")}
	name, args := inside(binary(), "node", "join", strings.TrimSpace(ticket), "--data", data, "--name", "laptop")
	node := m.start(t.TempDir(), env, name, args...)
	eventually(t, patience, func() string {
		select {
		case <-node.done:
			t.Fatalf("the node ended:\n%s", node.err)
		default:
		}
		if !strings.Contains(node.err.String(), "ready  node laptop is up, the mesh has 3 members") {
			return "the machine does not join:\n" + node.err.String()
		}
		return ""
	})
	m.node(1, "laptop", "ready")
	// Clients there need no settings.
	dir := t.TempDir()
	write(t, dir, "app.py", app)
	name, args = inside(binary(), "run", "app.py:add", "2", "3")
	if out, errs, code := m.exec(dir, env, name, args...); code != 0 || !strings.HasSuffix(strings.TrimSpace(out), "{'sum': 5}") {
		t.Errorf("run there: exit %d\n%s%s", code, out, errs)
	}
	name, args = inside(binary(), "node", "leave", "--yes")
	if out, errs, code := m.exec(dir, env, name, args...); code != 0 {
		t.Errorf("leave: exit %d\n%s%s", code, out, errs)
	}
	if _, errs, code := node.wait(); code != 0 {
		t.Errorf("the node that left ended with %d\n%s", code, errs)
	}
}

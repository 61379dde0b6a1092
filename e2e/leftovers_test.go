package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/cli/dev"
)

// crowd starts six containers at once, of as many stubs, for tasks that are long.
const crowd = `
import threading, time
from beam import function

def nap(x):
    time.sleep(600)

jobs = []
for i in range(6):
    def work(x, i=i):
        time.sleep(600)
    work.__name__ = work.__qualname__ = "work%d" % i
    globals()[work.__name__] = function(cpu=0.1, memory=64)(work)
    jobs.append(globals()[work.__name__])

if __name__ == "__main__":
    ts = [threading.Thread(target=j.submit, args=(1,)) for j in jobs]
    [t.start() for t in ts]
    [t.join() for t in ts]
    print("submitted", flush=True)
`

// traces lists everything on this machine that bears the name of the mesh or of
// one of its nodes' folders.
func traces(t testing.TB, nodes []*dev.Node) []string {
	t.Helper()
	marks := []string{meshRoot, "beam_dev_" + meshName, "/beam-dev/" + meshName}
	for _, n := range nodes {
		marks = append(marks, stateOf(n), "/run/netns/"+n.NetNS)
	}
	var found []string
	look := func(kind, text string) {
		for line := range strings.Lines(text) {
			for _, m := range marks {
				if strings.Contains(line, m) {
					found = append(found, kind+": "+strings.TrimSpace(line))
					break
				}
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	look("mount", string(mounts))
	rules, err := exec.Command("nft", "list", "ruleset").Output()
	if err != nil {
		t.Fatal(err)
	}
	look("firewall", string(rules))
	for _, glob := range []string{"/sys/fs/cgroup/*/beam-dev/" + meshName, "/sys/fs/cgroup/beam-dev/" + meshName, "/run/netns/" + meshName + "-*", "/sys/class/net/" + meshName + "*", meshRoot} {
		paths, _ := filepath.Glob(glob)
		for _, p := range paths {
			found = append(found, "left: "+p)
		}
	}
	for _, n := range nodes {
		if _, err := os.Stat(stateOf(n)); err == nil {
			found = append(found, "left: "+stateOf(n))
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if b, err := os.ReadFile(l); err == nil {
			look("loop device", l+" "+string(b))
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		if filepath.Base(p) == fmt.Sprint(os.Getpid()) {
			continue
		}
		cmd, _ := os.ReadFile(p + "/cmdline")
		groups, _ := os.ReadFile(p + "/cgroup")
		look("process "+filepath.Base(p), strings.ReplaceAll(string(cmd), "\x00", " "))
		look("process "+filepath.Base(p), string(groups))
	}
	slices.Sort(found)
	return found
}

// stateOf is the folder of a node's sockets.
func stateOf(n *dev.Node) string {
	d := sha256.Sum256([]byte(n.Dir))
	return "/run/beam/" + hex.EncodeToString(d[:4])
}

// remains counts what a node's containers have on the machine.
func remains(t testing.TB, n *dev.Node) string {
	t.Helper()
	groups, _ := filepath.Glob("/sys/fs/cgroup/*" + n.Cgroup + "/containers/*/cgroup.procs")
	v2, _ := filepath.Glob("/sys/fs/cgroup" + n.Cgroup + "/containers/*/cgroup.procs")
	specs, _ := filepath.Glob(stateOf(n) + "/d/io.containerd.runtime.v2.task/*/*")
	sockets, _ := filepath.Glob(stateOf(n) + "/a/*")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d cgroups, %d tasks, %d socket folders, %d root filesystems", len(groups)+len(v2), len(specs), len(sockets),
		strings.Count(string(mounts), stateOf(n)+"/d/io.containerd.runtime.v2.task/"))
}

const nothing = "0 cgroups, 0 tasks, 0 socket folders, 0 root filesystems"

func TestNothingIsLeftBehind(t *testing.T) {
	m := ownMesh(t, dev.Options{Nodes: 2})
	m.mustPython(1, square) // the image is there: containers start in a second
	for k, after := range []time.Duration{100 * time.Millisecond, 900 * time.Millisecond} {
		// Containers begin where the image is warm: at the node that is asked.
		owner, other := 1+k, 2-k
		p := m.startPython(owner, crowd)
		// The kill has to hit container starts at some point or other: a delay
		// from when the first grant is seen, not a wait for anything.
		eventually(t, patience, func() string {
			if remains(t, m.dev.Nodes[1])+remains(t, m.dev.Nodes[0]) == nothing+nothing {
				return "no container starts"
			}
			return ""
		})
		time.Sleep(after)
		for i, n := range m.dev.Nodes {
			m.kill(i + 1)
			t.Logf("killed %s %s into container starts: %s", n.Name, after, remains(t, n))
		}
		_ = p.cmd.Process.Kill()
		<-p.done
		// The other one first: what it ran belongs to tasks of the owner, which
		// places them again.
		m.restart(other)
		eventually(t, patience, func() string {
			if r := remains(t, m.dev.Nodes[other-1]); r != nothing {
				return fmt.Sprintf("node%d is back and has %s", other, r)
			}
			return ""
		})
		m.restart(owner)
		for _, task := range m.tasks(owner) {
			if !over(task) {
				if _, errs, code := m.beam(owner, "task", "stop", task.ID); code != 0 {
					t.Fatal(errs)
				}
			}
		}
		eventually(t, patience, func() string {
			for _, n := range m.dev.Nodes {
				if r := remains(t, n); r != nothing {
					return n.Name + " has no task and " + r
				}
			}
			return ""
		})
	}
	// And with every node dead in the middle of it, `beam dev down`.
	m.startPython(1, crowd)
	eventually(t, patience, func() string {
		if remains(t, m.dev.Nodes[1])+remains(t, m.dev.Nodes[0]) == nothing+nothing {
			return "no container starts"
		}
		return ""
	})
	m.kill(2)
	m.kill(1)
	if err := down(); err != nil {
		t.Fatal(err)
	}
	if left := traces(t, m.dev.Nodes); len(left) > 0 {
		t.Errorf("left on this machine:\n%s", strings.Join(left, "\n"))
	}
}

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

	"github.com/beammesh/beammesh/cli/dev"
)

// crowd starts containers at once, of as many stubs, for tasks that are long. They
// ask for so many cores that no node of two has room for all.
const crowd = `
import threading, time
from beam import function

jobs = []
for i in range(6):
    def work(x, i=i):
        time.sleep(600)
    work.__name__ = work.__qualname__ = "work%d" % i
    globals()[work.__name__] = function(cpu=1.2, memory=64)(work)
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

// remains is what a node's containers have on the machine, counted by where the
// kernel and the file system show it.
type remains struct {
	Cgroups, Processes, NetNS    int // of containers
	Tasks, Sockets, Folders      int // below the node's state folder
	RootFS                       int // overlay mounts
	Disks, Veths                 int // those prepared ahead included
	Snapshots, UnfinishedFolders int // below the node's data folder; layers stay
}

// remainsOf looks at one node, dead or alive.
func remainsOf(t testing.TB, n *dev.Node) (r remains) {
	t.Helper()
	count := func(pattern string) int {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		return len(paths)
	}
	spaces := map[string]bool{}
	for _, group := range []string{"/sys/fs/cgroup/*" + n.Cgroup, "/sys/fs/cgroup" + n.Cgroup} {
		files, _ := filepath.Glob(group + "/containers/*/cgroup.procs")
		r.Cgroups += len(files)
		for _, f := range files {
			b, _ := os.ReadFile(f)
			for pid := range strings.FieldsSeq(string(b)) {
				r.Processes++
				if ns, err := os.Readlink("/proc/" + pid + "/ns/net"); err == nil {
					spaces[ns] = true
				}
			}
		}
	}
	r.NetNS = len(spaces)
	state := stateOf(n)
	r.Tasks = count(state + "/d/io.containerd.runtime.v2.task/*/*")
	r.Sockets, r.Folders = count(state+"/a/*"), count(state+"/c/*")
	mounts, err := os.ReadFile("/proc/self/mountinfo") // nodes mount in the machine's own namespace
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		switch {
		case strings.HasPrefix(f[4], state+"/c/"):
			r.RootFS++
		case strings.HasPrefix(f[4], state+"/p/"):
			r.Disks++
		}
	}
	links, err := exec.Command("ip", "-n", n.NetNS, "-o", "link").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(links)) {
		if f := strings.Fields(line); strings.HasPrefix(f[1], "bm") && strings.Contains(f[1], "-") {
			r.Veths++
		}
	}
	r.Snapshots = count(n.Dir + "/runtime/layers/snapshots/*")
	r.UnfinishedFolders = count(n.Dir+"/runtime/layers/mnt-*") + count(n.Dir+"/runtime/disks/*")
	return r
}

// none says whether nothing of any container is there beside what a node at
// rest has, and no more layers than it had.
func (r remains) none(rest remains, snapshots int) bool {
	rest.Snapshots, rest.UnfinishedFolders = r.Snapshots, 0
	return r == rest && r.Snapshots <= snapshots
}

// all says whether every counter sees something of running containers.
func (r remains) all(rest remains) bool {
	return r.Cgroups > 0 && r.Processes > 0 && r.NetNS > 0 && r.Tasks > 0 && r.Sockets > 0 && r.Folders > 0 && r.RootFS > 0 &&
		r.Disks > rest.Disks && r.Veths > rest.Veths && r.Snapshots > 0
}

// starts says whether a container is there, or a part of one.
func (r remains) starts() bool { return r.Tasks+r.Folders+r.Sockets+r.Cgroups > 0 }

// containers counts the leases that the mesh speaks of, by node.
func (m *mesh) containers(i int) int {
	m.t.Helper()
	var all []map[string]any
	m.beamJSON(i, &all, "container", "list")
	return len(all)
}

// atRest waits until node i has no container left and its disks and links for
// the next ones are all made, and gives what it has then.
func (m *mesh) atRest(i int) (rest remains) {
	m.t.Helper()
	n := m.dev.Nodes[i-1]
	eventually(m.t, patience, func() string {
		before := rest
		rest = remainsOf(m.t, n)
		leases := m.containers(i)
		if rest.starts() || leases > 0 || rest.Disks == 0 || rest.Disks != rest.Veths || rest.UnfinishedFolders > 0 || rest != before {
			return fmt.Sprintf("%s does not come to rest: %d leases, %+v", n.Name, leases, rest)
		}
		return ""
	})
	return rest
}

func TestNothingIsLeftBehind(t *testing.T) {
	m := ownMesh(t, dev.Options{Nodes: 2})
	// The image is there on both: containers start in a second.
	for i := 1; i <= 2; i++ {
		if _, errs, code := m.beam(3-i, "node", "drain"); code != 0 {
			t.Fatal(errs)
		}
		m.mustPython(i, square)
		if _, errs, code := m.beam(3-i, "node", "drain", "--undo"); code != 0 {
			t.Fatal(errs)
		}
	}
	rest := []remains{m.atRest(1), m.atRest(2)}
	for k, round := range []struct {
		name string
		hit  func(i int) bool // when node i may be killed
	}{
		{"containers run", func(i int) bool { return remainsOf(t, m.dev.Nodes[i]).all(rest[i]) }},
		{"containers start", func(i int) bool { return remainsOf(t, m.dev.Nodes[i]).starts() }},
	} {
		owner, other := 1+k, 2-k
		p := m.startPython(owner, crowd)
		hit := make([]remains, 2)
		eventually(t, patience, func() string {
			for i, n := range m.dev.Nodes {
				if !round.hit(i) {
					return fmt.Sprintf("%s: not on %s: %+v", round.name, n.Name, remainsOf(t, n))
				}
			}
			return ""
		})
		if round.name == "containers run" {
			p.expect("submitted")
			if n := m.containers(owner); n == 0 {
				t.Error("the mesh speaks of no container while they run")
			}
		}
		for i, n := range m.dev.Nodes {
			m.kill(i + 1)
			hit[i] = remainsOf(t, n)
			t.Logf("killed %s when %s: %+v", n.Name, round.name, hit[i])
			if !hit[i].starts() {
				t.Errorf("the kill of %s hit no container", n.Name)
			}
		}
		_ = p.cmd.Process.Kill()
		<-p.done
		// The other one first: what it ran belongs to tasks of the owner, which
		// places them again.
		m.restart(other)
		eventually(t, patience, func() string {
			if r := remainsOf(t, m.dev.Nodes[other-1]); !r.none(rest[other-1], hit[other-1].Snapshots) {
				return fmt.Sprintf("node%d is back and has %+v, at rest it had %+v", other, r, rest[other-1])
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
			for i, n := range m.dev.Nodes {
				// What the stopped tasks brought meanwhile are layers of their code.
				if r := remainsOf(t, n); !r.none(rest[i], r.Snapshots) {
					return fmt.Sprintf("%s has no task and %+v, at rest it had %+v", n.Name, r, rest[i])
				}
				if c := m.containers(i + 1); c > 0 {
					return fmt.Sprintf("%s speaks of %d containers", n.Name, c)
				}
			}
			return ""
		})
	}
	// And with every node dead in the middle of it, `beam dev down`.
	m.startPython(1, crowd)
	eventually(t, patience, func() string {
		for i, n := range m.dev.Nodes {
			if r := remainsOf(t, n); !r.all(rest[i]) {
				return fmt.Sprintf("no container runs on %s: %+v", n.Name, r)
			}
		}
		return ""
	})
	m.kill(2)
	m.kill(1)
	if len(traces(t, m.dev.Nodes)) == 0 {
		t.Error("nothing of two killed nodes with containers is seen")
	}
	if err := down(); err != nil {
		t.Fatal(err)
	}
	if left := traces(t, m.dev.Nodes); len(left) > 0 {
		t.Errorf("left on this machine:\n%s", strings.Join(left, "\n"))
	}
}

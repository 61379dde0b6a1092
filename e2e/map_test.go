package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/cli/dev"
)

// mapProgram maps %[1]s over 1000 numbers and checks what comes back, in order.
// %[2]s is what one call does for 50 ms.
const mapProgram = `
import os, sys, time
from beam import QueueDepthAutoscaler, function

def nap():
    time.sleep(0.05)

def work():
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass

@function(cpu=0.5, memory=128, keep_warm_seconds=10, autoscaler=QueueDepthAutoscaler(max_containers=%[3]d))
def %[1]s(i):
    if i < 0:
        time.sleep(2)
    else:
        %[2]s()
    return i * i, os.environ["CONTAINER_ID"]

if __name__ == "__main__":
    # Equal nodes have their containers up, unless it is to begin cold.
    seen, limit = set(), time.time() + 120
    while "cold" not in sys.argv and len(seen) < %[3]d and time.time() < limit:
        seen |= {c for _, c in %[1]s.map([-1] * 4 * %[3]d)}
    print("warm", flush=True)
    while sys.argv[1:] and sys.argv[1] != "cold" and not os.path.exists(sys.argv[1]):
        time.sleep(0.05)
    began = time.time()
    got = []
    for value in %[1]s.map(range(1000)):
        got.append(value)
        if len(got) == 100:
            print("hundred", flush=True)
    assert [v for v, _ in got] == [i * i for i in range(1000)], got
    print("ordered in %%.1f s by %%d containers" %% (time.time() - began, len({c for _, c in got})), flush=True)
`

// shares counts the items of a map per node, by what the task list says; every
// item is one task there, whose owner took one result and no more.
func (m *mesh) shares(fn string) map[string]int {
	m.t.Helper()
	count, ids := map[string]int{}, map[string]bool{}
	for _, t := range m.tasks(1) { // the newest 1000
		if !strings.HasSuffix(t.Name, fn) {
			continue
		}
		if t.Status != "COMPLETE" {
			m.t.Errorf("item %s is %s", t.ID, t.Status)
		}
		if ids[t.ID] {
			m.t.Errorf("item %s is listed twice", t.ID)
		}
		if t.Accepted != 1 {
			m.t.Errorf("%d results of item %s were accepted, want 1", t.Accepted, t.ID)
		}
		ids[t.ID] = true
		count[t.Node]++
	}
	if len(ids) != 1000 {
		m.t.Errorf("%d items have ended, want 1000", len(ids))
	}
	return count
}

func TestMapIsSpreadEvenly(t *testing.T) {
	m := sharedMesh(t)
	out := m.mustPython(1, fmt.Sprintf(mapProgram, "even", "nap", 6))
	count := m.shares("even")
	t.Logf("figure: map of 1000 calls of 50 ms over three equal nodes: %v, %s", count, lastLine(out))
	for _, n := range []string{"node1", "node2", "node3"} {
		if c := count[n]; c < 250 || c > 420 {
			t.Errorf("%s ran %d of 1000, want 250 to 420", n, c)
		}
	}
}

// TestColdMapIsSpreadEvenly maps on a mesh whose nodes never saw the image: the
// same program has it built.
func TestColdMapIsSpreadEvenly(t *testing.T) {
	m := ownMesh(t, dev.Options{Nodes: 3, GPUs: "H100:2,RTX4090:1"})
	prefer(t)
	p := m.startPython(1, fmt.Sprintf(mapProgram, "cold", "nap", 6), "cold")
	out, errs, code := p.wait()
	if code != 0 {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	count := m.shares("cold")
	t.Logf("figure: the same from nodes that never saw the image: %v, %s", count, lastLine(out))
	for _, n := range []string{"node1", "node2", "node3"} {
		if c := count[n]; c < 250 || c > 420 {
			t.Errorf("%s ran %d of 1000, want 250 to 420", n, c)
		}
	}
}

func TestMapAvoidsASlowNode(t *testing.T) {
	m := sharedMesh(t)
	t.Cleanup(func() {
		if err := dev.Throttle(m.root, 3, 1); err != nil {
			t.Error(err)
		}
	})
	prefer(t)
	slow := filepath.Join(t.TempDir(), "slow")
	p := m.startPython(1, fmt.Sprintf(mapProgram, "uneven", "work", 6), slow)
	p.expect("warm")
	if err := dev.Throttle(m.root, 3, 0.2); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Dir(slow), "slow", "")
	out, errs, code := p.wait()
	if code != 0 {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	count := m.shares("uneven")
	t.Logf("figure: the same with node3 throttled to a fifth, calls that compute: %v, %s", count, lastLine(out))
	if c := count["node3"]; c > 120 {
		t.Errorf("the slow node ran %d of 1000, want 120 at most", c)
	}
}

// prefer puts the mesh before whatever else uses the machine's cores: a share
// of a core can only be had where there is one.
func prefer(t testing.TB) {
	t.Helper()
	for file, most := range map[string]string{"/sys/fs/cgroup/cpu/beam-dev/cpu.shares": "262144", "/sys/fs/cgroup/beam-dev/cpu.weight": "10000"} {
		before, err := os.ReadFile(file)
		if err != nil {
			continue // the other version of cgroups
		}
		if err := os.WriteFile(file, []byte(most), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.WriteFile(file, before, 0o644); err != nil {
				t.Error(err)
			}
		})
	}
}

// testMapOutlivesANode kills one node in the middle of a map, and cuts another
// one off until its calls run elsewhere: it goes on with its own, and comes back
// with their results while the map still runs. Nothing is lost, and of each item
// one result counts.
func testMapOutlivesANode(m *mesh) {
	t := m.t
	p := m.startPython(1, fmt.Sprintf(mapProgram, "survivor", "nap", 6))
	p.expect("hundred")
	m.kill(3)
	do(t, func(ctx context.Context) error { return dev.Silence(ctx, m.root, 2, true) })
	m.node(1, "node2", "unreachable")
	do(t, func(ctx context.Context) error { return dev.Silence(ctx, m.root, 2, false) })
	m.node(1, "node2", "ready")
	if s, _ := p.out.snapshot(); strings.Contains(s, "ordered") {
		t.Error("the map was over before the node was back: it is too short for this test")
	}
	out, errs, code := p.wait()
	if code != 0 {
		t.Fatalf("a map that lost a node: exit %d\n%s%s", code, out, errs)
	}
	again := 0
	for _, task := range m.tasks(1) {
		if strings.HasSuffix(task.Name, "survivor") && task.Attempt > 1 {
			again++
		}
	}
	t.Logf("figure: a map that lost a node: %v, %d items ran a second time, %s", m.shares("survivor"), again, lastLine(out))
	if again == 0 {
		t.Error("no item ran a second time: the faults hit nothing")
	}
	m.restart(3)
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

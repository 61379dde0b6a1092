package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/cli/dev"
)

// hold keeps a GPU until the file named by its argument exists. Each call has a
// stub of its own, so that each needs a container.
const hold = `
import os, sys, time
from beam import function

def wait(seconds):
    print("began", sys.argv[1:] , flush=True)
    time.sleep(seconds)
    return sorted(n for n in os.listdir("/dev") if n.startswith("nvidia"))

@function(gpu="H100", cpu=0.2, memory=128, keep_warm_seconds=0)
def %[1]s(seconds):
    return wait(seconds)

if __name__ == "__main__":
    print(%[1]s.remote(float(sys.argv[1])), flush=True)
`

func TestGPUJobsWaitForADevice(t *testing.T) {
	m := ownMesh(t, dev.Options{Nodes: 3, GPUs: "H100:2,RTX4090:1"})
	prefer(t)
	long := "600"
	a := m.startPython(1, fmt.Sprintf(hold, "first"), long)
	b := m.startPython(3, fmt.Sprintf(hold, "second"), long)
	first, second := m.task(1, "first", running), m.task(3, "second", running)
	if first.Node != "node2" || second.Node != "node2" {
		t.Fatalf("H100 jobs run on %s and %s, want node2", first.Node, second.Node)
	}

	// The spec that each container was made from has its device and no other.
	granted := map[string]bool{}
	specs := m.ociSpecs()
	for _, task := range []taskJSON{first, second} {
		spec, ok := specs[task.Container]
		if !ok {
			t.Fatalf("no spec of container %s among %v", task.Container, len(specs))
		}
		devices, env := gpuEdits(t, spec)
		if len(devices) != 1 || granted[devices[0]] {
			t.Errorf("%s has devices %v, the other job %v: want one each", task.Name, devices, granted)
		}
		for _, d := range devices {
			granted[d] = true
		}
		if len(env) != 1 {
			t.Errorf("%s has GPU variables %v, want one", task.Name, env)
		}
	}

	// A third job waits and says for what; a CPU job runs and sees no device.
	third := m.startPython(1, fmt.Sprintf(hold, "third"), "0")
	w := m.task(1, "third", waiting)
	if !strings.Contains(w.Waiting, "H100") {
		t.Errorf("the third job waits for %q, want the H100s named", w.Waiting)
	}
	cpu := m.startPython(1, strings.Replace(fmt.Sprintf(hold, "plain"), `gpu="H100", `, "", 1), "0")
	if out, errs, code := cpu.wait(); code != 0 || !strings.Contains(out, "[]") {
		t.Errorf("a job without a GPU: exit %d, %s%s", code, out, errs)
	}
	if e := m.explain(1, w.ID); len(e.Attempts) != 1 || e.Attempts[0].How != "waiting" {
		t.Errorf("explain of a waiting task: %+v", e.Attempts)
	}

	// A machine with an H100 joins: the task starts there.
	joined := make(chan error, 1)
	var ready time.Time
	joining := time.Now()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := dev.Add(ctx, m.options(dev.Options{GPUs: "H100:1"}))
		ready = time.Now()
		joined <- err
	}()
	if err := <-joined; err != nil {
		t.Fatal("a fourth node joins:", err)
	}
	out, errs, code := third.wait()
	if code != 0 || !strings.Contains(out, "nvidia0-simulated") {
		t.Fatalf("the job that waited: exit %d\n%s%s", code, out, errs)
	}
	e := m.explain(1, w.ID)
	at := e.Attempts[len(e.Attempts)-1]
	if e.Task.Node != "node4" || at.How != "pulled the open offer" {
		t.Errorf("the job that waited ran on %s (%s), want node4 to have pulled the open offer\n%s", e.Task.Node, at.How, at.notes())
	}
	var placed time.Duration
	for _, n := range at.Notes {
		var d string
		if rest, ok := strings.CutPrefix(n, "+"); ok && strings.Contains(n, "pulled the open offer") {
			d, _, _ = strings.Cut(rest, " ")
			placed, _ = time.ParseDuration(d)
		}
	}
	// The join is over, as its ready line says, when the node has the mesh's
	// images; it takes work before that.
	pulledAt := e.Task.Created.Add(placed)
	ms := func(from, to time.Time) time.Duration { return to.Sub(from).Round(time.Millisecond) }
	t.Logf("figure: join began → ready %s; join began → open offer pulled %s → call began %s; ready → call began %s",
		ms(joining, ready), ms(joining, pulledAt), ms(joining, *e.Task.Started), ms(ready, *e.Task.Started))
	if late := ms(ready, *e.Task.Started); late > time.Second {
		t.Errorf("the call began %s after the new node was ready, want 1 s at most", late)
	}

	// What the waiting job wanted and what came ahead was one fetch.
	if came, once := m.status(4).Counters["blocks.bytes_in"], m.status(2).Counters["blocks.bytes_in"]; came > once+once/10 {
		t.Errorf("node4 fetched %d bytes, node2 %d for the same", came, once)
	}

	// One job is stopped: its device is free for the next.
	if _, errs, code := m.beam(1, "task", "stop", first.ID); code != 0 {
		t.Fatal(errs)
	}
	a.wait()
	fourth := m.startPython(3, fmt.Sprintf(hold, "fourth"), "0")
	if out, errs, code := fourth.wait(); code != 0 {
		t.Fatalf("after a device was freed: exit %d\n%s%s", code, out, errs)
	}
	if _, errs, code := m.beam(3, "task", "stop", second.ID); code != 0 {
		t.Fatal(errs)
	}
	b.wait()
}

// gpuEdits gives the devices and GPU variables of an OCI spec.
func gpuEdits(t testing.TB, spec map[string]any) (devices, env []string) {
	t.Helper()
	linux, ok := spec["linux"].(map[string]any)
	if !ok {
		t.Fatalf("spec without linux: %v", spec)
	}
	list, _ := linux["devices"].([]any)
	for _, d := range list {
		if path, _ := d.(map[string]any)["path"].(string); strings.Contains(path, "nvidia") {
			devices = append(devices, path)
		}
	}
	mounts, _ := spec["mounts"].([]any)
	for _, mount := range mounts {
		if path, _ := mount.(map[string]any)["destination"].(string); strings.Contains(path, "nvidia") {
			devices = append(devices, path)
		}
	}
	process, _ := spec["process"].(map[string]any)
	vars, _ := process["env"].([]any)
	for _, v := range vars {
		if s, _ := v.(string); strings.Contains(s, "VISIBLE_DEVICES") {
			env = append(env, s)
		}
	}
	slices.Sort(devices)
	return devices, env
}

// where says how the chosen node of a task's first attempt was found.
func where(t testing.TB, e explainJSON, node string) string {
	t.Helper()
	for _, c := range e.Attempts[0].Candidates {
		if c.Node == node {
			return c.Source
		}
	}
	t.Fatalf("%s is no candidate: %+v", node, e.Attempts)
	return ""
}

func TestDHTAloneFindsTheGPU(t *testing.T) {
	// node3 knows the founder only, which has no GPU and tells nothing of others.
	m := ownMesh(t, dev.Options{Nodes: 3, GPUs: "H100:1", NodeArgs: []string{"--no-gossip", "--no-mdns"}})
	m.mustPython(3, gpuProgram)
	task := m.task(3, "which", over)
	e := m.explain(3, task.ID)
	if task.Node != "node2" || where(t, e, "node2") != "dht" {
		t.Errorf("ran on %s, found by %q, want node2 by dht\n%+v", task.Node, where(t, e, "node2"), e.Attempts)
	}
	if !strings.Contains(e.Attempts[0].notes(), "gossip is off") {
		t.Errorf("explain does not say that gossip is off:\n%s", e.Attempts[0].notes())
	}
}

// In a large mesh a node does not meet everybody on its way through the DHT: then
// the class lookup has to name the node with the GPU. Here nobody dials whom
// nobody named, and no node looks for holders of images ahead of need.
func TestTheClassLookupNamesTheGPU(t *testing.T) {
	m := ownMesh(t, dev.Options{Nodes: 3, GPUs: "H100:1", NodeArgs: []string{"--no-gossip", "--no-mdns", "--no-prefetch"}, NodeEnv: []string{"BEAM_TEST_KNOWN_ONLY=1"}})
	var listed []nodeJSON
	m.beamJSON(3, &listed, "node", "ls")
	if slices.ContainsFunc(listed, func(n nodeJSON) bool { return n.Name == "node2" }) {
		t.Fatalf("node3 knows node2 before it looked for it: %+v", listed)
	}
	m.mustPython(3, gpuProgram)
	task := m.task(3, "which", over)
	e := m.explain(3, task.ID)
	if s := where(t, e, "node2"); task.Node != "node2" || s != "lookup" {
		t.Errorf("ran on %s, node2 found by %q, want node2 by lookup\n%+v", task.Node, s, e.Attempts)
	}
	if want := "node2 was found by DHT lookup of gpu/H100"; !strings.Contains(e.Attempts[0].notes(), want) {
		t.Errorf("explain does not say %q:\n%s", want, e.Attempts[0].notes())
	}
	m.node(3, "node2", "ready")
}

func TestWithoutDHTExplainSaysSo(t *testing.T) {
	m := ownMesh(t, dev.Options{Nodes: 3, GPUs: "H100:1", NodeArgs: []string{"--no-dht", "--no-mdns"}})
	m.mustPython(3, gpuProgram)
	task := m.task(3, "which", over)
	e := m.explain(3, task.ID)
	if s := where(t, e, "node2"); task.Node != "node2" || s == "dht" {
		t.Errorf("ran on %s, found by %q, want node2 and not the DHT, which is off", task.Node, s)
	}
	if !strings.Contains(e.Attempts[0].notes(), "the DHT is off") {
		t.Errorf("explain does not say that the DHT is off:\n%s", e.Attempts[0].notes())
	}
}

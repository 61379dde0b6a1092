package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const app = `
import os, sys, time
from beam import function

@function(cpu=0.2, memory=128)
def add(a, b=0):
    print("adding", a, b)
    return {"sum": a + b}

@function(cpu=0.2, memory=128)
def slow(seconds):
    print("begun", flush=True)
    deadline = time.monotonic() + seconds
    n = 0
    while time.monotonic() < deadline:
        n += 1
        print("line", n, flush=True)
        time.sleep(0.05)
    print("over", flush=True)
    return n

@function(cpu=0.2, memory=128)
def fails():
    raise ValueError("on purpose")

@function(cpu=0.2, memory=128, timeout=2)
def hangs():
    time.sleep(600)

@function(cpu=0.2, memory=128)
def eats():
    print(len(b"x" * (1 << 30)))

def plain(): ...
`

// cli runs the command line at node i in a folder that has app.py.
func (m *mesh) cli(i int) func(args ...string) (stdout, stderr string, code int) {
	dir, env := m.appDir(i)
	return func(args ...string) (string, string, int) {
		m.t.Helper()
		return m.exec(dir, env, binary(), args...)
	}
}

func (m *mesh) appDir(i int) (dir string, env []string) {
	m.t.Helper()
	dir = m.t.TempDir()
	write(m.t, dir, "app.py", app)
	return dir, append(m.env(i), "BEAM_PYTHON="+python())
}

// startCLI starts the command line in the background.
func (m *mesh) startCLI(i int, args ...string) *proc {
	m.t.Helper()
	dir, env := m.appDir(i)
	return m.start(dir, env, binary(), args...)
}

func TestRunPrintsOnlyTheResult(t *testing.T) {
	m := sharedMesh(t)
	beam := m.cli(1)
	out, errs, code := beam("run", "app.py:add", "40", "b=2")
	if code != 0 || strings.TrimSpace(out) != "{'sum': 42}" && strings.TrimSpace(out) != "adding 40 2\n{'sum': 42}" {
		t.Fatalf("exit %d\n--- stdout\n%s\n--- stderr\n%s", code, out, errs)
	}
	if !strings.Contains(out+errs, "adding 40 2") {
		t.Errorf("what the function printed is missing:\n%s%s", out, errs)
	}
	out, errs, code = beam("run", "app.py:add", "--json", "1", "2")
	var r struct {
		TaskID string         `json:"task_id"`
		Status string         `json:"status"`
		Node   string         `json:"node"`
		Result map[string]int `json:"result"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 || r.TaskID == "" || r.Status != "COMPLETE" || r.Node == "" || r.Result["sum"] != 3 {
		t.Errorf("exit %d, %v, %+v\n--- stdout\n%s\n--- stderr\n%s", code, err, r, out, errs)
	}
}

func TestExitCodes(t *testing.T) {
	m := sharedMesh(t)
	beam := m.cli(1)
	for _, c := range []struct {
		code int
		says string // on stderr
		args []string
	}{
		{1, "ValueError: on purpose", []string{"run", "app.py:fails"}},
		{124, "hint:", []string{"run", "app.py:hangs"}},
		{137, "hint:", []string{"run", "app.py:eats"}},
		{2, "app.py:NAME", []string{"run", "app.py"}},
		{2, "not decorated", []string{"run", "app.py:plain"}},
		{3, "functions there: add", []string{"run", "app.py:nothere"}},
		{3, "no file nofile.py", []string{"run", "nofile.py:add"}},
		{3, "beam task list", []string{"task", "stop", "nonsense"}},
		{3, "beam task list", []string{"logs", "nonsense"}},
		{3, "beam task list", []string{"explain", "nonsense"}},
		{3, "beam container list", []string{"container", "stop", "nonsense"}},
		{4, "beam token create", []string{"node", "ls", "--token", "garbage"}},
		{8, "hint:", []string{"node", "ls", "--gateway-port", "9"}},
		{2, "beam --help", []string{"nonsense"}},
	} {
		out, errs, code := beam(c.args...)
		if code != c.code || !strings.Contains(errs, c.says) || !strings.Contains(errs, "error: ") {
			t.Errorf("beam %s: exit %d, want %d and %q\n--- stdout\n%s\n--- stderr\n%s", strings.Join(c.args, " "), code, c.code, c.says, out, errs)
		}
	}
}

func TestSubmitLogsExplain(t *testing.T) {
	m := sharedMesh(t)
	beam := m.cli(1)
	out, errs, code := beam("submit", "app.py:slow", "3")
	id := strings.TrimSpace(out)
	if code != 0 || len(id) != 36 || strings.Contains(id, "\n") {
		t.Fatalf("submit: exit %d, stdout %q\n%s", code, out, errs)
	}
	// From another node, from before the start to the end.
	follow := m.startCLI(2, "logs", "-f", id)
	follow.expect("begun\n")
	var tasks []map[string]any
	m.beamJSON(3, &tasks, "task", "list", "--status", "running")
	if len(tasks) != 1 || tasks[0]["id"] != id || tasks[0]["status"] != "RUNNING" {
		t.Errorf("running tasks as node3 sees them: %v", tasks)
	}
	var cs []map[string]any
	m.beamJSON(3, &cs, "container", "list")
	if len(cs) == 0 || cs[0]["id"] == "" {
		t.Errorf("containers: %v", cs)
	}
	live, errs, code := follow.wait()
	if code != 0 || !strings.Contains(live, "line 2\n") || !strings.HasSuffix(live, "over\n") {
		t.Errorf("logs -f: exit %d\n%s%s", code, live, errs)
	}
	eventually(t, patience, func() string { // the end reaches the owner after the log
		kept, errs, code := beam("logs", id)
		if code != 0 || kept != live {
			return "after the end: " + kept + errs
		}
		return ""
	})
	if last, _, _ := beam("logs", "-n", "1", id); last != "over\n" {
		t.Errorf("logs -n 1: %q", last)
	}
	why, errs, code := beam("explain", id)
	if code != 0 || !strings.Contains(why, "chosen") || !strings.Contains(why, "node3") {
		t.Errorf("explain: exit %d\n%s%s", code, why, errs)
	}
	var e map[string]any
	m.beamJSON(2, &e, "explain", id)
	if len(e) == 0 {
		t.Error("explain --json is empty")
	}
}

func TestTaskAndContainerStop(t *testing.T) {
	m := sharedMesh(t)
	attached := m.startCLI(1, "run", "app.py:slow", "600")
	attached.expect("begun")
	running := m.running("slow")
	if len(running) != 1 {
		t.Fatalf("running: %v", running)
	}
	if _, errs, code := m.beam(2, "task", "stop", running[0]["id"].(string)); code != 0 {
		t.Errorf("task stop: exit %d: %s", code, errs)
	}
	if _, errs, code := attached.wait(); code != 130 || !strings.Contains(errs, "stopped by the user") {
		t.Errorf("the run that was stopped: exit %d\n%s", code, errs)
	}
	out, errs, code := m.cli(1)("submit", "app.py:slow", "600")
	if code != 0 {
		t.Fatal(errs)
	}
	id := strings.TrimSpace(out)
	m.startCLI(1, "logs", "-f", id).expect("begun")
	first := m.taskByID(id)
	if _, errs, code := m.beam(3, "container", "stop", first["container_id"].(string)); code != 0 {
		t.Errorf("container stop: exit %d: %s", code, errs)
	}
	// That is not the task's fault: it runs again, in another container.
	eventually(t, patience, func() string {
		now := m.taskByID(id)
		if now["container_id"] == first["container_id"] || now["status"] != "RUNNING" {
			return fmt.Sprintf("after its container was stopped the task is %v", now)
		}
		return ""
	})
	if _, errs, code := m.beam(1, "task", "stop", id); code != 0 {
		t.Errorf("task stop: exit %d: %s", code, errs)
	}
	eventually(t, patience, func() string {
		if s := m.taskByID(id)["status"]; s != "CANCELLED" {
			return fmt.Sprintf("the stopped task is %v", s)
		}
		return ""
	})
}

// running lists the tasks of a function that run now.
func (m *mesh) running(fn string) []map[string]any {
	m.t.Helper()
	var tasks, out []map[string]any
	m.beamJSON(1, &tasks, "task", "list", "--status", "running")
	for _, t := range tasks {
		if strings.HasSuffix(t["name"].(string), fn) {
			out = append(out, t)
		}
	}
	return out
}

func (m *mesh) taskByID(id string) map[string]any {
	m.t.Helper()
	var tasks []map[string]any
	m.beamJSON(1, &tasks, "task", "list", "--limit", "1000")
	for _, t := range tasks {
		if t["id"] == id {
			return t
		}
	}
	m.t.Fatalf("task %s is not listed", id)
	return nil
}

func TestInterruptCancels(t *testing.T) {
	m := sharedMesh(t)
	for _, c := range []struct {
		name  string
		code  int // -1: Python ends itself with the signal
		start func() *proc
	}{
		{"beam run", 130, func() *proc { return m.startCLI(1, "run", "app.py:slow", "600") }},
		{"python", -1, func() *proc {
			return m.startPython(1, app+"\nif __name__ == '__main__':\n    slow.remote(600)\n")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := c.start()
			p.expect("line 3") // prints come while it runs
			id := m.running("slow")[0]["id"].(string)
			if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			out, errs, code := p.wait()
			if code != c.code || !strings.Contains(errs, "cancelling task "+id) {
				t.Errorf("exit %d\n--- stdout\n%s\n--- stderr\n%s", code, out, errs)
			}
			if s := m.taskByID(id)["status"]; s != "CANCELLED" {
				t.Errorf("the task is %v", s)
			}
		})
	}
}

func TestEverythingSpeaksJSON(t *testing.T) {
	m := sharedMesh(t)
	for _, args := range [][]string{{"node", "ls"}, {"node", "status"}, {"node", "invite"}, {"task", "list"}, {"container", "list"},
		{"token", "list"}, {"token", "create"}, {"config", "list"}, {"version"}, {"node", "doctor"}} {
		out, errs, code := m.beam(1, append(args, "--json")...)
		if code != 0 && args[1] != "doctor" || !json.Valid([]byte(out)) || out == "" {
			t.Errorf("beam %v --json: exit %d\n--- stdout\n%s\n--- stderr\n%s", args, code, out, errs)
		}
	}
	out, errs, code := m.beam(1, "task", "stop", "nonsense", "--json")
	if code != 3 || !json.Valid([]byte(errs)) && !json.Valid([]byte(out)) {
		t.Errorf("an error with --json: exit %d\n--- stdout\n%s\n--- stderr\n%s", code, out, errs)
	}
}

func TestConfigContexts(t *testing.T) {
	m := sharedMesh(t)
	home := t.TempDir()
	var env []string
	set := map[string]string{}
	for _, kv := range m.env(2) {
		k, v, _ := strings.Cut(kv, "=")
		set[k] = v
		if k == "PATH" || k == "NO_COLOR" {
			env = append(env, kv)
		}
	}
	env = append(env, "HOME="+home)
	beam := func(args ...string) (string, string, int) { return m.exec(home, env, binary(), args...) }
	if _, errs, code := beam("config", "create", "lab", "--gateway-host", set["GATEWAY_HOST"], "--gateway-port", set["GATEWAY_PORT"], "--token", set["BEAM_TOKEN"]); code != 0 {
		t.Fatalf("config create: exit %d: %s", code, errs)
	}
	if st, err := os.Stat(filepath.Join(home, ".beam", "config.ini")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file with the token: %v, %v", st, err)
	}
	if out, errs, code := beam("node", "ls", "-c", "lab", "-o", "name"); code != 0 || strings.Count(out, "node") != 3 {
		t.Errorf("node ls: exit %d\n%s%s", code, out, errs)
	}
	if out, errs, code := beam("config", "list"); code != 0 || !strings.Contains(out, "lab") || strings.Contains(out, set["BEAM_TOKEN"]) {
		t.Errorf("config list: exit %d\n%s%s", code, out, errs)
	}
}

func TestDrainStopsNewWork(t *testing.T) {
	m := sharedMesh(t)
	p := m.startPython(1, app+"\nif __name__ == '__main__':\n    slow.remote(2)\n")
	p.expect("begun")
	node := m.running("slow")[0]["node"].(string)
	i := int(node[len(node)-1] - '0')
	began := time.Now()
	if _, errs, code := m.beam(i, "node", "drain"); code != 0 {
		t.Fatalf("drain: exit %d: %s", code, errs)
	}
	if out, errs, code := p.wait(); code != 0 {
		t.Errorf("the task on the drained node: exit %d after %s\n%s%s", code, time.Since(began), out, errs)
	}
	eventually(t, patience, func() string {
		var nodes []map[string]any
		m.beamJSON(i%3+1, &nodes, "node", "ls")
		for _, n := range nodes {
			if n["name"] == node && n["state"] == "draining" {
				return ""
			}
		}
		return "no other node sees that " + node + " drains"
	})
	if out, errs, code := m.cli(i)("run", "app.py:add", "--json", "1"); code != 0 || strings.Contains(out, `"node": "`+node+`"`) {
		t.Errorf("while draining: exit %d\n%s%s", code, out, errs)
	}
	if _, errs, code := m.beam(i, "node", "drain", "--undo"); code != 0 {
		t.Errorf("undo: exit %d: %s", code, errs)
	}
}

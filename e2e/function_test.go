package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const square = `
from beam import function

@function(cpu=0.2, memory=128)
def square(x):
    print("squaring", x)
    return x * x

if __name__ == "__main__":
    print(square.remote(12))
`

func TestFunctionRuns(t *testing.T) {
	m := sharedMesh(t)
	out, errs, code := m.python(1, square)
	if code != 0 || strings.TrimSpace(out) != "squaring 12\n144" && strings.TrimSpace(out) != "144" {
		t.Fatalf("exit %d\n--- stdout\n%s\n--- stderr\n%s", code, out, errs)
	}
	if !strings.Contains(out+errs, "squaring 12") {
		t.Errorf("what the function printed is missing\n--- stdout\n%s\n--- stderr\n%s", out, errs)
	}
}

// ociSpec finds the runtime spec of a container that runs on node i.
func (m *mesh) ociSpecs() map[string]map[string]any {
	m.t.Helper()
	found := map[string]map[string]any{}
	files, err := filepath.Glob("/run/beam/*/d/io.containerd.runtime.v2.task/*/*/config.json")
	if err != nil {
		m.t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has just ended
		}
		var s map[string]any
		if err := json.Unmarshal(b, &s); err != nil {
			continue
		}
		found[filepath.Base(filepath.Dir(f))] = s
	}
	return found
}

const gpuProgram = `
import os, sys, time
from beam import function

@function(gpu="H100", cpu=0.2, memory=128)
def which(x):
    return os.environ.get("CONTAINER_ID"), sorted(n for n in os.listdir("/dev") if n.startswith("nvidia"))

@function(cpu=0.2, memory=128)
def none(x):
    return sorted(n for n in os.listdir("/dev") if n.startswith("nvidia"))

if __name__ == "__main__":
    print(which.remote(1)[1], none.remote(1))
`

func TestGPUJobRunsWhereTheGPUIs(t *testing.T) {
	m := sharedMesh(t)
	out := m.mustPython(1, gpuProgram)
	if !strings.Contains(out, "['nvidia0-simulated'] []") && !strings.Contains(out, "['nvidia1-simulated'] []") {
		t.Fatalf("the job with a GPU should see exactly one device, the other none: %s", out)
	}
	var tasks []map[string]any
	m.beamJSON(1, &tasks, "task", "list")
	for _, task := range tasks {
		if strings.Contains(task["name"].(string), "which") {
			if task["node"] != "node2" {
				t.Errorf("the H100 job ran on %v, want node2", task["node"])
			}
			return
		}
	}
	t.Fatalf("the task is not listed: %v", tasks)
}

package e2e

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/beammesh/beammesh/cli/dev"
)

const badCalls = `
import json, sys, threading
from beam import Image, function

@function(gpu="H10", cpu=0.2)
def typo(x): return x

@function(gpu="A100", cpu=0.2)
def nowhere(x): return x

@function(gpu="RTX4090", gpu_count=2, cpu=0.2)
def two(x): return x

@function(cpu=0.2, memory="900Gi")
def huge(x): return x

@function(cpu=0.2)
def good(x): return x

@function(cpu=0.2)
def lock(x): return threading.Lock()

@function(cpu=0.2)
def own(x): raise KeyError("mine")

@function(cpu=0.2, image=Image(base_image="nosuch/image:1"))
def noimage(x): return x

@function(cpu=0.2, image=Image(commands=["echo before; echo the reason >&2; exit 3"]))
def nobuild(x): return x

@function(cpu=0.2, image=Image(python_packages=["no-such-package-of-anyone==9"]))
def nopip(x): return x

class Far:
    def __reduce__(self):
        return (__import__, ("nosuchmodule",))

def tell(name, call):
    try:
        call()
        print(json.dumps({"name": name}))
    except Exception as e:
        print(json.dumps({"name": name, "type": type(e).__name__, "code": getattr(e, "code", ""), "exit": getattr(e, "exit_status", 0),
            "kind": getattr(e, "kind", ""), "text": str(e), "cause": str(e.__cause__ or "")}))
    sys.stdout.flush()

if __name__ == "__main__":
    for f in (typo, nowhere, two, huge, lock, own, noimage, nobuild, nopip):
        tell(f.__name__, lambda: f.remote(1))
    tell("argument", lambda: good.remote(threading.Lock()))
    tell("far", lambda: good.remote(Far()))
    tell("large", lambda: good.remote(b"x" * (17 << 20)))
    tell("largest", lambda: good.remote(b"x" * (15 << 20)))
    # The mesh is as good as before.
    tell("good", lambda: good.remote(1))
    sys.version_info = (3, 9, 0, "final", 0)
    tell("python", lambda: function(cpu=0.3)(good.__beam_function__).remote(1))
`

func TestBadCallsSaySo(t *testing.T) {
	m := sharedMesh(t)
	out, errs, code := m.python(1, badCalls)
	if code != 0 {
		t.Fatalf("exit %d\n%s%s", code, out, errs)
	}
	type told struct {
		Name, Type, Code, Kind, Text, Cause string
		Exit                                int
	}
	got := map[string]told{}
	for line := range strings.Lines(out) {
		var r told
		if json.Unmarshal([]byte(line), &r) == nil && r.Name != "" {
			got[r.Name] = r
		}
	}
	for _, c := range []struct {
		name, class, code, kind string
		exit                    int
		says                    []string
	}{
		{"typo", "InvalidError", "invalid_argument", "", 2, []string{`no GPU is called "H10"`, "hint: did you mean H100?"}},
		{"nowhere", "CapacityError", "no_capacity", "", 6, []string{"node3: has RTX4090", "node2: has 2x H100", "hint: ", "gpu='any'"}},
		{"two", "CapacityError", "no_capacity", "", 6, []string{"node3: has RTX4090", "asked for 2x RTX4090", "hint: "}},
		{"huge", "CapacityError", "no_capacity", "", 6, []string{"needs 900 GiB", "hint: ask for less"}},
		{"lock", "RemoteError", "failed", "unpicklable_result", 1, []string{"_thread.lock", "hint: return plain data"}},
		{"own", "KeyError", "", "", 0, []string{"mine"}},
		{"noimage", "NotFoundError", "not_found", "", 3, []string{`"nosuch/image:1"`, "hint: "}},
		{"nobuild", "BuildError", "build_failed", "", 1, []string{"the reason", "hint: "}},
		{"nopip", "BuildError", "build_failed", "", 1, []string{"no-such-package-of-anyone", "hint: "}},
		{"argument", "InvalidError", "invalid_argument", "", 2, []string{"argument 0", "hint: "}},
		{"far", "RemoteError", "failed", "unpicklable_args", 1, []string{"nosuchmodule", "hint: an argument needs something that the image lacks"}},
		{"large", "TooLargeError", "too_large", "", 2, []string{"17.0 MiB", "16 MiB", "hint: "}},
		{"largest", "", "", "", 0, nil},
		{"good", "", "", "", 0, nil},
		{"python", "PythonMismatchError", "python_mismatch", "", 2, []string{"3.9", "3.11", "hint: "}},
	} {
		g := got[c.name]
		if g.Name == "" || g.Type != c.class || g.Code != c.code || g.Kind != c.kind || g.Exit != c.exit {
			t.Errorf("%s: got %+v, want %s, %s, %s, %d", c.name, g, c.class, c.code, c.kind, c.exit)
		}
		for _, s := range c.says {
			if !strings.Contains(g.Text, s) {
				t.Errorf("%s: %q is not in %q", c.name, s, g.Text)
			}
		}
	}
	if !strings.Contains(got["own"].Cause, `raise KeyError("mine")`) {
		t.Errorf("the remote traceback is missing: %q", got["own"].Cause)
	}
	if t.Failed() {
		t.Logf("stderr:\n%s", errs)
	}
}

func TestBadFilesSaySo(t *testing.T) {
	m := sharedMesh(t)
	dir := t.TempDir()
	env := append(m.env(1), "BEAM_PYTHON="+python())
	write(t, dir, "syntax.py", "from beam import function\n@function(cpu=0.2)\ndef f(x)\n    return x\n")
	write(t, dir, "imports.py", "import nosuchmodule\nfrom beam import function\n@function(cpu=0.2)\ndef f(x): return x\n")
	// Here the module is there, in the image it is not.
	write(t, dir, "there.py", "import os\nif os.environ.get('CONTAINER_ID'):\n    import nosuchmodule\nfrom beam import function\n@function(cpu=0.2)\ndef f(x): return x\n")
	write(t, dir, "raises.py", "import os\nif os.environ.get('CONTAINER_ID'):\n    raise RuntimeError('at import')\nfrom beam import function\n@function(cpu=0.2)\ndef f(x): return x\n")
	write(t, dir, "gone.py", "import os\nfrom beam import function\n@function(cpu=0.2)\ndef handler(x): return x\nif os.environ.get('CONTAINER_ID'):\n    del handler\n    def handle(x): return x\n")
	for _, c := range []struct {
		target string
		code   int
		says   []string
	}{
		{"syntax.py:f", 1, []string{"syntax.py, line 3", "expected ':'", "hint: "}},
		{"imports.py:f", 1, []string{"nosuchmodule", "hint: "}},
		{"there.py:f", 1, []string{"nosuchmodule", `hint: the image lacks it: Image(python_packages=["nosuchmodule"])`}},
		{"raises.py:f", 1, []string{"RuntimeError: at import", "hint: "}},
		{"gone.py:handler", 1, []string{"module gone has no function handler", "hint: did you mean handle?"}},
	} {
		out, errs, code := m.exec(dir, env, binary(), "run", c.target, "1")
		if code != c.code {
			t.Errorf("%s: exit %d, want %d\n%s%s", c.target, code, c.code, out, errs)
		}
		for _, s := range c.says {
			if !strings.Contains(errs, s) {
				t.Errorf("%s: %q is not in\n%s", c.target, s, errs)
			}
		}
	}
}

// api posts to a method of the node's API with its JSON.
func (m *mesh) api(i int, method string, in any) map[string]any {
	m.t.Helper()
	b, err := json.Marshal(in)
	if err != nil {
		m.t.Fatal(err)
	}
	return m.request(i, http.MethodPost, "http://"+m.dev.Nodes[i-1].GRPC+"/"+method, "application/json", b)
}

func (m *mesh) request(i int, method, url, kind string, body []byte) map[string]any {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		m.t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set("Authorization", "Bearer "+m.dev.Nodes[i-1].Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		m.t.Fatal(err)
	}
	out := map[string]any{"status": resp.StatusCode, "text": string(answer)}
	_ = json.Unmarshal(answer, &out)
	return out
}

func TestHostileArchives(t *testing.T) {
	m := sharedMesh(t)
	for name, add := range map[string]func(w *zip.Writer){
		"../outside.py":    func(w *zip.Writer) { file(t, w, "../outside.py", 0o644, "x = 1") },
		"/etc/absolute.py": func(w *zip.Writer) { file(t, w, "/etc/absolute.py", 0o644, "x = 1") },
		"a/../../b.py":     func(w *zip.Writer) { file(t, w, "a/../../b.py", 0o644, "x = 1") },
		"a link out":       func(w *zip.Writer) { file(t, w, "out", os.ModeSymlink|0o777, "../../../etc/passwd") },
		"an absolute link": func(w *zip.Writer) { file(t, w, "out", os.ModeSymlink|0o777, "/etc/passwd") },
		"no zip at all":    nil,
	} {
		t.Run(name, func(t *testing.T) {
			body := []byte("this is no archive " + name)
			if add != nil {
				var b bytes.Buffer
				w := zip.NewWriter(&b)
				file(t, w, "app.py", 0o644, "x = 1")
				add(w)
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				body = b.Bytes()
			}
			sum := sha256.Sum256(body)
			hash := hex.EncodeToString(sum[:])
			made := m.api(1, "gateway.GatewayService/CreateObject", map[string]any{"hash": hash, "size": len(body)})
			url, _ := made["presignedUrl"].(string)
			if url == "" {
				t.Fatalf("no upload address: %v", made)
			}
			r := m.request(1, http.MethodPut, url, "application/zip", body)
			if s := r["status"].(int); s < 400 || s >= 500 {
				t.Errorf("the archive is answered with %d: %v", s, r["text"])
			}
			if !strings.Contains(r["text"].(string), "hint") || !strings.Contains(r["text"].(string), "message") {
				t.Errorf("the refusal is not clear: %v", r["text"])
			}
			head := m.api(1, "gateway.GatewayService/HeadObject", map[string]any{"hash": hash})
			if head["exists"] == true {
				t.Errorf("the archive was kept: %v", head)
			}
		})
	}
	if out := m.mustPython(1, square); !strings.Contains(out, "144") {
		t.Errorf("after all that: %s", out)
	}
}

func file(t testing.TB, w *zip.Writer, name string, mode os.FileMode, text string) {
	t.Helper()
	h := &zip.FileHeader{Name: name, Method: zip.Deflate}
	h.SetMode(mode)
	f, err := w.CreateHeader(h)
	if err == nil {
		_, err = f.Write([]byte(text))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// startNode starts a node in the network namespace of the host and gives what it
// said and its exit code: it is to fail.
func (m *mesh) startNode(data string, env []string, args ...string) (string, int) {
	m.t.Helper()
	p := m.start("/", append(append(os.Environ(), "HOME="+m.t.TempDir()), env...), binary(), append(args, "--data", data,
		"--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--no-mdns")...)
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		// It was taken. It has to end in order, or its containers' network stays.
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	}
	_, errs, code := p.wait()
	return errs, code
}

func TestBadTicketsAndFolders(t *testing.T) {
	m := sharedMesh(t)
	// Ticket times have a leeway of minutes for clocks that differ, so the
	// joining machine is made to live an hour later.
	short, errs, code := m.beam(1, "node", "invite", "--ttl", "1s")
	if code != 0 {
		t.Fatal(errs)
	}
	used := m.dev.Nodes[0].Ticket // node2 joined with it
	over := t.TempDir()
	lower, upper, work, merged := filepath.Join(over, "l"), filepath.Join(over, "u"), filepath.Join(over, "w"), filepath.Join(over, "m")
	for _, d := range []string{lower, upper, work, merged} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("mount", "-t", "overlay", "overlay", "-o", "lowerdir="+lower+",upperdir="+upper+",workdir="+work, merged).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", merged).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	for _, c := range []struct {
		name string
		data string
		args []string
		code int
		says []string
	}{
		{"garbage", t.TempDir(), []string{"node", "join", "beam1-garbage"}, 2, []string{"ticket", "hint: "}},
		{"used", t.TempDir(), []string{"node", "join", used}, 5, []string{"ticket", "used", "hint: "}},
		{"expired", t.TempDir(), []string{"node", "join", strings.TrimSpace(short)}, 4, []string{"expired", "hint: "}},
		{"folder in use", m.dev.Nodes[1].Dir, []string{"node", "up"}, 5, []string{"in use", "hint: "}},
		{"folder on overlay", merged, []string{"node", "up"}, 2, []string{"overlay", "hint: "}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var env []string
			if c.name == "expired" {
				env = append(env, "BEAM_TEST_CLOCK_OFFSET=1h")
			}
			text, code := m.startNode(c.data, env, c.args...)
			if code != c.code {
				t.Errorf("exit %d, want %d", code, c.code)
			}
			for _, s := range c.says {
				if !strings.Contains(text, s) {
					t.Errorf("%q is not in\n%s", s, lastLines(text, 12))
				}
			}
		})
	}
	if got := m.mustPython(2, square); !strings.Contains(got, "144") {
		t.Errorf("node2 after a second process wanted its folder: %s", got)
	}
}

// Clocks that are ten minutes off, and a disk below its floor.
func TestSkewedClockAndFullDisk(t *testing.T) {
	m := ownMesh(t, dev.Options{Nodes: 3, EnvOf: map[int][]string{2: {"BEAM_TEST_CLOCK_OFFSET=10m"}}})
	found := false
	for _, tr := range m.status(1).Troubles {
		found = found || tr.Code == "clock_skew" && strings.Contains(tr.Text, "node2") && strings.Contains(tr.Text, "10m0s") && tr.Hint != ""
	}
	if !found {
		t.Errorf("node1 says nothing of node2's clock: %+v", m.status(1).Troubles)
	}
	for i := 1; i <= 3; i++ {
		if got := m.mustPython(i, square); !strings.Contains(got, "144") {
			t.Errorf("from node%d: %s", i, got)
		}
	}
	m.restartWith(3, "--disk-floor", "900TiB")
	full := false
	eventually(t, patience, func() string {
		for _, tr := range m.status(3).Troubles {
			full = full || tr.Code == "disk_full" && tr.Hint != ""
		}
		if !full {
			return "node3 says nothing of its disk"
		}
		return ""
	})
	if got := m.mustPython(1, square); !strings.Contains(got, "144") {
		t.Errorf("with a full node in the mesh: %s", got)
	}
	// With every disk full the task waits, says why, and starts when one is not.
	m.restartWith(1, "--disk-floor", "900TiB")
	m.restartWith(2, "--disk-floor", "900TiB")
	waiting := m.startPython(2, square)
	eventually(t, patience, func() string {
		var tasks []map[string]any
		m.beamJSON(2, &tasks, "task", "list", "--status", "pending")
		if len(tasks) != 1 {
			return fmt.Sprintf("pending tasks: %v", tasks)
		}
		why, errs, _ := m.beam(2, "explain", tasks[0]["id"].(string))
		if !strings.Contains(why, "disk") {
			return "explain does not name the disk: " + why + errs
		}
		return ""
	})
	m.restartWith(3, "--disk-floor", "64MiB")
	if out, errs, code := waiting.wait(); code != 0 || !strings.Contains(out, "144") {
		t.Errorf("after node3 has disk again: exit %d\n%s%s", code, out, errs)
	}
}

// restartWith starts a node again with other flags.
func (m *mesh) restartWith(i int, args ...string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := dev.Restart(ctx, m.root, i, args...); err != nil {
		m.t.Fatal(err)
	}
}

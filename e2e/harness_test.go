package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/beammesh/beammesh/cli/dev"
)

// patience bounds every wait of these tests: the machines that run them are
// slow and shared.
const patience = 4 * time.Minute

// Fixed, so that a killed run is cleaned up by the next. BEAM_E2E_NAME lets two
// runs stand beside each other.
var (
	meshName = cmp.Or(os.Getenv("BEAM_E2E_NAME"), "beame2e")
	meshRoot = "/var/tmp/beammesh-" + meshName
)

var repo string // the repository's root

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	wd, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	repo = filepath.Dir(wd)
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "error: the end-to-end tests need root")
		return 1
	}
	if _, err := os.Stat(binary()); err != nil {
		fmt.Fprintln(os.Stderr, "error: no bin/beam: run make build")
		return 1
	}
	code := m.Run()
	if err := down(); err != nil {
		fmt.Fprintln(os.Stderr, "error: clean up:", err)
		return 1
	}
	return code
}

func binary() string { return filepath.Join(repo, "bin", "beam") }

func python() string {
	if p := os.Getenv("BEAM_TEST_PYTHON"); p != "" {
		return p
	}
	return filepath.Join(repo, ".cache", "venv", "bin", "python")
}

// down ends the mesh the way users do.
func down() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary(), "dev", "down", "--dir", meshRoot).CombinedOutput()
	if err != nil {
		return fmt.Errorf("beam dev down: %w: %s", err, out)
	}
	return nil
}

// mesh is a dev mesh under test.
type mesh struct {
	t    testing.TB
	root string
	dev  *dev.Mesh
}

var shared struct {
	sync.Mutex
	mesh *dev.Mesh
}

// sharedMesh gives the mesh of three that tests must leave as they found it.
func sharedMesh(t testing.TB) *mesh {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.mesh == nil {
		shared.mesh = up(t, dev.Options{Nodes: 3, GPUs: "H100:2,RTX4090:1"}).dev
	}
	return &mesh{t: t, root: meshRoot, dev: shared.mesh}
}

// ownMesh makes a mesh that the test may break. The shared one ends.
func ownMesh(t testing.TB, o dev.Options) *mesh {
	t.Helper()
	shared.Lock()
	shared.mesh = nil
	shared.Unlock()
	m := up(t, o)
	t.Cleanup(func() {
		if t.Failed() {
			m.dumpLogs()
		}
		if err := down(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func up(t testing.TB, o dev.Options) *mesh {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := down(); err != nil {
		t.Fatal("clean up an earlier mesh:", err)
	}
	m := &mesh{t: t, root: meshRoot}
	d, err := dev.Up(ctx, m.options(o), nil)
	if err != nil {
		t.Fatal("dev up:", err)
	}
	m.dev = d
	return m
}

// options adds to o what all meshes of these tests have.
func (m *mesh) options(o dev.Options) dev.Options {
	o.Root, o.Name, o.Binary = meshRoot, meshName, binary()
	o.NodeEnv = append(o.NodeEnv, "BEAM_BASE_CACHE="+filepath.Join(repo, ".cache", "base"))
	o.NodeArgs = append(o.NodeArgs, "--log-level", "debug")
	return o
}

func (m *mesh) dumpLogs() {
	for _, n := range m.dev.Nodes {
		b, err := os.ReadFile(n.Log)
		if err != nil {
			continue
		}
		m.t.Logf("--- end of the log of %s ---\n%s", n.Name, b[max(0, len(b)-8000):])
	}
}

// env is the environment of a client of node i.
func (m *mesh) env(i int) []string {
	m.t.Helper()
	lines, err := dev.Env(m.root, i)
	if err != nil {
		m.t.Fatal(err)
	}
	keep := []string{"PYTHONPATH=" + filepath.Join(repo, "sdk", "python"), "HOME=" + m.t.TempDir(), "PATH=" + os.Getenv("PATH"), "NO_COLOR=1"}
	return append(keep, lines...)
}

// beam runs the command line against node i.
func (m *mesh) beam(i int, args ...string) (stdout, stderr string, code int) {
	m.t.Helper()
	return m.exec(m.t.TempDir(), m.env(i), binary(), args...)
}

// beamJSON runs a command that must work and decodes its JSON.
func (m *mesh) beamJSON(i int, into any, args ...string) {
	m.t.Helper()
	out, errs, code := m.beam(i, append(args, "--json")...)
	if code != 0 {
		m.t.Fatalf("beam %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		m.t.Fatalf("beam %s: %v in %q", strings.Join(args, " "), err, out)
	}
}

// python runs a program against node i in a folder of its own.
func (m *mesh) python(i int, program string, args ...string) (stdout, stderr string, code int) {
	m.t.Helper()
	dir := m.t.TempDir()
	return m.exec(dir, m.env(i), python(), append([]string{write(m.t, dir, "app.py", program)}, args...)...)
}

// mustPython is python for programs that must work.
func (m *mesh) mustPython(i int, program string, args ...string) string {
	m.t.Helper()
	out, errs, code := m.python(i, program, args...)
	if code != 0 {
		m.t.Fatalf("program ended with %d\n--- stdout\n%s\n--- stderr\n%s", code, out, errs)
	}
	return out
}

func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func (m *mesh) exec(dir string, env []string, name string, args ...string) (stdout, stderr string, code int) {
	m.t.Helper()
	p := m.start(dir, env, name, args...)
	return p.wait()
}

// proc is a client process.
type proc struct {
	t        testing.TB
	cmd      *exec.Cmd
	out, err *watched
	done     chan struct{}
}

func (m *mesh) start(dir string, env []string, name string, args ...string) *proc {
	m.t.Helper()
	p := &proc{t: m.t, cmd: exec.Command(name, args...), out: newWatched(), err: newWatched(), done: make(chan struct{})}
	p.cmd.Dir, p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = dir, env, p.out, p.err
	if err := p.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	m.t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
	})
	return p
}

// startPython starts a program against node i.
func (m *mesh) startPython(i int, program string, args ...string) *proc {
	m.t.Helper()
	dir := m.t.TempDir()
	return m.start(dir, m.env(i), python(), append([]string{"-u", write(m.t, dir, "app.py", program)}, args...)...)
}

func (p *proc) wait() (stdout, stderr string, code int) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%s did not end\n--- stdout\n%s\n--- stderr\n%s", p.cmd, p.out, p.err)
	}
	return p.out.String(), p.err.String(), p.cmd.ProcessState.ExitCode()
}

// expect waits until the process printed text on stdout.
func (p *proc) expect(text string) {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		s, changed := p.out.snapshot()
		if strings.Contains(s, text) {
			return
		}
		select {
		case <-changed:
		case <-p.done:
			if s, _ := p.out.snapshot(); strings.Contains(s, text) {
				return
			}
			p.t.Fatalf("the program ended without printing %q\n--- stdout\n%s\n--- stderr\n%s", text, p.out, p.err)
		case <-deadline:
			p.t.Fatalf("the program did not print %q\n--- stdout\n%s\n--- stderr\n%s", text, p.out, p.err)
		}
	}
}

// watched is a buffer that can be waited on.
type watched struct {
	mu      sync.Mutex
	b       bytes.Buffer
	changed chan struct{}
}

func newWatched() *watched { return &watched{changed: make(chan struct{})} }

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b.Write(p)
	close(w.changed)
	w.changed = make(chan struct{})
	return len(p), nil
}

func (w *watched) snapshot() (string, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String(), w.changed
}

func (w *watched) String() string {
	s, _ := w.snapshot()
	return s
}

// eventually tries fn until it gives "" or patience is over; what is watched
// lies in other processes, which cannot be waited for by event.
func eventually(t testing.TB, limit time.Duration, fn func() string) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		why := fn()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(why)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/runtimetest"
)

const testNamespaces = "BEAM_TEST_NAMESPACES"

// TestMain runs the tests again in network and mount namespaces of their own:
// nothing of them is seen on the machine but processes and cgroups.
func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		victim()
		return
	}
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(testNamespaces) != "" {
		err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), exec.Command("ip", "link", "set", "lo", "up").Run())
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), testNamespaces+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := c.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// probePath is the probe on the host, built once.
var probePath = sync.OnceValues(func() (string, error) {
	out := filepath.Join(os.TempDir(), fmt.Sprintf("engtst-probe-%d", os.Getpid()))
	cmd := exec.Command("go", "build", "-o", out, "../runtimetest/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build probe: %w: %s", err, b)
	}
	return out, nil
})

// layerWriter knows a few trees by name.
type layerWriter struct {
	probe string
	mu    sync.Mutex
	calls map[string]int
	hold  chan struct{} // "slow" waits for it
}

func (w *layerWriter) WriteLayer(ctx context.Context, root, dir string) error {
	w.mu.Lock()
	if w.calls == nil {
		w.calls = map[string]int{}
	}
	w.calls[root]++
	w.mu.Unlock()
	switch {
	case root == "base":
		for _, d := range []string{"bin", "etc", "proc", "sys", "dev"} {
			if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
				return err
			}
		}
		b, err := os.ReadFile(w.probe)
		if err != nil {
			return err
		}
		return errors.Join(os.WriteFile(filepath.Join(dir, "bin/probe"), b, 0o755),
			os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644))
	case root == "code":
		return os.WriteFile(filepath.Join(dir, "app.py"), []byte("print(12)"), 0o644)
	case root == "without passwd":
		return os.Remove(filepath.Join(dir, "etc/passwd"))
	case root == "slow":
		select {
		case <-w.hold:
			return os.WriteFile(filepath.Join(dir, "slow"), nil, 0o644)
		case <-ctx.Done():
			return ctx.Err()
		}
	case root == "link":
		return os.Symlink("/etc", filepath.Join(dir, "mnt"))
	case len(root) > 5 && root[:5] == "size-":
		return os.WriteFile(filepath.Join(dir, root), make([]byte, 1<<20), 0o644)
	}
	return fmt.Errorf("unknown root %q", root)
}

func assetPath(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("BEAM_ASSETS")
	if dir == "" {
		dir = "../../build/out"
	}
	p, err := filepath.Abs(filepath.Join(dir, name))
	if err == nil {
		_, err = os.Stat(p)
	}
	if err != nil {
		t.Fatalf("%v: make it with: go run ./build/assets", err)
	}
	return p
}

// testConfig makes a configuration with folders of its own.
func testConfig(t testing.TB) Config {
	t.Helper()
	needRoot(t)
	probe, err := probePath()
	if err != nil {
		t.Fatal(err)
	}
	state, err := os.MkdirTemp("/run", "engtst")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	return Config{Root: t.TempDir(), State: state, Name: "engtst", Spare: 2, LayerWriter: &layerWriter{probe: probe},
		ShimPath: assetPath(t, "containerd-shim-runc-v2"), RuncPath: assetPath(t, "runc"), InitPath: assetPath(t, "initd"),
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))}
}

func newEngine(t testing.TB, change func(*Config)) *Engine {
	t.Helper()
	cfg := testConfig(t)
	if change != nil {
		change(&cfg)
	}
	e, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

var base = []runtime.Layer{{Root: "base"}}

func target(e *Engine) runtimetest.Target {
	return runtimetest.Target{Engine: e, Layers: base, Probe: "/bin/probe"}
}

func start(t testing.TB, e *Engine, spec runtime.Spec) runtime.Container {
	t.Helper()
	if spec.Layers == nil {
		spec.Layers = base
	}
	ctx, cancel := context.WithTimeout(context.Background(), runtimetest.Patience)
	defer cancel()
	c, err := e.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConformance(t *testing.T) {
	needRoot(t)
	runtimetest.Run(t, target(newEngine(t, nil)), "conf")
}

package containerd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/runtimetest"
)

func ctrdContext() context.Context {
	return namespaces.WithNamespace(context.Background(), ctrdNamespace)
}

func unsynced(name string) snapshots.Info {
	return snapshots.Info{Name: name, Labels: map[string]string{labelSynced: ""}}
}

// processesWith lists processes by parts of their command lines.
func processesWith(t testing.TB, parts ...string) []int {
	t.Helper()
	l, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, p := range l {
		b, _ := os.ReadFile(p)
		if pid, _ := strconv.Atoi(strings.Split(p, "/")[2]); pid != os.Getpid() &&
			!slices.ContainsFunc(parts, func(s string) bool { return !strings.Contains(string(b), s) }) {
			out = append(out, pid)
		}
	}
	return out
}

// victimEnv makes this test binary a node that is going to be killed: it
// starts containers for as long as it lives.
const victimEnv = "BEAM_TEST_VICTIM"

type victimConfig struct{ Root, State, Name, Shim, Runc, Init, Probe string }

func victim() {
	var v victimConfig
	if err := json.Unmarshal([]byte(os.Getenv(victimEnv)), &v); err != nil {
		panic(err)
	}
	cfg := Config{Root: v.Root, State: v.State, Name: v.Name, ShimPath: v.Shim, RuncPath: v.Runc, InitPath: v.Init,
		LayerWriter: &layerWriter{probe: v.Probe}}
	fmt.Println("begin")
	e, err := New(context.Background(), cfg)
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println("engine")
	for i := 0; ; i++ {
		c, err := e.Start(context.Background(), runtime.Spec{ID: fmt.Sprintf("v-%d", i), Layers: base, Limits: runtime.Limits{MemoryBytes: 64 << 20}})
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println("container")
		for range 2 {
			if _, err := c.Exec(context.Background(), runtime.ProcessSpec{Args: []string{"/bin/probe", "stubborn"}}); err != nil {
				fmt.Println("error:", err)
			}
		}
		if i%3 == 2 {
			c.Stop(context.Background(), 0)
		}
	}
}

// footprint is everything of an engine that can be seen on the machine.
func footprint(t *testing.T, c *Config) []string {
	t.Helper()
	var out []string
	add := func(kind string, l []string) {
		for _, s := range l {
			out = append(out, kind+" "+s)
		}
	}
	mounts, err := mountsBelow(c.State)
	if err != nil {
		t.Fatal(err)
	}
	add("mount", mounts)
	if mounts, err = mountsBelow(c.Root); err != nil {
		t.Fatal(err)
	}
	add("mount", mounts)
	for _, cmd := range [][]string{{"ip", "-o", "link"}, {"nft", "list", "ruleset"}, {"losetup", "-a"}} {
		b, err := exec.Command(cmd[0], cmd[1:]...).Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, c.Name) || strings.Contains(line, c.Root) {
				add(cmd[0], []string{line})
			}
		}
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + c.Name + "*")
	more, _ := filepath.Glob("/sys/fs/cgroup/" + c.Name + "*")
	add("cgroup", append(groups, more...))
	for _, pid := range processesWith(t, c.State+"/") {
		add("process", []string{strconv.Itoa(pid)})
	}
	for _, dir := range []string{c.State, c.disks()} {
		l, _ := os.ReadDir(dir)
		for _, e := range l {
			add("file", []string{filepath.Join(dir, e.Name())})
		}
	}
	leftover, _ := filepath.Glob(filepath.Join(c.layers(), "mnt-*"))
	add("file", leftover)
	return out
}

func TestKilledNodeLeavesNothingAfterSweep(t *testing.T) {
	cfg := testConfig(t)
	full, err := cfg.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	j, err := json.Marshal(victimConfig{cfg.Root, cfg.State, cfg.Name, cfg.ShimPath, cfg.RuncPath, cfg.InitPath, cfg.LayerWriter.(*layerWriter).probe})
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	// Killed after so many lines, and then so many bytes of CPU time later as
	// the machine likes: each round hits another place.
	for round, lines := range []int{1, 2, 3, 5, 8, 4, 2, 1} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), victimEnv+"="+string(j))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		s := bufio.NewScanner(out)
		for range lines {
			if !s.Scan() || strings.HasPrefix(s.Text(), "error") {
				t.Fatalf("round %d: node says %q", round, s.Text())
			}
		}
		cmd.Process.Kill()
		cmd.Wait()
		seen = append(seen, footprint(t, &full)...)

		ctx, cancel := context.WithTimeout(context.Background(), runtimetest.Patience)
		if round%2 == 0 {
			err = Sweep(ctx, cfg)
		} else { // a node that starts again sweeps by itself
			var e *Engine
			if e, err = New(ctx, cfg); err == nil {
				if l := e.List(); len(l) != 0 {
					t.Errorf("round %d: containers %v after the restart", round, l)
				}
				err = errors.Join(e.Sweep(ctx, nil), e.Close())
			}
		}
		cancel()
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if left := footprint(t, &full); len(left) > 0 {
			t.Fatalf("round %d: left after the sweep:\n%s", round, strings.Join(left, "\n"))
		}
		s2, err := openLayers(context.Background(), &full)
		if err != nil {
			t.Fatal(err)
		}
		infos, _, err := s2.walk(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for name, i := range infos {
			if i.Kind != snapshots.KindCommitted {
				t.Errorf("round %d: snapshot %s is left", round, name)
			}
		}
		s2.close()
	}
	// The test would prove nothing if there had been nothing to remove.
	for _, kind := range []string{"mount ", "ip ", "nft ", "losetup ", "cgroup ", "process ", "file "} {
		if !slices.ContainsFunc(seen, func(s string) bool { return strings.HasPrefix(s, kind) }) {
			t.Errorf("no killed node had a %s", kind)
		}
	}
}

func TestOneEngineForAFolder(t *testing.T) {
	e := newEngine(t, nil)
	if _, err := New(context.Background(), e.cfg); err == nil || !strings.Contains(err.Error(), "another node uses") {
		t.Errorf("second engine: %v", err)
	}
	if err := Sweep(context.Background(), e.cfg); err == nil {
		t.Error("swept the folders of a running engine")
	}
}

func TestCloseCutsShort(t *testing.T) {
	e := newEngine(t, nil)
	w := e.cfg.LayerWriter.(*layerWriter)
	w.hold = make(chan struct{}) // never closed
	errc := make(chan error, 1)
	go func() {
		_, err := e.Start(context.Background(), runtime.Spec{ID: "slow", Layers: []runtime.Layer{{Root: "slow"}}})
		errc <- err
	}()
	waitWaiters(t, e.layers, 1)
	c := start(t, e, runtime.Spec{ID: "running"})
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-errc; !errors.Is(err, runtime.ErrClosed) {
		t.Errorf("Start during Close: %v, want ErrClosed", err)
	}
	runtimetest.WaitFor(t, "running container", c.Done())
	if _, err := e.Start(context.Background(), runtime.Spec{ID: "late", Layers: base}); !errors.Is(err, runtime.ErrClosed) {
		t.Errorf("Start after Close: %v, want ErrClosed", err)
	}
	if left := footprint(t, &e.cfg); len(left) > 0 {
		t.Errorf("left after Close:\n%s", strings.Join(left, "\n"))
	}
}

func TestTwoEngines(t *testing.T) {
	a := newEngine(t, nil)
	b := newEngine(t, func(c *Config) { c.Name = "engtst2" })
	for i, e := range []*Engine{a, b, a} {
		c := start(t, e, runtime.Spec{ID: fmt.Sprintf("c%d", i)})
		if o := target(e).Do(t, c, "say", "x"); o.Code != 0 {
			t.Errorf("%+v", o)
		}
	}
	if a.net.Subnet().Overlaps(b.net.Subnet()) {
		t.Errorf("both have %v", a.net.Subnet())
	}
}

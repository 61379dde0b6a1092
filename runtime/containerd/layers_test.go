package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/runtimetest"
)

func owner(fi os.FileInfo) (uid, gid uint32, ok bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return st.Uid, st.Gid, true
}

func testLayers(t *testing.T, dir string, w *layerWriter, budget int64) *layerStore {
	t.Helper()
	needRoot(t)
	c := &Config{Root: dir, LayerWriter: w, LayerBytes: budget, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if err := os.MkdirAll(c.layers(), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := openLayers(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testWriter(t *testing.T) *layerWriter {
	t.Helper()
	p, err := probePath()
	if err != nil {
		t.Fatal(err)
	}
	return &layerWriter{probe: p, hold: make(chan struct{})}
}

func chain(roots ...string) []runtime.Layer {
	var out []runtime.Layer
	for _, r := range roots {
		out = append(out, runtime.Layer{Root: r})
	}
	return out
}

func ensureNow(t *testing.T, s *layerStore, l []runtime.Layer) {
	t.Helper()
	_, release, err := s.ensure(context.Background(), l)
	if err != nil {
		t.Fatal(err)
	}
	release()
}

func TestLayersAreSharedAndKept(t *testing.T) {
	w := testWriter(t)
	dir := t.TempDir()
	s := testLayers(t, dir, w, 0)
	ensureNow(t, s, chain("base", "code"))
	ensureNow(t, s, chain("base", "size-a"))
	lower, release, err := s.ensure(context.Background(), chain("base", "code"))
	if err != nil {
		t.Fatal(err)
	}
	release()
	if len(lower) != 2 {
		t.Errorf("folders %v, want 2", lower)
	}
	if _, err := os.Stat(filepath.Join(s.dir, lower[0], "app.py")); err != nil {
		t.Errorf("the topmost folder is not first: %v", err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	s = testLayers(t, dir, w, 0)
	ensureNow(t, s, chain("base", "code"))
	s.close()
	if w.calls["base"] != 1 || w.calls["code"] != 1 {
		t.Errorf("writes %v, want one of each", w.calls)
	}
}

func TestLayersSingleFlight(t *testing.T) {
	w := testWriter(t)
	s := testLayers(t, t.TempDir(), w, 0)
	defer s.close()
	// The one who came first leaves; the others still get the layer.
	ctx, cancel := context.WithCancel(context.Background())
	errc := make(chan error, 1)
	go func() {
		_, _, err := s.ensure(ctx, chain("slow"))
		errc <- err
	}()
	waitWaiters(t, s, 1)
	var wg sync.WaitGroup
	errs := make([]error, 3)
	for i := range errs {
		wg.Go(func() {
			_, release, err := s.ensure(context.Background(), chain("slow"))
			if err == nil {
				release()
			}
			errs[i] = err
		})
	}
	waitWaiters(t, s, 4)
	cancel()
	if err := <-errc; !errors.Is(err, context.Canceled) {
		t.Errorf("who left got %v", err)
	}
	close(w.hold)
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if w.calls["slow"] != 1 {
		t.Errorf("%d writes, want 1", w.calls["slow"])
	}
}

func waitWaiters(t *testing.T, s *layerStore, n int) {
	t.Helper()
	for end := time.Now().Add(runtimetest.Patience); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		got := 0
		for _, f := range s.flights {
			got += f.waiters
		}
		s.mu.Unlock()
		if got == n {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d waiters, want %d", got, n)
		}
	}
}

func TestLayersFailureAndAbandon(t *testing.T) {
	w := testWriter(t)
	dir := t.TempDir()
	s := testLayers(t, dir, w, 0)
	if _, _, err := s.ensure(context.Background(), chain("base", "nothing")); err == nil || !strings.Contains(err.Error(), "nothing") {
		t.Errorf("unknown root: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	errc := make(chan error, 1)
	go func() {
		_, _, err := s.ensure(ctx, chain("slow"))
		errc <- err
	}()
	waitWaiters(t, s, 1)
	cancel()
	if err := <-errc; !errors.Is(err, context.Canceled) {
		t.Errorf("abandoned: %v", err)
	}
	close(w.hold)
	ensureNow(t, s, chain("slow")) // afresh
	infos, _, err := s.walk(context.Background())
	if err != nil || len(infos) != 2 {
		t.Errorf("snapshots %v, %v; want base and slow", infos, err)
	}
	if len(s.pins) != 0 {
		t.Errorf("pins left: %v", s.pins)
	}
	s.close()
	if m, _ := mountsBelow(dir); len(m) != 0 {
		t.Errorf("mounts left: %v", m)
	}
}

func TestLayersPrefix(t *testing.T) {
	s := testLayers(t, t.TempDir(), testWriter(t), 0)
	defer s.close()
	for _, prefix := range []string{"../etc", "/etc", "mnt/../../x"} {
		if _, _, err := s.ensure(context.Background(), []runtime.Layer{{Root: "base"}, {Root: "code", Prefix: prefix}}); err == nil {
			t.Errorf("prefix %q was taken", prefix)
		}
	}
	// The layer below has a link mnt → /etc of the host.
	_, _, err := s.ensure(context.Background(), []runtime.Layer{{Root: "link"}, {Root: "code", Prefix: "mnt/code"}})
	if err == nil {
		t.Error("a link in a layer led the next one out")
	}
	if _, err := os.Stat("/etc/code"); err == nil {
		os.RemoveAll("/etc/code")
		t.Error("wrote to the host")
	}
}

func TestLayersBudget(t *testing.T) {
	w := testWriter(t)
	s := testLayers(t, t.TempDir(), w, 0)
	defer s.close()
	var pinned func()
	for i := range 6 { // a megabyte each
		_, release, err := s.ensure(context.Background(), chain(fmt.Sprintf("size-%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			pinned = release // the oldest, but in use
		} else {
			release()
		}
	}
	ensureNow(t, s, chain("size-1")) // used again
	s.wg.Wait()
	s.budget = 3<<20 + 512<<10
	if err := s.collect(context.Background()); err != nil {
		t.Fatal(err)
	}
	left := func() string {
		infos, _, err := s.walk(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for i := range 6 {
			if _, ok := infos[chainNames(chain(fmt.Sprintf("size-%d", i)))[0]]; ok {
				out = append(out, fmt.Sprint(i))
			}
		}
		return strings.Join(out, " ")
	}
	if got := left(); got != "0 1 5" {
		t.Errorf("left %q, want the pinned and the two used last: 0 1 5", got)
	}
	pinned()
	s.budget = 1
	if err := s.collect(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := left(); got != "" {
		t.Errorf("left %q, want none", got)
	}
	ensureNow(t, s, chain("size-1"))
	if w.calls["size-1"] != 2 {
		t.Errorf("%d writes of a layer that was dropped, want 2", w.calls["size-1"])
	}
}

// TestLayersAfterPowerCut: a layer that a boot before this one wrote and did
// not sync is not trusted, and neither is what lies on it.
func TestLayersAfterPowerCut(t *testing.T) {
	w := testWriter(t)
	dir := t.TempDir()
	s := testLayers(t, dir, w, 0)
	ensureNow(t, s, chain("base"))
	s.wg.Wait() // base is synced
	s.boot = "an earlier boot"
	names := chainNames(chain("base", "code", "size-a"))
	if err := s.build(context.Background(), names[0], names[1], runtime.Layer{Root: "code"}); err != nil {
		t.Fatal(err)
	}
	s.wg.Wait()
	if _, err := s.sn.Update(context.Background(), unsynced(names[1]), "labels."+labelSynced); err != nil {
		t.Fatal(err)
	}
	s.boot = strings.TrimSpace(string(mustRead(t, "/proc/sys/kernel/random/boot_id")))
	ensureNow(t, s, chain("base", "code", "size-a"))
	s.close()
	s = testLayers(t, dir, w, 0)
	defer s.close()
	infos, _, err := s.walk(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := infos[names[0]]; len(infos) != 1 || !ok {
		t.Errorf("left %v, want base only", infos)
	}
}

// TestLayersAfterKill: the snapshotter had made a folder and was killed before
// it wrote that down.
func TestLayersAfterKill(t *testing.T) {
	w := testWriter(t)
	for name, first := range map[string][]runtime.Layer{"nothing recorded": nil, "one recorded": chain("code")} {
		dir := t.TempDir()
		s := testLayers(t, dir, w, 0)
		if first != nil {
			ensureNow(t, s, first)
		}
		s.close()
		orphan := filepath.Join(s.snapshotDir(), "7", "fs")
		next := filepath.Join(s.snapshotDir(), fmt.Sprint(len(first)+2), "fs") // in the way
		if err := errors.Join(os.MkdirAll(orphan, 0o755), os.MkdirAll(next, 0o755)); err != nil {
			t.Fatal(err)
		}
		s = testLayers(t, dir, w, 0)
		for i := range 8 {
			ensureNow(t, s, chain(fmt.Sprintf("size-%s-%d", name, i)))
		}
		s.close()
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

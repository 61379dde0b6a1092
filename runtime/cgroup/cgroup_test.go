package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func testGroup(t *testing.T) *Group {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	h, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	g := h.Group(fmt.Sprintf("/beamtest%d", os.Getpid()))
	if err := g.Make(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := g.Kill(ctx); err != nil {
			t.Error(err)
		}
		if err := g.Remove(ctx); err != nil {
			t.Error(err)
		}
		if g.Exists() {
			t.Error("group exists after Remove")
		}
	})
	return g
}

// shell starts a shell inside the group.
func shell(t *testing.T, g *Group, script string) *exec.Cmd {
	t.Helper()
	enter := ""
	for _, d := range g.dirs() {
		enter += "echo $$ > " + filepath.Join(d, "cgroup.procs") + ";"
	}
	c := exec.Command("sh", "-c", enter+script)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	return c
}

func TestLimitsAndUsage(t *testing.T) {
	g := testGroup(t)
	for _, mem := range []int64{64 << 20, 128 << 20, 32 << 20} { // up and down
		if err := g.Set(Limits{CPUMillis: 500, MemoryBytes: mem, PIDs: 20}); err != nil {
			t.Fatal(err)
		}
	}
	c := shell(t, g, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	u, err := g.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if u.CPU <= 0 || u.OOMKills != 0 || u.PIDs != 0 {
		t.Errorf("usage after one ended process: %+v", u)
	}
}

func TestQuotaStaysBelowTheGroupsAround(t *testing.T) {
	g := testGroup(t)
	if err := g.Set(Limits{CPUMillis: 300}); err != nil {
		t.Fatal(err)
	}
	inner := g.Child("inner")
	if err := inner.Make(); err != nil {
		t.Fatal(err)
	}
	if err := inner.Set(Limits{CPUMillis: 2000}); err != nil {
		t.Fatalf("a limit above that of the group around: %v", err)
	}
	if q := inner.QuotaIn(2000); g.h.Version() == 1 && q != Quota(300) {
		t.Errorf("quota %s in a group with %s", q, Quota(300))
	}
}

func TestOOMIsReported(t *testing.T) {
	g := testGroup(t)
	if err := g.Set(Limits{MemoryBytes: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	oom, err := g.WatchOOM(ctx)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-oom:
		t.Fatal("out of memory before anything ran")
	default:
	}
	// tail keeps everything, as there is no newline.
	shell(t, g, "head -c 100m /dev/zero | tail > /dev/null")
	select {
	case <-oom:
	case <-ctx.Done():
		t.Fatal("kill was not reported")
	}
	if n, err := g.OOMKills(); err != nil || n < 1 {
		t.Errorf("kills = %d, %v", n, err)
	}
}

func TestKillEndsAll(t *testing.T) {
	g := testGroup(t)
	c := shell(t, g, "sleep 1000 & sleep 1000 & echo ready > /dev/null; wait")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	done := make(chan struct{})
	go func() { c.Wait(); close(done) }()
	for { // until the shell is in and has its children
		l, err := g.pids()
		if err != nil {
			t.Fatal(err)
		}
		if len(l) >= 3 {
			break
		}
		if pause(ctx) != nil {
			t.Fatal("shell did not start")
		}
	}
	if err := g.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	<-done
	if l, err := g.pids(); err != nil || len(l) != 0 {
		t.Errorf("left after Kill: %v, %v", l, err)
	}
}

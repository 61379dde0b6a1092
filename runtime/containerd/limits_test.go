package containerd

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/runtimetest"
)

func TestLimits(t *testing.T) {
	e := newEngine(t, nil)
	tg := target(e)
	stop := func(c runtime.Container) {
		ctx, cancel := context.WithTimeout(context.Background(), runtimetest.Patience)
		defer cancel()
		if err := c.Stop(ctx, 0); err != nil {
			t.Error(err)
		}
	}
	t.Run("CPU", func(t *testing.T) {
		c := start(t, e, runtime.Spec{ID: "cpu", Limits: runtime.Limits{CPUMillis: 200}})
		defer stop(c)
		used := func() int {
			o := tg.Do(t, c, "spin", "2000")
			n, err := strconv.Atoi(o.Stdout)
			if err != nil {
				t.Fatalf("%+v", o)
			}
			return n
		}
		// A fifth of 2 s, and a period for what was under way.
		if n := used(); n > 600 {
			t.Errorf("%d ms of CPU in 2 s with a fifth of a core", n)
		}
		ctx := context.Background()
		if err := c.SetLimits(ctx, runtime.Limits{CPUMillis: 50}); err != nil {
			t.Fatal(err)
		}
		if n := used(); n > 250 {
			t.Errorf("%d ms of CPU in 2 s with a twentieth of a core", n)
		}
		if u, err := c.Usage(ctx); err != nil || u.CPU < 100*time.Millisecond || u.MemoryBytes == 0 || u.PIDs == 0 {
			t.Errorf("usage %+v, %v", u, err)
		}
	})
	t.Run("Memory", func(t *testing.T) {
		c := start(t, e, runtime.Spec{ID: "mem", Limits: runtime.Limits{MemoryBytes: 48 << 20}})
		defer stop(c)
		if o := tg.Do(t, c, "alloc", fmt.Sprint(24<<20)); o.Stdout != "allocated" {
			t.Fatalf("within the limit: %+v", o)
		}
		ctx, cancel := context.WithTimeout(context.Background(), runtimetest.Patience)
		defer cancel()
		p, err := c.Exec(ctx, runtime.ProcessSpec{Args: []string{tg.Probe, "alloc", fmt.Sprint(200 << 20)}})
		if err != nil {
			t.Fatal(err)
		}
		runtimetest.WaitFor(t, "process out of memory", p.Done())
		if p.ExitCode() != 137 {
			t.Errorf("exit code %d, want 137", p.ExitCode())
		}
		runtimetest.WaitFor(t, "container out of memory", c.Done())
		if end := c.End(); end.Reason != runtime.EndOOM {
			t.Errorf("end %+v, want out_of_memory", end)
		}
		if u, err := c.Usage(ctx); err != nil || u.OOMKills < 1 {
			t.Errorf("usage after the end: %+v, %v", u, err)
		}
	})
	t.Run("PIDs", func(t *testing.T) {
		c := start(t, e, runtime.Spec{ID: "pids", Limits: runtime.Limits{PIDs: 40}})
		defer stop(c)
		o := tg.Do(t, c, "fork", "200")
		if o.Code != 1 || !strings.Contains(o.Stdout, "resource temporarily unavailable") {
			t.Errorf("200 processes with a limit of 40: %+v", o)
		}
	})
	t.Run("Disk", func(t *testing.T) {
		c := start(t, e, runtime.Spec{ID: "disk", Limits: runtime.Limits{DiskBytes: 64 << 20}})
		defer stop(c)
		if o := tg.Do(t, c, "fill", "/a", fmt.Sprint(32<<20)); o.Code != 0 {
			t.Errorf("half of the disk: %+v", o)
		}
		if o := tg.Do(t, c, "fill", "/b", fmt.Sprint(64<<20)); o.Code != 1 || !strings.Contains(o.Stderr, syscall.ENOSPC.Error()) {
			t.Errorf("more than the disk: %+v", o)
		}
		// Others are not touched, and the default disk takes as much.
		d := start(t, e, runtime.Spec{ID: "disk2"})
		defer stop(d)
		if o := tg.Do(t, d, "fill", "/b", fmt.Sprint(96<<20)); o.Code != 0 {
			t.Errorf("default disk: %+v", o)
		}
	})
}

func TestEnds(t *testing.T) {
	e := newEngine(t, nil)
	tg := target(e)
	t.Run("InitKilled", func(t *testing.T) {
		c := start(t, e, runtime.Spec{ID: "initkilled"})
		p := tg.Await(t, c, "sleep")
		pid, err := c.(*container).task.PID(ctrdContext())
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(int(pid), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		runtimetest.WaitFor(t, "container", c.Done())
		runtimetest.WaitFor(t, "process", p.Done())
		if end := c.End(); end.Reason != runtime.EndLost {
			t.Errorf("end %+v, want lost", end)
		}
	})
	t.Run("ShimKilled", func(t *testing.T) {
		c := start(t, e, runtime.Spec{ID: "shimkilled"})
		p := tg.Await(t, c, "sleep")
		for _, pid := range processesWith(t, "containerd-shim-runc-v2", "shimkilled") {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		runtimetest.WaitFor(t, "container", c.Done())
		runtimetest.WaitFor(t, "process", p.Done())
		if end := c.End(); end.Reason != runtime.EndLost {
			t.Errorf("end %+v, want lost", end)
		}
		if c.(*container).group.Exists() {
			t.Error("cgroup is still there")
		}
		// The name is free, nothing is in the way.
		again := start(t, e, runtime.Spec{ID: "shimkilled"})
		if o := tg.Do(t, again, "say", "x"); o.Code != 0 {
			t.Errorf("%+v", o)
		}
	})
	t.Run("InitDoesNotConnect", func(t *testing.T) {
		spec := runtime.Spec{ID: "noinit", Layers: base}
		old := e.cfg.InitPath
		e.cfg.InitPath = e.cfg.LayerWriter.(*layerWriter).probe // prints usage and exits
		defer func() { e.cfg.InitPath = old }()
		ctx, cancel := context.WithTimeout(context.Background(), runtimetest.Patience)
		defer cancel()
		_, err := e.Start(ctx, spec)
		if err == nil || !strings.Contains(err.Error(), "usage: probe") {
			t.Errorf("error %v, want what init said", err)
		}
		if l, _ := os.ReadDir(e.cfg.containers()); len(l) > 1 {
			t.Errorf("left after the failed start: %v", l)
		}
	})
}

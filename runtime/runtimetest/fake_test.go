package runtimetest_test

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/runtimetest"
)

type writer struct{}

func (writer) WriteLayer(_ context.Context, root, dir string) error {
	if root != "good" {
		return errors.New("unknown root")
	}
	return os.WriteFile(dir+"/file", nil, 0o644)
}

func TestFake(t *testing.T) {
	probe := runtimetest.BuildProbe(t)
	f := runtimetest.NewFake(t.TempDir(), writer{})
	t.Cleanup(func() { f.Close() })
	runtimetest.Run(t, runtimetest.Target{Engine: f, Layers: []runtime.Layer{{Root: "good"}}, Probe: probe}, "fake")
}

func TestFakeCrash(t *testing.T) {
	probe := runtimetest.BuildProbe(t)
	f := runtimetest.NewFake(t.TempDir(), nil)
	t.Cleanup(func() { f.Close() })
	c, err := f.Start(context.Background(), runtime.Spec{ID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	p := runtimetest.Target{Probe: probe}.Await(t, c, "sleep")
	if err := c.(*runtimetest.FakeContainer).Crash(runtime.EndOOM); err != nil {
		t.Fatal(err)
	}
	runtimetest.WaitFor(t, "process", p.Done())
	u, _ := c.Usage(context.Background())
	if e := c.End(); e.Reason != runtime.EndOOM || u.OOMKills != 1 || p.ExitCode() != 137 {
		t.Errorf("end %+v, usage %+v, process %d", e, u, p.ExitCode())
	}
}

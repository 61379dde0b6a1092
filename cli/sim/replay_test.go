package sim_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/record"
	"github.com/beammesh/beammesh/scheduler/replicas"
	"github.com/beammesh/beammesh/simulations/replay"
)

// journals writes what three nodes would have recorded of a hundred calls that
// need a GPU, of which box2 and box3 have one each.
func journals(dir string) error {
	var l replay.Load
	for i := range 3 {
		name := fmt.Sprintf("box%d", i+1)
		r := scheduler.Resources{CPUMillis: 4000, MemoryMiB: 1 << 14, DiskMiB: 1 << 16}
		c := scheduler.Capacity{Total: r, Free: r, Arch: "amd64", Isolation: []string{"trusted"}}
		if i > 0 {
			c.Devices = []scheduler.Device{{ID: "sim-0", Class: "H100", MemoryMiB: 80 << 10, FreeMilli: 1000, Simulated: true}}
		}
		l.Nodes = append(l.Nodes, replay.Node{ID: scheduler.NodeID(name), Name: name,
			Owner:  market.OwnerConfig{ID: market.OwnerID{Peer: scheduler.NodeID(name), Epoch: 1}},
			Worker: market.WorkerConfig{Node: scheduler.NodeID(name), Name: name, Boot: "b", Capacity: c}})
	}
	l.Stubs = []replay.Stub{{Owner: "box1", Key: "ws/train", Name: "train", Config: replicas.Config{Max: 8, KeepWarm: time.Second},
		Demand: scheduler.Demand{CPUMillis: 1000, MemoryMiB: 256, GPUs: []gpu.Want{{Class: "H100", Count: 1}}}}}
	for i := range 100 {
		l.Calls = append(l.Calls, replay.Call{At: time.Duration(i) * 100 * time.Millisecond, Lasts: 150 * time.Millisecond, ID: replicas.CallID(fmt.Sprintf("call-%03d", i))})
	}
	js, _, err := replay.Simulate(context.Background(), l, replay.Defaults, replay.Options{})
	if err != nil {
		return err
	}
	for _, j := range js {
		var b []byte
		for i := range j.Records {
			if b, err = record.Append(b, &j.Records[i]); err != nil {
				return err
			}
		}
		to := filepath.Join(dir, j.Name, "market")
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, "market-1-000001.jsonl"), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func TestReplayScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/replay",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("LANG", "C.UTF-8")
			return journals(e.WorkDir)
		},
	})
}

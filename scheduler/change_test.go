package scheduler_test

import (
	"strings"
	"testing"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
)

func TestWithChangesOneThing(t *testing.T) {
	base := scheduler.Demand{CPUMillis: 1000, MemoryMiB: 512, GPUs: []gpu.Want{{Class: "H100", Count: 1}}}
	for change, want := range map[string]string{
		"cpu=2.5":      "2.5 cores, 512 MiB, H100",
		"memory=8GiB":  "1 core, 8 GiB, H100",
		"memory=768":   "1 core, 768 MiB, H100",
		"disk=2g":      "1 core, 512 MiB, 2 GiB disk, H100",
		"gpu=any":      "1 core, 512 MiB, any GPU",
		"gpu=A10,L4:2": "1 core, 512 MiB, A10 or 2x L4",
		"gpu=none":     "1 core, 512 MiB",
	} {
		d, err := base.With(change)
		if err != nil || d.String() != want {
			t.Errorf("%s: got %q, %v, want %q", change, d, err, want)
		}
	}
	if base.String() != "1 core, 512 MiB, H100" {
		t.Errorf("the base has changed: %s", base)
	}
}

func TestWithSaysWhatIsWrong(t *testing.T) {
	for change, want := range map[string]string{
		"":             "name=value",
		"gpu":          "name=value",
		"gpu=":         "name=value",
		"cpu=-1":       "number of cores",
		"cpu=NaN":      "number of cores",
		"cpu=many":     "number of cores",
		"memory=1TiB":  "size is wanted",
		"memory=-5":    "size is wanted",
		"colour=green": "cpu, memory, disk, gpu, zone can",
		"gpu=H100:999": "gpu=",
	} {
		if _, err := (scheduler.Demand{}).With(change); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q in it", change, err, want)
		}
	}
}

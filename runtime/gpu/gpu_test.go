package gpu

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/beammesh/beammesh/proto/fault"
)

func TestModel(t *testing.T) {
	for _, c := range []struct {
		product string
		mib     int64
		want    string
	}{
		{"NVIDIA H100 80GB HBM3", 81559, "H100"},
		{"NVIDIA H200", 143771, "H200"},
		{"NVIDIA GH200 480GB", 97871, "GH200"},
		{"NVIDIA A100-SXM4-40GB", 40960, "A100-40"},
		{"NVIDIA A100 80GB PCIe", 81920, "A100-80"},
		{"NVIDIA A10G", 23028, "A10G"},
		{"NVIDIA A10", 23028, "A10"},
		{"NVIDIA L40S", 46068, "L40S"},
		{"NVIDIA L4", 23034, "L4"},
		{"Tesla T4", 15360, "T4"},
		{"Tesla V100-SXM2-32GB", 32768, "V100-32"},
		{"Tesla V100-SXM2-16GB", 16384, "V100"},
		{"NVIDIA GeForce RTX 4090", 24564, "RTX4090"},
		{"NVIDIA GeForce RTX 4090 Laptop GPU", 16376, "RTX4090LaptopGPU"},
		{"NVIDIA GeForce RTX 4090 D", 24564, "RTX4090D"},
		{"NVIDIA GeForce RTX 3090 Ti", 24564, "RTX3090Ti"},
		{"NVIDIA RTX A6000", 49140, "A6000"},
		{"NVIDIA RTX A1000", 8192, "RTXA1000"},
		{"NVIDIA RTX 6000 Ada Generation", 49140, "RTX6000Ada"},
		{"Quadro RTX 6000", 24576, "RTX6000"},
		{"NVIDIA RTX PRO 6000 Blackwell Server Edition", 97887, "RTXPro6000"},
		{"", 0, ""},
	} {
		if got := Model(c.product, c.mib); got != c.want {
			t.Errorf("Model(%q, %d) = %q, want %q", c.product, c.mib, got, c.want)
		}
	}
}

func TestSimulated(t *testing.T) {
	inv, err := Simulated("h100:2, RTX4090,MyGPU:1")
	if err != nil {
		t.Fatal(err)
	}
	devs, err := inv.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range devs {
		got = append(got, d.ID)
		if !d.Simulated || d.MemoryMiB == 0 || !strings.HasPrefix(d.Product, "simulated ") {
			t.Errorf("device %+v is not marked", d)
		}
	}
	if want := []string{"SIM-0-H100", "SIM-1-H100", "SIM-2-RTX4090", "SIM-3-MyGPU"}; !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	e, err := inv.Edits(t.Context(), got[1:3])
	if err != nil {
		t.Fatal(err)
	}
	s := specs.Spec{Process: &specs.Process{Env: []string{"A=1"}}}
	e.Apply(&s)
	j, _ := json.Marshal(s)
	for want, times := range map[string]int{"/dev/nvidia1-simulated": 1, "/dev/nvidia2-simulated": 1, "simulated": 2,
		"BEAM_SIMULATED_GPU=SIM-1-H100,SIM-2-RTX4090": 1, "A=1": 1} {
		if n := strings.Count(string(j), want); n != times {
			t.Errorf("%s is %d times in %s", want, n, j)
		}
	}
	if _, err := inv.Edits(t.Context(), []string{"SIM-9-H100"}); !errors.Is(err, ErrNoDevice) {
		t.Errorf("unknown device: %v", err)
	}
	if e, err := inv.Edits(t.Context(), nil); err != nil || len(e.Mounts)+len(e.Env)+len(e.Devices) != 0 {
		t.Errorf("no device granted, edits %+v, %v", e, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := inv.Watch(ctx)
	if l := <-w; len(l) != 4 {
		t.Errorf("watch gave %v", l)
	}
	cancel()
	if _, open := <-w; open {
		t.Error("watch goes on")
	}
}

func TestSimulatedRefuses(t *testing.T) {
	for _, list := range []string{"", "H100:0", "H100:-1", "H100:x", ":2", "H100:65", "H 100", "H100:1,,", "../x:1"} {
		_, err := Simulated(list)
		if fault.CodeOf(err) != fault.Invalid || fault.From(err).Hint == "" {
			t.Errorf("%q: %v", list, err)
		}
	}
}

func TestApplyDevices(t *testing.T) {
	e := Edits{Devices: []DeviceNode{
		{Path: "/dev/nvidia0", HostPath: "/dev/nvidia0", Type: "c", Major: 195, Minor: 0, Access: "rw"},
		{Path: "/dev/nvidiactl", HostPath: "/run/driver/dev/nvidiactl", Type: "c", Major: 195, Minor: 255, Access: "rw"},
	}}
	var s specs.Spec
	e.Apply(&s)
	if l := s.Linux; len(l.Devices) != 1 || l.Devices[0].Path != "/dev/nvidia0" || len(l.Resources.Devices) != 2 ||
		*l.Resources.Devices[1].Minor != 255 || !l.Resources.Devices[1].Allow {
		t.Errorf("linux: %+v", l)
	}
	if len(s.Mounts) != 1 || s.Mounts[0].Source != "/run/driver/dev/nvidiactl" || s.Mounts[0].Destination != "/dev/nvidiactl" {
		t.Errorf("mounts: %+v", s.Mounts)
	}
}

func TestPausesDoubleUpToAMinute(t *testing.T) {
	h := testHelper(t, "/no/such/helper", time.Minute)
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60} {
		h.mu.Lock()
		h.failedLocked(errors.New("x"))
		got := time.Until(h.notUntil)
		h.mu.Unlock()
		if want *= time.Second; got > want || got < want-5*time.Second {
			t.Errorf("pause is %s, want %s", got, want)
		}
	}
	h.worked()
	if _, err := h.List(t.Context()); err == nil || errors.Is(err, ErrNoDriver) {
		t.Errorf("helper that cannot be started: %v", err)
	}
}

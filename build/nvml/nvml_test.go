//go:build cgo && linux

package main

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/beammesh/beammesh/runtime/gpu"
)

// The test binary is also the helper, with NVIDIA's mock of a DGX H100.
func TestMain(m *testing.M) {
	if root := os.Getenv("NVML_TEST_ROOT"); root != "" {
		if err := serve(os.Stdin, os.Stdout, &driver{lib: dgx(nil), root: root}); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// dgx is the mock, with the functions that it leaves out.
func dgx(events *mock.EventSet) *server.Server {
	s := dgxh100.New()
	s.ErrorStringFunc = func(r nvml.Return) string { return r.String() }
	s.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) {
		if events == nil {
			return nil, nvml.ERROR_NOT_SUPPORTED
		}
		return events, nvml.SUCCESS
	}
	for _, d := range s.Devices {
		dev := d.(*server.Device)
		dev.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 0, nvml.SUCCESS }
		dev.IsMigDeviceHandleFunc = func() (bool, nvml.Return) { return false, nvml.SUCCESS }
		dev.GetSupportedEventTypesFunc = func() (uint64, nvml.Return) {
			return nvml.EventTypeXidCriticalError | nvml.EventTypeDoubleBitEccError, nvml.SUCCESS
		}
		dev.RegisterEventsFunc = func(uint64, nvml.EventSet) nvml.Return { return nvml.SUCCESS }
	}
	return s
}

func TestListDescribesDevices(t *testing.T) {
	d := &driver{lib: dgx(nil), root: t.TempDir(), changed: func() {}}
	r := answer(d, gpu.Request{ID: 7, Op: gpu.OpList})
	if r.ID != 7 || r.Error != "" || len(r.Devices) != 8 {
		t.Fatalf("got %+v", r)
	}
	seen := map[string]bool{}
	for _, g := range r.Devices {
		if g.Model != "H100" || g.MemoryMiB < 79000 || g.Compute != "9.0" || g.Driver != "550.54.15" ||
			g.CUDA != "12.4" || g.Simulated || g.Unhealthy != "" || !strings.HasPrefix(g.ID, "GPU-") || seen[g.ID] {
			t.Errorf("got %+v", g)
		}
		seen[g.ID] = true
	}
	if r := answer(d, gpu.Request{Op: "dance"}); r.Error == "" {
		t.Error("unknown operation was answered")
	}
}

func TestListShowsInstances(t *testing.T) {
	s := dgx(nil)
	one := s.Devices[0].(*server.Device)
	one.MigMode = nvml.DEVICE_MIG_ENABLE
	one.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
	one.GetMigDeviceHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if i != 2 {
			return nil, nvml.ERROR_NOT_FOUND
		}
		return &mock.Device{
			GetUUIDFunc: func() (string, nvml.Return) { return "MIG-x", nvml.SUCCESS },
			GetAttributesFunc: func() (nvml.DeviceAttributes, nvml.Return) {
				return nvml.DeviceAttributes{GpuInstanceSliceCount: 1, MemorySizeMB: 9984}, nvml.SUCCESS
			},
		}, nvml.SUCCESS
	}
	r := answer(&driver{lib: s, changed: func() {}}, gpu.Request{Op: gpu.OpList})
	if r.Error != "" || len(r.Devices) != 8 {
		t.Fatalf("got %+v", r)
	}
	m := r.Devices[0]
	if m.ID != "MIG-x" || m.MIG != "1g.10gb" || m.MemoryMiB != 9984 || m.Parent == "" || m.Model != "H100" {
		t.Errorf("got %+v", m)
	}
}

func TestNoDriver(t *testing.T) {
	s := dgx(nil)
	s.InitFunc = func() nvml.Return { return nvml.ERROR_LIBRARY_NOT_FOUND }
	if r := answer(&driver{lib: s}, gpu.Request{Op: gpu.OpList}); !r.NoDriver {
		t.Errorf("got %+v", r)
	}
}

// Errors of programs do not speak against a device; those of the hardware do.
func TestHealth(t *testing.T) {
	events := make(chan nvml.EventData)
	s := dgx(&mock.EventSet{WaitFunc: func(uint32) (nvml.EventData, nvml.Return) {
		e, ok := <-events
		if !ok {
			return e, nvml.ERROR_UNKNOWN
		}
		return e, nvml.SUCCESS
	}})
	changed := make(chan struct{}, 10)
	d := &driver{lib: s, changed: func() { changed <- struct{}{} }}
	if err := d.open(); err != nil {
		t.Fatal(err)
	}
	xid := func(i int, x uint64) {
		events <- nvml.EventData{Device: s.Devices[i], EventType: nvml.EventTypeXidCriticalError, EventData: x}
	}
	xid(0, 31)
	xid(1, 79)
	<-changed
	events <- nvml.EventData{Device: s.Devices[2], EventType: nvml.EventTypeDoubleBitEccError}
	<-changed
	close(events)
	r := answer(d, gpu.Request{Op: gpu.OpList})
	for i, want := range []string{"", "XID 79", "memory error", ""} {
		if got := r.Devices[i].Unhealthy; !strings.Contains(got, want) || (want == "") != (got == "") {
			t.Errorf("device %d: %q, want %q", i, got, want)
		}
	}
}

// driverRoot is a tree with a driver's files. Device nodes can be made by root
// only; made reports whether they are there.
func driverRoot(t testing.TB) (root string, made bool) {
	t.Helper()
	root, made = t.TempDir(), true
	for _, f := range []string{"usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15", "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.54.15",
		"usr/bin/nvidia-smi"} {
		at := filepath.Join(root, f)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "dev"), 0o755); err != nil {
		t.Fatal(err)
	}
	for n, minor := range map[string]int{"nvidiactl": 255, "nvidia-uvm": 254, "nvidia0": 0, "nvidia1": 1, "nvidia2": 2} {
		err := syscall.Mknod(filepath.Join(root, "dev", n), syscall.S_IFCHR|0o666, 195<<8|minor)
		if errors.Is(err, syscall.EPERM) {
			made = false
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return root, made
}

// The whole way: the node's side, a real helper process, NVIDIA's library over
// the mock, and an OCI spec that holds exactly what was granted.
func TestGrantThroughHelperProcess(t *testing.T) {
	root, nodes := driverRoot(t)
	t.Setenv("NVML_TEST_ROOT", root)
	h := gpu.NewHelper(gpu.HelperConfig{Argv: []string{"/proc/self/exe"}, Always: true, Limit: time.Minute,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	defer h.Close()
	devs, err := h.List(t.Context())
	if err != nil || len(devs) != 8 {
		t.Fatalf("%d devices, %v", len(devs), err)
	}
	e, err := h.Edits(t.Context(), []string{devs[1].ID})
	if err != nil {
		t.Fatal(err)
	}
	var s specs.Spec
	e.Apply(&s)
	j, _ := json.Marshal(s)
	for _, want := range []string{"/usr/lib/x86_64-linux-gnu/libcuda.so.1\"",
		"/usr/lib/x86_64-linux-gnu/libcuda.so\"", "libcuda.so.550.54.15", "NVIDIA_VISIBLE_DEVICES=" + devs[1].ID} {
		if !strings.Contains(string(j), want) {
			t.Errorf("spec lacks %s: %s", want, j)
		}
	}
	for _, other := range []string{"/dev/nvidia0", "/dev/nvidia2", "hook"} {
		if strings.Contains(string(j), other) {
			t.Errorf("spec has %s: %s", other, j)
		}
	}
	if s.Hooks != nil {
		t.Errorf("hooks %v", s.Hooks)
	}
	if _, err := h.Edits(t.Context(), []string{"GPU-none"}); !errors.Is(err, gpu.ErrNoDevice) {
		t.Errorf("unknown device: %v", err)
	}
	if !nodes {
		t.Log("not root: device nodes cannot be made, the rest was checked")
		return
	}
	both, err := h.Edits(t.Context(), []string{devs[0].ID, devs[2].ID})
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, d := range both.Devices {
		paths = append(paths, d.Path)
	}
	if want := []string{"/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia2", "/dev/nvidiactl"}; !slices.Equal(paths, want) {
		t.Errorf("two devices: %v, want %v", paths, want)
	}
	if len(e.Devices) != 3 || len(s.Linux.Resources.Devices) != 3 {
		t.Errorf("one device: %+v", e.Devices)
	}
}

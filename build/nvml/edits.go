//go:build cgo && linux

package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi"
	cdi "tags.cncf.io/container-device-interface/specs-go"

	"github.com/beammesh/beammesh/runtime/gpu"
)

// edits asks NVIDIA's own library what a container needs, and takes device
// nodes, mounts and environment of it; hooks are switched off.
func (d *driver) edits(ids []string) (gpu.Edits, error) {
	have, err := d.list()
	if err != nil {
		return gpu.Edits{}, err
	}
	for _, id := range ids {
		if !slices.ContainsFunc(have, func(g gpu.Device) bool { return g.ID == id }) {
			return gpu.Edits{}, fmt.Errorf("%w: %s", gpu.ErrNoDevice, id)
		}
	}
	lib, err := nvcdi.New(nvcdi.WithLogger(quiet{}), nvcdi.WithNvmlLib(d.lib), nvcdi.WithMode(nvcdi.ModeNvml),
		nvcdi.WithDriverRoot(d.root), nvcdi.WithDevRoot(d.root),
		nvcdi.WithDisabledHooks(nvcdi.AllHooks),
		nvcdi.WithFeatureFlags(nvcdi.FeatureDisableNvsandboxUtils, nvcdi.FeatureDisableIPCDiscoverer))
	if err != nil {
		return gpu.Edits{}, fmt.Errorf("container device interface: %w", err)
	}
	common, err := lib.GetCommonEdits()
	if err != nil {
		return gpu.Edits{}, fmt.Errorf("files of the driver: %w", err)
	}
	devs, err := lib.GetDeviceSpecsByID(ids...)
	if err != nil {
		return gpu.Edits{}, fmt.Errorf("files of the devices: %w", err)
	}
	var e gpu.Edits
	add(&e, common.ContainerEdits)
	for i := range devs {
		add(&e, &devs[i].ContainerEdits)
	}
	finish(&e, ids)
	return e, nil
}

func add(e *gpu.Edits, c *cdi.ContainerEdits) {
	if c == nil {
		return
	}
	for _, kv := range c.Env {
		// They speak to NVIDIA's own container runtime, which is not here.
		if !strings.HasPrefix(kv, "NVIDIA_VISIBLE_DEVICES=") && !strings.HasPrefix(kv, "NVIDIA_CTK_") {
			e.Env = append(e.Env, kv)
		}
	}
	for _, m := range c.Mounts {
		e.Mounts = append(e.Mounts, gpu.Mount{Source: m.HostPath, Target: m.ContainerPath, Options: m.Options})
	}
	for _, n := range c.DeviceNodes {
		e.Devices = append(e.Devices, gpu.DeviceNode{Path: n.Path, HostPath: n.HostPath, Type: cmp.Or(n.Type, "c"),
			Major: n.Major, Minor: n.Minor, Access: "rw"})
	}
}

var versioned = regexp.MustCompile(`^(lib.+\.so)\.\d+(\.\d+)+$`)

// finish makes up for the hooks: programs ask for libcuda.so.1 and libcuda.so,
// the driver's file has its version in the name, and no hook makes the links.
func finish(e *gpu.Edits, ids []string) {
	have := map[string]bool{}
	for _, m := range e.Mounts {
		have[m.Target] = true
	}
	for _, m := range slices.Clone(e.Mounts) {
		dir, base := filepath.Split(m.Target)
		v := versioned.FindStringSubmatch(base)
		if v == nil {
			continue
		}
		for _, name := range []string{v[1] + ".1", v[1]} {
			if at := dir + name; !have[at] {
				have[at] = true
				e.Mounts = append(e.Mounts, gpu.Mount{Source: m.Source, Target: at, Options: m.Options})
			}
		}
	}
	slices.SortFunc(e.Devices, func(a, b gpu.DeviceNode) int { return cmp.Compare(a.Path, b.Path) })
	e.Devices = slices.CompactFunc(e.Devices, func(a, b gpu.DeviceNode) bool { return a.Path == b.Path })
	e.Env = append(e.Env, "NVIDIA_VISIBLE_DEVICES="+strings.Join(ids, ","))
}

// quiet drops what the library logs: most drivers lack most of the files that
// it looks for, and what matters it returns.
type quiet struct{}

func (quiet) Debugf(string, ...any)   {}
func (quiet) Errorf(string, ...any)   {}
func (quiet) Infof(string, ...any)    {}
func (quiet) Warningf(string, ...any) {}
func (quiet) Tracef(string, ...any)   {}

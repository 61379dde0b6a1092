//go:build cgo && linux

package main

import (
	"fmt"
	"sync"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/beammesh/beammesh/runtime/gpu"
)

// driver is the NVIDIA driver, opened once.
type driver struct {
	lib     nvml.Interface
	root    string // where the driver's files and /dev lie
	changed func() // called from another goroutine when a device's health changed

	opened bool

	mu   sync.Mutex
	sick map[string]string // device id → why
}

func (d *driver) open() error {
	if d.opened {
		return nil
	}
	switch ret := d.lib.Init(); ret {
	case nvml.SUCCESS:
	case nvml.ERROR_LIBRARY_NOT_FOUND, nvml.ERROR_DRIVER_NOT_LOADED, nvml.ERROR_NO_PERMISSION:
		return fmt.Errorf("%w: %s", gpu.ErrNoDriver, d.lib.ErrorString(ret))
	default:
		return fmt.Errorf("open driver: %s", d.lib.ErrorString(ret))
	}
	d.opened = true
	d.sick = map[string]string{}
	go d.watchHealth()
	return nil
}

func (d *driver) list() ([]gpu.Device, error) {
	n, ret := d.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("count devices: %s", d.lib.ErrorString(ret))
	}
	version, _ := d.lib.SystemGetDriverVersion()
	cuda := ""
	if v, ret := d.lib.SystemGetCudaDriverVersion(); ret == nvml.SUCCESS {
		cuda = fmt.Sprintf("%d.%d", v/1000, v%1000/10)
	}
	var all []gpu.Device
	for i := range n {
		dev, ret := d.lib.DeviceGetHandleByIndex(i)
		if ret == nvml.ERROR_GPU_IS_LOST {
			continue // fell off the bus; the others still work
		}
		if ret != nvml.SUCCESS {
			return nil, fmt.Errorf("device %d: %s", i, d.lib.ErrorString(ret))
		}
		g, err := d.describe(dev)
		if err != nil {
			return nil, fmt.Errorf("device %d: %w", i, err)
		}
		g.Driver, g.CUDA = version, cuda
		parts, on := d.instances(dev, g)
		if on { // a GPU in MIG mode cannot be used as a whole
			all = append(all, parts...)
		} else {
			all = append(all, g)
		}
	}
	return all, nil
}

func (d *driver) describe(dev nvml.Device) (gpu.Device, error) {
	id, ret := dev.GetUUID()
	if ret != nvml.SUCCESS {
		return gpu.Device{}, fmt.Errorf("uuid: %s", d.lib.ErrorString(ret))
	}
	name, ret := dev.GetName()
	if ret != nvml.SUCCESS {
		return gpu.Device{}, fmt.Errorf("name: %s", d.lib.ErrorString(ret))
	}
	g := gpu.Device{ID: id, Product: name, Unhealthy: d.why(id)}
	if m, ret := dev.GetMemoryInfo(); ret == nvml.SUCCESS {
		g.MemoryMiB = int64(m.Total >> 20)
	}
	if major, minor, ret := dev.GetCudaComputeCapability(); ret == nvml.SUCCESS {
		g.Compute = fmt.Sprintf("%d.%d", major, minor)
	}
	g.Model = gpu.Model(name, g.MemoryMiB)
	return g, nil
}

// instances lists the MIG instances of a GPU; on is whether MIG is in use.
func (d *driver) instances(dev nvml.Device, g gpu.Device) (parts []gpu.Device, on bool) {
	mode, _, ret := dev.GetMigMode()
	if ret != nvml.SUCCESS || mode != nvml.DEVICE_MIG_ENABLE {
		return nil, false
	}
	n, ret := dev.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return nil, true
	}
	for i := range n {
		m, ret := dev.GetMigDeviceHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // a free place
		}
		id, ret := m.GetUUID()
		if ret != nvml.SUCCESS {
			continue
		}
		p := g
		p.ID, p.Parent = id, g.ID
		if a, ret := m.GetAttributes(); ret == nvml.SUCCESS {
			p.MemoryMiB = int64(a.MemorySizeMB)
			// The driver's profiles are named by memory slices of whole GB.
			p.MIG = fmt.Sprintf("%dg.%dgb", a.GpuInstanceSliceCount, (a.MemorySizeMB+1023)/1024)
		}
		parts = append(parts, p)
	}
	return parts, true
}

func (d *driver) why(id string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sick[id]
}

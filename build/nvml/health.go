//go:build cgo && linux

package main

import (
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// The driver's XID errors that a program brings upon itself; all others speak
// against the device. From the driver's list of XIDs.
var programs = map[uint64]bool{
	13:  true, // exception in a kernel
	31:  true, // memory page fault
	43:  true, // channel reset after an error of the program
	45:  true, // clean-up after another error
	68:  true, // video processor exception
	109: true, // context switch timeout
}

// eventMillis is how long one wait for an event lasts; it bounds nothing else.
const eventMillis = 60_000

// watchHealth marks devices that report hardware errors. A driver that cannot
// tell is no error: List works without.
func (d *driver) watchHealth() {
	defer func() { _ = recover() }() // mocks of older cards lack the events
	set, ret := d.lib.EventSetCreate()
	if ret != nvml.SUCCESS {
		return
	}
	n, ret := d.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return
	}
	ids := 0
	for i := range n {
		dev, ret := d.lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue
		}
		kinds, ret := dev.GetSupportedEventTypes()
		if ret != nvml.SUCCESS {
			continue
		}
		want := uint64(nvml.EventTypeXidCriticalError | nvml.EventTypeDoubleBitEccError)
		if dev.RegisterEvents(want&kinds, set) == nvml.SUCCESS {
			ids++
		}
	}
	for ids > 0 {
		e, ret := set.Wait(eventMillis)
		switch ret {
		case nvml.SUCCESS:
		case nvml.ERROR_TIMEOUT:
			continue
		default:
			return
		}
		why := ""
		switch {
		case e.EventType == nvml.EventTypeDoubleBitEccError:
			why = "uncorrectable memory error"
		case e.EventType == nvml.EventTypeXidCriticalError && !programs[e.EventData]:
			why = fmt.Sprintf("hardware error reported by the driver: XID %d", e.EventData)
		}
		if why == "" {
			continue
		}
		id, ret := e.Device.GetUUID()
		if ret != nvml.SUCCESS {
			continue
		}
		d.mark(id, why)
	}
}

func (d *driver) mark(id, why string) {
	d.mu.Lock()
	d.sick[id] = why
	d.mu.Unlock()
	d.changed()
}

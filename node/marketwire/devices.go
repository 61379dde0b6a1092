package marketwire

import (
	"fmt"
	"slices"

	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/scheduler"
)

// AdvertSmall is AdvertOut without the ids of devices and with those that are
// alike put together: 64 devices of 16 classes take some 600 bytes instead of
// 4,000. AdvertIn reads both; the ids become "gpu-0", "gpu-1" and so on.
func AdvertSmall(a scheduler.Advert) *peerv1.Advert {
	p := AdvertOut(a)
	p.Capacity.Devices = nil
	p.Capacity.DeviceRuns, p.Capacity.DevicePlaces = runsOut(a.Capacity.Devices)
	return p
}

func runsOut(devices []scheduler.Device) (runs []*peerv1.DeviceRun, places []byte) {
	members := [][]int{} // of each run, as places in devices
	for i, d := range devices {
		k := slices.IndexFunc(runs, func(r *peerv1.DeviceRun) bool {
			return r.Class == d.Class && r.MemoryMib == d.MemoryMiB && r.Simulated == d.Simulated
		})
		if k < 0 {
			k = len(runs)
			runs = append(runs, &peerv1.DeviceRun{Class: d.Class, MemoryMib: d.MemoryMiB, Simulated: d.Simulated})
			members = append(members, nil)
		}
		members[k] = append(members[k], i)
		runs[k].Count++
		runs[k].FreeMilli = append(runs[k].FreeMilli, d.FreeMilli)
	}
	sorted := true
	for k, r := range runs {
		if r.Count > 1 && len(slices.Compact(slices.Clone(r.FreeMilli))) == 1 {
			r.FreeMilli = r.FreeMilli[:1]
		}
		for _, i := range members[k] {
			sorted = sorted && i == len(places)
			places = append(places, byte(i)) // MaxDevices is below 256
		}
	}
	if sorted {
		places = nil
	}
	return runs, places
}

// runsIn lists the devices of runs. Above scheduler.MaxDevices it stops one
// later, so that Validate refuses the advert.
func runsIn(runs []*peerv1.DeviceRun, places []byte) []scheduler.Device {
	var out []scheduler.Device
	for _, r := range runs {
		for i := range int(min(r.GetCount(), scheduler.MaxDevices+1)) {
			if len(out) > scheduler.MaxDevices {
				return out
			}
			d := scheduler.Device{Class: r.GetClass(), MemoryMiB: r.GetMemoryMib(), Simulated: r.GetSimulated()}
			switch free := r.GetFreeMilli(); {
			case i < len(free):
				d.FreeMilli = free[i]
			case len(free) == 1:
				d.FreeMilli = free[0]
			}
			out = append(out, d)
		}
	}
	if isOrder(places, len(out)) {
		in := slices.Clone(out)
		for k, i := range places {
			out[i] = in[k]
		}
	}
	for i := range out {
		out[i].ID = fmt.Sprint("gpu-", i)
	}
	return out
}

// isOrder tells whether places has each of 0 to n-1 once.
func isOrder(places []byte, n int) bool {
	if len(places) != n {
		return false
	}
	p := slices.Sorted(slices.Values(places))
	for i, b := range p {
		if int(b) != i {
			return false
		}
	}
	return true
}

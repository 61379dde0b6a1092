package marketwire

import (
	"fmt"
	"time"
	"unicode/utf8"

	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/ipfs/go-cid"
)

// each maps a list, keeping nil for an empty one.
func each[A, B any](in []A, fn func(A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, len(in))
	for i, a := range in {
		out[i] = fn(a)
	}
	return out
}

func amountsOut(r scheduler.Resources) *peerv1.Amounts {
	return &peerv1.Amounts{CpuMillis: r.CPUMillis, MemoryMib: r.MemoryMiB, DiskMib: r.DiskMiB}
}

func amountsIn(a *peerv1.Amounts) scheduler.Resources {
	return scheduler.Resources{CPUMillis: a.GetCpuMillis(), MemoryMiB: a.GetMemoryMib(), DiskMiB: a.GetDiskMib()}
}

// rootsOut packs a CID's text into its bytes: 36 instead of 59. What is not a
// CID is dropped; a hot root is only a hint.
func rootsOut(roots []string) [][]byte {
	var out [][]byte
	for _, r := range roots {
		if c, err := cid.Decode(r); err == nil {
			out = append(out, c.Bytes())
		}
	}
	return out
}

func rootsIn(in [][]byte) []string {
	var out []string
	for _, b := range in {
		if c, err := cid.Cast(b); err == nil {
			out = append(out, c.String())
		}
	}
	return out
}

// AdvertOut is the wire form of an advert.
func AdvertOut(a scheduler.Advert) *peerv1.Advert {
	c := a.Capacity
	return &peerv1.Advert{Node: string(a.Node), Name: a.Name, Boot: a.Boot, Seq: a.Seq, Capacity: &peerv1.Capacity{
		Total: amountsOut(c.Total), Free: amountsOut(c.Free), DiskFloorMib: c.DiskFloorMiB,
		Devices: each(c.Devices, func(d scheduler.Device) *peerv1.Device {
			return &peerv1.Device{Id: d.ID, Class: d.Class, MemoryMib: d.MemoryMiB, FreeMilli: d.FreeMilli, Simulated: d.Simulated}
		}),
		Queue: int64(c.Queue), Zone: c.Zone, HotRoots: rootsOut(c.HotRoots), Isolation: c.Isolation, Arch: c.Arch,
		Features: c.Features, Draining: c.Draining, BandwidthKibps: c.BandwidthKiBps,
	}}
}

// AdvertIn reads an advert that arrived from elsewhere; callers Validate it.
func AdvertIn(a *peerv1.Advert) scheduler.Advert {
	c := a.GetCapacity()
	devices := each(c.GetDevices(), func(d *peerv1.Device) scheduler.Device {
		return scheduler.Device{ID: d.GetId(), Class: d.GetClass(), MemoryMiB: d.GetMemoryMib(), FreeMilli: d.GetFreeMilli(), Simulated: d.GetSimulated()}
	})
	if len(devices) == 0 {
		devices = runsIn(c.GetDeviceRuns(), c.GetDevicePlaces())
	}
	return scheduler.Advert{Node: scheduler.NodeID(a.GetNode()), Name: a.GetName(), Boot: a.GetBoot(), Seq: a.GetSeq(), Capacity: scheduler.Capacity{
		Total: amountsIn(c.GetTotal()), Free: amountsIn(c.GetFree()), DiskFloorMiB: c.GetDiskFloorMib(),
		Devices: devices, Queue: int(c.GetQueue()), Zone: c.GetZone(), HotRoots: rootsIn(c.GetHotRoots()), Isolation: c.GetIsolation(), Arch: c.GetArch(),
		Features: c.GetFeatures(), Draining: c.GetDraining(), BandwidthKiBps: c.GetBandwidthKibps(),
	}}
}

func demandOut(d scheduler.Demand) *peerv1.Demand {
	return &peerv1.Demand{
		Amounts: amountsOut(scheduler.Resources{CPUMillis: d.CPUMillis, MemoryMiB: d.MemoryMiB, DiskMiB: d.DiskMiB}),
		Gpus: each(d.GPUs, func(w gpu.Want) *peerv1.GPUWant {
			return &peerv1.GPUWant{Class: w.Class, Count: int64(w.Count)}
		}),
		GpuMilli: d.GPUMilli, StrictCpu: d.StrictCPU,
		Roots: each(d.Roots, func(r scheduler.Root) *peerv1.ContentRoot {
			return &peerv1.ContentRoot{Name: r.Name, Bytes: r.Bytes}
		}),
		Isolation: d.Isolation, Zone: d.Zone, Arch: d.Arch, Features: d.Features, Priority: int64(d.Priority), Workspace: d.Workspace,
	}
}

func demandIn(d *peerv1.Demand) scheduler.Demand {
	a := amountsIn(d.GetAmounts())
	return scheduler.Demand{
		CPUMillis: a.CPUMillis, MemoryMiB: a.MemoryMiB, DiskMiB: a.DiskMiB,
		GPUs: each(d.GetGpus(), func(w *peerv1.GPUWant) gpu.Want {
			return gpu.Want{Class: w.GetClass(), Count: int(w.GetCount())}
		}),
		GPUMilli: d.GetGpuMilli(), StrictCPU: d.GetStrictCpu(),
		Roots: each(d.GetRoots(), func(r *peerv1.ContentRoot) scheduler.Root {
			return scheduler.Root{Name: r.GetName(), Bytes: r.GetBytes()}
		}),
		Isolation: d.GetIsolation(), Zone: d.GetZone(), Arch: d.GetArch(), Features: d.GetFeatures(),
		Priority: int(d.GetPriority()), Workspace: d.GetWorkspace(),
	}
}

func ownerOut(o market.OwnerID) *peerv1.Owner {
	return &peerv1.Owner{Peer: string(o.Peer), Epoch: o.Epoch}
}

func ownerIn(o *peerv1.Owner) market.OwnerID {
	return market.OwnerID{Peer: scheduler.NodeID(o.GetPeer()), Epoch: o.GetEpoch()}
}

func fenceOut(f market.Fence) *peerv1.Fence {
	return &peerv1.Fence{Epoch: f.Epoch, Attempt: f.Attempt}
}

func fenceIn(f *peerv1.Fence) market.Fence {
	return market.Fence{Epoch: f.GetEpoch(), Attempt: f.GetAttempt()}
}

func refOut(r market.LeaseRef) *peerv1.LeaseRef {
	return &peerv1.LeaseRef{Offer: string(r.Offer), Lease: string(r.Lease), Fence: fenceOut(r.Fence)}
}

func refIn(r *peerv1.LeaseRef) market.LeaseRef {
	return market.LeaseRef{Offer: market.OfferID(r.GetOffer()), Lease: market.LeaseID(r.GetLease()), Fence: fenceIn(r.GetFence())}
}

func refusalsOut(rs []scheduler.Refusal) []*peerv1.NodeRefusal {
	return each(rs, func(r scheduler.Refusal) *peerv1.NodeRefusal {
		return &peerv1.NodeRefusal{Code: string(r.Code), Never: r.Never, Text: r.Text}
	})
}

// Bounds of what a peer may say.
const (
	maxRefusals = 16  // of one answer
	maxName     = 128 // bytes of an offer, a lease, a hold or a device
	maxShape    = 64
	maxCode     = 64
	maxText     = 256
	maxDetail   = 1024
)

func refusalsIn(rs []*peerv1.NodeRefusal) []scheduler.Refusal {
	if len(rs) > maxRefusals {
		rs = rs[:maxRefusals]
	}
	return each(rs, func(r *peerv1.NodeRefusal) scheduler.Refusal {
		return scheduler.Refusal{Code: scheduler.Code(clip(r.GetCode(), maxCode)), Never: r.GetNever(), Text: clip(r.GetText(), maxText)}
	})
}

func grantOut(g scheduler.Grant) *peerv1.Grant {
	return &peerv1.Grant{Devices: g.Devices, GpuMilli: g.GPUMilli, CpuMillis: g.CPUMillis, MemoryMib: g.MemoryMiB, DiskMib: g.DiskMiB}
}

func grantIn(g *peerv1.Grant) scheduler.Grant {
	return scheduler.Grant{Devices: g.GetDevices(), GPUMilli: g.GetGpuMilli(), CPUMillis: g.GetCpuMillis(), MemoryMiB: g.GetMemoryMib(), DiskMiB: g.GetDiskMib()}
}

// clip cuts s to n bytes, not inside a character: protobuf takes whole ones only.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// named refuses names that are too long to be ours.
func named(names ...string) error {
	for _, s := range names {
		if len(s) > maxName {
			return fmt.Errorf("%w: a name of %d bytes", ErrMessage, len(s))
		}
	}
	return nil
}

func refsIn(in []*peerv1.LeaseRef) ([]market.LeaseRef, error) {
	if len(in) > market.MaxRenew {
		return nil, fmt.Errorf("%w: %d leases in one message", ErrMessage, len(in))
	}
	for _, r := range in {
		if err := named(r.GetOffer(), r.GetLease()); err != nil {
			return nil, err
		}
	}
	return each(in, refIn), nil
}

func ms(d time.Duration) int64 { return d.Milliseconds() }

// dur reads a duration that a peer sent: never negative, at most an hour.
func dur(ms int64) time.Duration {
	return time.Duration(min(max(ms, 0), 3_600_000)) * time.Millisecond
}

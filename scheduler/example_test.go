package scheduler_test

import (
	"fmt"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
)

func ExampleFeasible() {
	wants, _ := gpu.Parse("H100", 1)
	d := scheduler.Demand{CPUMillis: 4000, MemoryMiB: 64 << 10, GPUs: wants}
	r := scheduler.Resources{CPUMillis: 16000, MemoryMiB: 96 << 10, DiskMiB: 500 << 10}
	box := scheduler.Capacity{Total: r, Free: r, Devices: []scheduler.Device{
		{ID: "GPU-1", Class: gpu.Normalise("NVIDIA GeForce RTX 4090"), MemoryMiB: 24564, FreeMilli: scheduler.GPUExclusive},
	}}
	box.Free.MemoryMiB = 12 << 10
	for _, why := range scheduler.Feasible(&d, &box) {
		fmt.Println(why, "- never:", why.Never)
	}
	// Output:
	// has RTX4090, asked for H100 - never: true
	// needs 64 GiB, 12 GiB free - never: false
}

package trace

import (
	"fmt"
	"time"

	"github.com/beammesh/beammesh/scheduler"
)

// Node is one machine of a cluster.
type Node struct {
	Name      string
	CPUMillis int64
	MemoryMiB int64 // 0 = the trace does not say
	GPUs      int
	Class     string // normalised, "" without GPUs
}

// maxMemoryMiB stands for memory that never runs out.
const maxMemoryMiB = 1 << 30

// Capacity is the node as the scheduler sees it, all of it free. Memory that the
// trace does not tell is as good as endless.
func (n *Node) Capacity() scheduler.Capacity {
	r := scheduler.Resources{CPUMillis: n.CPUMillis, MemoryMiB: n.MemoryMiB}
	if r.MemoryMiB == 0 {
		r.MemoryMiB = maxMemoryMiB
	}
	c := scheduler.Capacity{Total: r, Free: r, Devices: make([]scheduler.Device, n.GPUs)}
	for i := range c.Devices {
		c.Devices[i] = scheduler.Device{ID: fmt.Sprintf("%d", i), Class: n.Class, FreeMilli: scheduler.GPUExclusive, Simulated: true}
	}
	return c
}

// Task is a piece of work that holds its resources for its time.
type Task struct {
	Name   string
	Group  string // application or kind, "" = the trace does not say
	Demand scheduler.Demand
	// Timed says whether Arrival is known.
	Timed   bool
	Arrival time.Duration
	// Duration is how long it ran; 0 = unknown, or it never ran.
	Duration time.Duration
	// Steps is the length of a training job where the trace does not tell a time.
	Steps int64
}

// Request is one call of a service.
type Request struct {
	Service  string // the function or the model, "" = there is only one
	Caller   string // application or group of users, "" = the trace does not say
	Arrival  time.Duration
	Duration time.Duration // of the execution; 0 = unknown
	// What a call of a model takes in and gives out, 0 elsewhere.
	TokensIn, TokensOut int64
	// Adapters is the number of LoRA adapters that it loads on top of the model.
	Adapters int
}

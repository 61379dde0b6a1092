// Package gpu finds this machine's GPUs and says how a container gets one.
//
//	inv := gpu.NewHelper(gpu.HelperConfig{Argv: []string{paths.NVML}, Log: log}) // the real ones
//	inv, err := gpu.Simulated("H100:2,RTX4090:1")                                // only by an explicit flag
//	devs, err := inv.List(ctx)
//	edits, err := inv.Edits(ctx, []string{devs[0].ID})
//	edits.Apply(spec)                             // an OCI runtime spec
//
// Who holds which device is not decided here: the runtime grants devices
// exclusively by their ID. The driver's library is used only in a helper
// process (build/nvml), so that a driver that hangs or crashes takes nothing
// else along; see helper.go.
//
// An Inventory is safe for concurrent use.
package gpu

import (
	"context"
	"errors"
)

var (
	// ErrNoDriver means that this machine has no usable NVIDIA driver. It is
	// the usual state of a machine without GPUs.
	ErrNoDriver = errors.New("no NVIDIA driver")
	// ErrNoDevice means that an id names no device of this machine.
	ErrNoDevice = errors.New("no such GPU")
)

// Device is one GPU, or one MIG instance of a GPU, which is granted like one.
type Device struct {
	ID        string `json:"id"`         // the driver's UUID, stable over restarts
	Model     string `json:"model"`      // the name that users ask for: "H100", "RTX4090"
	Product   string `json:"product"`    // the driver's name
	MemoryMiB int64  `json:"memory_mib"` // of the device or instance
	// Compute is the CUDA compute capability, "9.0".
	Compute   string `json:"compute,omitempty"`
	Driver    string `json:"driver,omitempty"` // "550.54.15"
	CUDA      string `json:"cuda,omitempty"`   // newest version that the driver takes, "12.4"
	MIG       string `json:"mig,omitempty"`    // profile, "1g.10gb", when it is an instance
	Parent    string `json:"parent,omitempty"` // ID of the GPU that the instance is of
	Simulated bool   `json:"simulated,omitempty"`
	// Unhealthy says why the device should get no work; empty is healthy.
	Unhealthy string `json:"unhealthy,omitempty"`
}

// Inventory is the GPUs of this machine.
type Inventory interface {
	// List returns the devices in a stable order, or ErrNoDriver.
	List(ctx context.Context) ([]Device, error)
	// Watch sends the devices now and whenever they or their health have
	// changed; a receiver that is late gets the newest only. Trouble with the
	// driver shows as an empty list. The channel is closed when ctx ends.
	Watch(ctx context.Context) <-chan []Device
	// Edits says what a container that is granted exactly these devices gets.
	Edits(ctx context.Context, ids []string) (Edits, error)
	// Close frees what the inventory holds. May be called twice.
	Close() error
}

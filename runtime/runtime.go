// Package runtime is the contract for running containers on this machine.
//
// An Engine starts containers from content-addressed layers; inside each,
// our init (PID 1) starts processes on request. The only implementation that
// makes real containers is runtime/containerd; runtimetest holds a
// plain-process fake and the suite both must pass.
package runtime

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Errors that a caller branches on.
var (
	ErrNotFound   = errors.New("no such container")
	ErrExists     = errors.New("container exists")
	ErrClosed     = errors.New("container has ended")
	ErrNoResource = errors.New("device is not free")
)

// Layer is one content-addressed tree of the root filesystem. Layers apply in
// order; Prefix ("" or "mnt/code") is the folder that the tree lands in.
type Layer struct {
	Root   string // CID text of the tree's manifest
	Prefix string
}

// LayerWriter writes a tree into dir, which is mounted on top of the layers
// below (so that removing a path makes a whiteout). The node joins it to content.
type LayerWriter interface {
	WriteLayer(ctx context.Context, root string, dir string) error
}

// Limits bound a container. Zero means "no limit" except where said.
type Limits struct {
	CPUMillis   int64 // thousandths of a core
	MemoryBytes int64 // the user's; init's own 8 MiB come on top
	PIDs        int64 // 0 = 4096
	DiskBytes   int64 // writable layer; 0 = 10 GiB
}

// Mount is a read-only or writable bind mount from the host.
type Mount struct {
	Source, Target string
	ReadOnly       bool
}

// Network says what a container may reach. The node's own ports and the
// owner's LAN are never reachable.
type Network struct {
	Block bool           // no egress at all
	Allow []netip.Prefix // with Block false and non-empty: only these
}

// Spec describes a container to start.
type Spec struct {
	ID        string // [a-z0-9-]{1,64}
	Workspace string
	Layers    []Layer
	Hostname  string
	Env       []string // of init; processes add their own
	Limits    Limits
	GPUs      []string // device ids from the inventory, exclusively granted
	Mounts    []Mount
	Network   Network
	// RunDir is a folder on the host that appears read-only at /run/beam; the
	// engine adds ctl.sock, the caller api.sock. It must exist, and nobody but
	// root may get into it from the host. "" = a folder of the engine's.
	RunDir string
}

// EndReason tells apart why a container ended.
type EndReason string

const (
	EndExited  EndReason = "exited"        // init ended by itself
	EndStopped EndReason = "stopped"       // Stop was called
	EndOOM     EndReason = "out_of_memory" // the kernel's OOM killer, read from the cgroup
	EndLost    EndReason = "lost"          // shim or init vanished
)

// End is how a container ended.
type End struct {
	Reason   EndReason
	ExitCode int // 128+signal when killed
	At       time.Time
}

// Engine starts and finds containers. Safe for concurrent use.
type Engine interface {
	// Prepare makes the layers' root filesystem ready without starting
	// anything; Start does it on demand.
	Prepare(ctx context.Context, layers []Layer) error
	// Start returns when init is connected and processes can be started.
	// When it fails nothing is left behind.
	Start(ctx context.Context, spec Spec) (Container, error)
	Get(id string) (Container, error)
	List() []string
	// Sweep removes everything of ours on this machine that keep does not
	// name: containers, snapshots, cgroups, mounts, veths, namespaces.
	Sweep(ctx context.Context, keep []string) error
	Close() error
}

// Container is a running container.
type Container interface {
	ID() string
	// Exec starts a process through init.
	Exec(ctx context.Context, p ProcessSpec) (Process, error)
	// SetLimits changes CPU, memory and pids limits while it runs.
	SetLimits(ctx context.Context, l Limits) error
	// Usage so far; of a container that has ended, its last.
	Usage(ctx context.Context) (Usage, error)
	// Stop asks all processes to end (TERM), after grace kills them, and
	// returns when nothing of the container is left. May be called twice.
	Stop(ctx context.Context, grace time.Duration) error
	// Done is closed when the container has ended; End is valid after.
	Done() <-chan struct{}
	End() End
}

// Differ is an Engine that can hand out what a container wrote. Image builds
// need it.
type Differ interface {
	// Diff calls fn with a folder that shows the container's writable layer:
	// only what differs from its layers, owners as the container sees them, a
	// character device 0:0 for each removed path, and the overlay's opaque mark
	// on folders that replace one below. The caller has waited for the
	// container's processes and calls it before Stop. fn must neither change
	// nor keep the folder.
	Diff(ctx context.Context, id string, fn func(dir string) error) error
}

// Usage is what a container consumed so far.
type Usage struct {
	CPU         time.Duration
	MemoryBytes int64
	OOMKills    int64
	PIDs        int64
}

// ProcessSpec describes a process in a container.
type ProcessSpec struct {
	Args []string
	Env  []string // added to the container's
	Cwd  string   // created when missing
	// Frames gives the process a message channel on file descriptor 3 (see
	// package ctl); that is how the Python runner talks to the node.
	Frames bool
	// Output takes stdout (1) and stderr (2) as they come, in order, from one
	// goroutine. A slow Output slows the process down. The slice is reused.
	Output func(fd int, p []byte)
	// Frame takes the messages the process wrote on descriptor 3. All output
	// written before a message is delivered before it.
	Frame func(body []byte)
}

// Process is a process in a container.
type Process interface {
	PID() int
	// Send writes one message to descriptor 3.
	Send(body []byte) error
	// Signal sends a signal to the process, or to its whole group.
	Signal(sig int, group bool) error
	Done() <-chan struct{}
	// ExitCode is valid after Done: 128+signal when killed.
	ExitCode() int
}

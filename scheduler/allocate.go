package scheduler

// Grant is what a worker gave to one lease.
type Grant struct {
	Devices   []string // device ids, in the node's order
	CPUMillis int64    // the container's limit, never above the machine's cores
	MemoryMiB int64
	DiskMiB   int64
	GPUMilli  int64 // of each device
}

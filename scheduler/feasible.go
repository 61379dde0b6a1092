package scheduler

// Code names why a node refuses, for programs; Text is for people.
type Code string

// The reasons.
const (
	NoGPU        Code = "no_gpu"         // the node has no GPU
	GPUClass     Code = "gpu_class"      // it has others than asked for
	GPUCount     Code = "gpu_count"      // too few of the class in all
	GPUBusy      Code = "gpu_busy"       // enough, but not free now
	CPU          Code = "cpu"            //
	Memory       Code = "memory"         //
	Disk         Code = "disk"           //
	DiskFloor    Code = "disk_floor"     // the disk is nearly full
	Draining     Code = "draining"       //
	Isolation    Code = "isolation"      //
	Arch         Code = "arch"           //
	Feature      Code = "feature"        //
	Unreachable  Code = "unreachable"    // said by the owner, not by the node
	NoAnswer     Code = "no_answer"      // said by the owner, not by the node
	StaleFence   Code = "stale_fence"    // the award is older than one seen before
	Limit        Code = "limit"          // a table of the worker is full
	InvalidInput Code = "invalid_demand" //
)

// Refusal is one reason why a node cannot take a demand.
type Refusal struct {
	Code Code
	// Never: waiting does not help, the machine itself is too small or lacks it.
	Never bool
	Text  string // "needs 64 GiB, 12 GiB free"
}

// String is the text.
func (r Refusal) String() string { return r.Text }

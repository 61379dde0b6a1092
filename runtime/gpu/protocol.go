package gpu

// The helper reads one Request per line on standard input and writes one Reply
// per line on standard output, both JSON, answers in the order of the
// requests. A Reply with ID 0 is unasked: something has changed. At the end of
// its input the helper exits.

// MaxLine bounds a line in bytes; the edits of 16 devices are below 256 KiB.
const MaxLine = 4 << 20

// Operations of a Request.
const (
	OpList  = "list"
	OpEdits = "edits" // IDs
)

// Request asks the helper for something.
type Request struct {
	ID  uint64   `json:"id"`
	Op  string   `json:"op"`
	IDs []string `json:"ids,omitempty"`
}

// Reply answers the Request with the same ID.
type Reply struct {
	ID      uint64   `json:"id"`
	Devices []Device `json:"devices,omitempty"`
	Edits   Edits    `json:"edits,omitzero"`
	// NoDriver, NoDevice stand for ErrNoDriver, ErrNoDevice.
	NoDriver bool   `json:"no_driver,omitempty"`
	NoDevice bool   `json:"no_device,omitempty"`
	Error    string `json:"error,omitempty"`
}

package ctl

// Type names a message's meaning. Direction is fixed per type.
type Type string

const (
	// init → node
	Hello   Type = "hello"   // first message; Secret set on reconnects
	Started Type = "started" // Proc, PID
	Output  Type = "output"  // Proc, FD (1 or 2), body
	Frame   Type = "frame"   // both ways: Proc, body = one runner frame
	Exited  Type = "exited"  // Proc, Code (128+signal when killed)
	Failed  Type = "failed"  // Proc, Error: the process could not be started
	Ack     Type = "ack"     // Output and Frame bytes consumed (both ways): Credit

	// node → init
	Welcome  Type = "welcome"  // Secret to reconnect with
	Exec     Type = "exec"     // Proc, Args, Env, Cwd, Frames
	Signal   Type = "signal"   // Proc, Signal, Group
	Shutdown Type = "shutdown" // TERM all, GraceMillis later KILL, then init exits
)

// Message is a frame's header.
type Message struct {
	Type        Type     `json:"type"`
	Proc        uint32   `json:"proc,omitempty"` // chosen by the node, unique per container
	PID         int      `json:"pid,omitempty"`
	FD          int      `json:"fd,omitempty"`
	Args        []string `json:"args,omitempty"`
	Env         []string `json:"env,omitempty"`
	Cwd         string   `json:"cwd,omitempty"`
	Frames      bool     `json:"frames,omitempty"`
	Signal      int      `json:"signal,omitempty"`
	Group       bool     `json:"group,omitempty"`
	Code        int      `json:"code,omitempty"`
	Secret      string   `json:"secret,omitempty"`
	Error       string   `json:"error,omitempty"`
	GraceMillis int64    `json:"grace_ms,omitempty"`
	Credit      int64    `json:"credit,omitempty"`
}

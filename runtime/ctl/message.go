package ctl

// Version is the protocol's version; both sides say theirs in Hello and
// Welcome. A node refuses an init of another major version: containers of an
// older node are then ended, not adopted.
const Version = 1

// Type names a message's meaning. Direction is fixed per type.
type Type string

const (
	// init → node
	Hello   Type = "hello"   // first message; Secret set on reconnects; Procs, Version
	Started Type = "started" // Proc, PID
	Output  Type = "output"  // Proc, FD (1 or 2), body
	Exited  Type = "exited"  // Proc, Code (128+signal when killed); nothing follows for Proc
	Failed  Type = "failed"  // Proc, Error: the process could not be started; nothing follows
	Bye     Type = "bye"     // all processes have ended, init exits now

	// both ways
	Frame Type = "frame" // Proc, Off, More, body = (a fragment of) one runner frame
	Ack   Type = "ack"   // Proc, Seq: all messages of Proc up to Seq were consumed

	// node → init
	Welcome  Type = "welcome"  // Secret to reconnect with, Version
	Exec     Type = "exec"     // Proc, body = ExecBody
	Signal   Type = "signal"   // Proc, Signal, Group
	Shutdown Type = "shutdown" // TERM all, GraceMillis later KILL, then init exits
)

// Message is a message's header.
type Message struct {
	Type Type   `json:"type"`
	Proc uint32 `json:"proc,omitempty"` // chosen by the node, unique per container
	// Seq numbers what one side says about Proc: Started, Output, Frame,
	// Exited, Failed. In an Ack it is the last one consumed.
	Seq         uint64     `json:"seq,omitempty"`
	PID         int        `json:"pid,omitempty"` // as seen in the container
	FD          int        `json:"fd,omitempty"`
	Off         int64      `json:"off,omitempty"`
	More        bool       `json:"more,omitempty"`
	Signal      int        `json:"signal,omitempty"`
	Group       bool       `json:"group,omitempty"`
	Code        int        `json:"code,omitempty"`
	Secret      string     `json:"secret,omitempty"`
	Version     int        `json:"version,omitempty"`
	Error       string     `json:"error,omitempty"`
	GraceMillis int64      `json:"grace_ms,omitempty"`
	Procs       []ProcInfo `json:"procs,omitempty"` // <= MaxProcs
}

// ExecBody is the body of an Exec message, as JSON.
type ExecBody struct {
	Args   []string `json:"args"`
	Env    []string `json:"env,omitempty"`
	Cwd    string   `json:"cwd,omitempty"`
	Frames bool     `json:"frames,omitempty"`
}

// ProcInfo is one process in a Hello: it runs, or it has ended and its Exited
// was not acknowledged yet.
type ProcInfo struct {
	Proc uint32 `json:"proc"`
	PID  int    `json:"pid,omitempty"`
	Recv uint64 `json:"recv,omitempty"` // last Seq of the node's that init took
}

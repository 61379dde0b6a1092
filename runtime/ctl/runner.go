package ctl

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// The runner protocol is spoken on file descriptor 3 (a unix stream socket)
// between the node and a process that asked for Frames, which is the Python
// runner. Init passes the frames through without looking inside. A frame is
//
//	uint32 big endian  length of header  (<= MaxRunnerHeader)
//	uint32 big endian  length of payload (<= MaxRunnerPayload)
//	header             JSON, one RunnerHeader
//	payload            raw bytes
//
// and frames follow each other on the stream with nothing between them. The
// node's Process.Send and ProcessSpec.Frame take and give one whole frame.
//
//	node                                    runner
//	                                        imports the handler, runs on_start
//	                        ready | failed  (after failed the runner exits)
//	call(task, attempt, args)               started(task)
//	                                        result(task, attempt, status)
//	call …
//	stop                                    exits 0
//
// One call is outstanding at a time. What the handler prints goes to
// descriptors 1 and 2 and is delivered before the result that follows it.
const (
	MaxRunnerHeader  = 64 << 10
	MaxRunnerPayload = 32 << 20
	MaxRunnerFrame   = 8 + MaxRunnerHeader + MaxRunnerPayload
)

// The types of a runner frame.
const (
	// node → runner
	RunnerCall = "call" // TaskID, Attempt, Format; payload = arguments
	RunnerStop = "stop"

	// runner → node
	RunnerReady   = "ready"   // Python, PID: handler imported, on_start done
	RunnerFailed  = "failed"  // Error, before any call was taken
	RunnerStarted = "started" // TaskID
	RunnerResult  = "result"  // TaskID, Attempt, Status, Format, Error, DurationMillis; payload
)

// Statuses of a result.
const (
	StatusOK    = "ok"    // payload = the result
	StatusError = "error" // payload = the exception, pickled; may be empty
	StatusRetry = "retry" // as error, and the exception is one of retry_for
)

// Formats of a payload. Arguments in pickle are a cloudpickle of
// {"args": tuple, "kwargs": dict}; in JSON the same shape with a list.
const (
	FormatPickle = "pickle"
	FormatJSON   = "json"
)

// Kinds of a RunnerError.
const (
	KindSyntaxError      = "syntax_error"
	KindImportError      = "import_error"
	KindHandlerMissing   = "handler_missing"
	KindOnStartError     = "on_start_error"
	KindPythonMismatch   = "python_mismatch"
	KindUnpicklableArgs  = "unpicklable_args"
	KindUnpicklableValue = "unpicklable_result"
	KindException        = "exception" // the user's function raised
)

// RunnerError is an error in user code or in loading it.
type RunnerError struct {
	Kind      string `json:"kind"`
	Type      string `json:"type,omitempty"` // Python class, "ValueError"
	Message   string `json:"message"`
	Traceback string `json:"traceback,omitempty"` // the runner keeps its last 32 KiB
	Hint      string `json:"hint,omitempty"`
}

// RunnerHeader is a frame's header; which fields are set depends on Type.
type RunnerHeader struct {
	Type           string       `json:"type"`
	TaskID         string       `json:"task_id,omitempty"`
	Attempt        int          `json:"attempt,omitempty"`
	Format         string       `json:"format,omitempty"`
	Python         string       `json:"python,omitempty"` // "3.11"
	PID            int          `json:"pid,omitempty"`
	Status         string       `json:"status,omitempty"`
	Error          *RunnerError `json:"error,omitempty"`
	DurationMillis float64      `json:"duration_ms,omitempty"`
}

// EncodeRunner makes one frame.
func EncodeRunner(h RunnerHeader, payload []byte) ([]byte, error) {
	j, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode runner %s: %w", h.Type, err)
	}
	if len(j) > MaxRunnerHeader || len(payload) > MaxRunnerPayload {
		return nil, fmt.Errorf("encode runner %s: header %d, payload %d bytes: above the limit", h.Type, len(j), len(payload))
	}
	b := make([]byte, 8, 8+len(j)+len(payload))
	binary.BigEndian.PutUint32(b, uint32(len(j)))
	binary.BigEndian.PutUint32(b[4:], uint32(len(payload)))
	return append(append(b, j...), payload...), nil
}

// DecodeRunner takes one whole frame apart. The payload is part of frame.
func DecodeRunner(frame []byte) (RunnerHeader, []byte, error) {
	var h RunnerHeader
	n, err := RunnerFrameLen(frame)
	if err != nil {
		return h, nil, err
	}
	if n != len(frame) {
		return h, nil, fmt.Errorf("%w: runner frame of %d bytes says %d", ErrProtocol, len(frame), n)
	}
	hl := binary.BigEndian.Uint32(frame)
	if err := json.Unmarshal(frame[8:8+hl], &h); err != nil {
		return h, nil, fmt.Errorf("%w: runner header: %v", ErrProtocol, err)
	}
	return h, frame[8+hl:], nil
}

// RunnerFrameLen is the length of the frame that b begins with, from its
// first 8 bytes.
func RunnerFrameLen(b []byte) (int, error) {
	if len(b) < 8 {
		return 0, fmt.Errorf("%w: runner frame: %w", ErrProtocol, io.ErrUnexpectedEOF)
	}
	h, p := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if h > MaxRunnerHeader || p > MaxRunnerPayload {
		return 0, fmt.Errorf("%w: runner frame: header %d, payload %d bytes: above the limit", ErrProtocol, h, p)
	}
	return 8 + int(h) + int(p), nil
}

// Package fault is the one error type that crosses our API.
//
// An Error says what happened (Message), what to do about it (Hint) and carries
// a stable Code that the CLI, the SDK and the HTTP API share. Code inside a
// process wraps errors with fmt.Errorf as usual; the service that answers a
// request turns the cause into an Error once, with From.
//
//	return fault.New(fault.NoCapacity, "no node has a free H100",
//		"box2 has RTX4090: use gpu='any' or add a node with 'beam node invite'")
//
// Errors are values: safe to share between goroutines.
package fault

import (
	"context"
	"errors"
	"fmt"
)

// Code names a class of failure. The set only grows; values are never reused.
type Code string

// The codes. The number behind each is the exit status the CLI maps it to.
const (
	Internal       Code = "internal"         // 1: a bug or broken machine of ours
	Failed         Code = "failed"           // 1: the user's program failed
	Invalid        Code = "invalid_argument" // 2
	NotFound       Code = "not_found"        // 3
	Unauthorized   Code = "unauthenticated"  // 4: no token or a bad one
	Forbidden      Code = "forbidden"        // 4: a good token without the right
	Conflict       Code = "conflict"         // 5
	NoCapacity     Code = "no_capacity"      // 6: no node can ever take it, or not now
	TooLarge       Code = "too_large"        // 2: above a stated limit
	Timeout        Code = "timeout"          // 7: we gave up waiting
	Unreachable    Code = "unreachable"      // 8: a peer did not answer
	JobTimeout     Code = "job_timeout"      // 124: the task ran past its own limit
	Cancelled      Code = "cancelled"        // 130
	OutOfMemory    Code = "out_of_memory"    // 137: the kernel ended the container
	NodeLost       Code = "node_lost"        // 1: attempts used up by lost nodes
	Unsupported    Code = "unsupported"      // 2: valid, but not served (yet)
	PythonMismatch Code = "python_mismatch"  // 2: client and image differ in Python minor
	BuildFailed    Code = "build_failed"     // 1: an image step failed
	DiskFull       Code = "disk_full"        // 6: below the admission floor
	Expired        Code = "expired"          // 4: ticket, certificate or token
)

// Error is what a person or a program gets to see.
type Error struct {
	Code    Code
	Message string // what happened, lower case, no full stop
	Hint    string // what to do next; may be empty
	Err     error  // cause, never sent to peers or clients
}

// New makes an Error without a cause.
func New(code Code, message, hint string) *Error {
	return &Error{Code: code, Message: message, Hint: hint}
}

// Newf is New with a formatted message and no hint.
func Newf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Wrap keeps err as the cause under a message of our own.
func Wrap(code Code, err error, message, hint string) *Error {
	return &Error{Code: code, Message: message, Hint: hint, Err: err}
}

// Error gives "message" or "message: cause"; the hint is left to the renderer.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Message + ": " + e.Err.Error()
	}
	return e.Message
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is matches any *Error of the same code, so errors.Is(err, &Error{Code: c}) works.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && (t.Message == "" || t.Message == e.Message)
}

// From gives err's Error, or wraps it: context errors by their meaning,
// everything else as Internal.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return Wrap(Timeout, err, "gave up waiting", "")
	case errors.Is(err, context.Canceled):
		return Wrap(Cancelled, err, "cancelled", "")
	}
	return Wrap(Internal, err, "internal error", "see the node's log")
}

// CodeOf is From(err).Code, and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	return From(err).Code
}

// ExitStatus is the process exit status that stands for c.
func (c Code) ExitStatus() int {
	switch c {
	case "":
		return 0
	case Invalid, TooLarge, Unsupported, PythonMismatch:
		return 2
	case NotFound:
		return 3
	case Unauthorized, Forbidden, Expired:
		return 4
	case Conflict:
		return 5
	case NoCapacity, DiskFull:
		return 6
	case Timeout:
		return 7
	case Unreachable:
		return 8
	case JobTimeout:
		return 124
	case Cancelled:
		return 130
	case OutOfMemory:
		return 137
	}
	return 1
}

// Package faultconnect carries fault.Error over Connect and gRPC, both ways.
//
// A server installs the interceptor once; its handlers return any error:
//
//	connect.WithInterceptors(faultconnect.Interceptor())
//
// A client turns what a call returned back into the same fault.Error:
//
//	if err != nil { return faultconnect.Decode(err) }
//
// Code, message and hint travel in a beammesh.v1.ErrorDetail; the cause
// (Error.Err) never leaves the process. Clients that do not know the detail
// see the nearest status code and the message.
package faultconnect

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect"

	beammeshv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
)

// Bounds of what is taken from the other side: an answer cannot fill a
// terminal or a log with a megabyte of "hint".
const (
	maxCode    = 64
	maxMessage = 16 << 10
	maxHint    = 4 << 10
)

// status maps each fault code to the nearest Connect code. None maps to
// Unavailable but Unreachable: stock clients retry Unavailable by themselves.
func status(c fault.Code) connect.Code {
	switch c {
	case fault.Invalid, fault.TooLarge:
		return connect.CodeInvalidArgument
	case fault.NotFound:
		return connect.CodeNotFound
	case fault.Unauthorized, fault.Expired:
		return connect.CodeUnauthenticated
	case fault.Forbidden:
		return connect.CodePermissionDenied
	case fault.Conflict:
		return connect.CodeAlreadyExists
	case fault.NoCapacity, fault.DiskFull, fault.OutOfMemory:
		return connect.CodeResourceExhausted
	case fault.Timeout, fault.JobTimeout:
		return connect.CodeDeadlineExceeded
	case fault.Unreachable:
		return connect.CodeUnavailable
	case fault.Cancelled:
		return connect.CodeCanceled
	case fault.NodeLost:
		return connect.CodeAborted
	case fault.Unsupported:
		return connect.CodeUnimplemented
	case fault.PythonMismatch, fault.BuildFailed:
		return connect.CodeFailedPrecondition
	case fault.Failed:
		return connect.CodeUnknown
	}
	return connect.CodeInternal
}

// code is the fault code for a status that came without our detail.
func code(c connect.Code) fault.Code {
	switch c {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		return fault.Invalid
	case connect.CodeNotFound:
		return fault.NotFound
	case connect.CodeUnauthenticated:
		return fault.Unauthorized
	case connect.CodePermissionDenied:
		return fault.Forbidden
	case connect.CodeAlreadyExists, connect.CodeAborted:
		return fault.Conflict
	case connect.CodeResourceExhausted:
		return fault.NoCapacity
	case connect.CodeDeadlineExceeded:
		return fault.Timeout
	case connect.CodeUnavailable:
		return fault.Unreachable
	case connect.CodeCanceled:
		return fault.Cancelled
	case connect.CodeUnimplemented:
		return fault.Unsupported
	}
	return fault.Internal
}

// Encode gives the error a handler answers with: err's fault.Error as status
// and detail. A *connect.Error passes through unless it wraps a fault.Error;
// nil stays nil.
func Encode(err error) error {
	if err == nil {
		return nil
	}
	var known *fault.Error
	var ce *connect.Error
	if errors.As(err, &ce) && !errors.As(err, &known) {
		return err
	}
	f := fault.From(err)
	out := connect.NewError(status(f.Code), errors.New(clean(f.Message, maxMessage)))
	// NewErrorDetail fails only for a message that cannot be marshalled,
	// which happens for text that is not UTF-8; cleaned text always can.
	if d, derr := connect.NewErrorDetail(Detail(f)); derr == nil {
		out.AddDetail(d)
	}
	return out
}

// Detail is f as it travels, also inside other messages (Outcome.error). It is
// nil for nil.
func Detail(f *fault.Error) *beammeshv1.ErrorDetail {
	if f == nil {
		return nil
	}
	return &beammeshv1.ErrorDetail{
		Code:    clean(string(f.Code), maxCode),
		Message: clean(f.Message, maxMessage),
		Hint:    clean(f.Hint, maxHint),
	}
}

// FromDetail is the reverse of Detail.
func FromDetail(d *beammeshv1.ErrorDetail) *fault.Error {
	if d == nil {
		return nil
	}
	c := fault.Code(clean(d.GetCode(), maxCode))
	if c == "" {
		c = fault.Internal
	}
	return fault.New(c, clean(d.GetMessage(), maxMessage), clean(d.GetHint(), maxHint))
}

// Decode gives the fault.Error behind what a call returned: exactly the
// server's when it sent a detail, else the nearest code. It keeps the context
// errors' meaning. nil stays nil.
func Decode(err error) *fault.Error {
	if err == nil {
		return nil
	}
	var known *fault.Error
	if errors.As(err, &known) {
		return known
	}
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return fault.From(err)
	}
	for _, d := range ce.Details() {
		v, derr := d.Value()
		if derr != nil {
			continue
		}
		if ed, ok := v.(*beammeshv1.ErrorDetail); ok {
			return FromDetail(ed)
		}
	}
	return fault.New(code(ce.Code()), clean(ce.Message(), maxMessage), "")
}

// Interceptor encodes every error that a handler returns.
func Interceptor() connect.Interceptor { return interceptor{} }

type interceptor struct{}

func (interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		if err != nil && !req.Spec().IsClient {
			return nil, Encode(err)
		}
		return res, err
	}
}

func (interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return Encode(next(ctx, conn))
	}
}

// clean makes text from anywhere fit for a protobuf string, a terminal and a
// log: valid UTF-8, no control characters but newline and tab, at most max bytes.
func clean(s string, max int) string {
	if len(s) > max {
		s = s[:max]
	}
	s = strings.ToValidUTF8(s, "")
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || (r >= 0x20 && r != 0x7f && (r < 0x80 || r > 0x9f)) {
			return r
		}
		return -1
	}, s)
}

package api

import (
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"github.com/beammesh/beammesh/proto/fault"
)

// Stock tells whether a request came from a client that speaks gRPC and is not
// ours: such clients show what stands in the error field of an answer, but of
// an error status only its code, "Unhandled GRPC error: StatusCode.NOT_FOUND".
func Stock(h http.Header) bool {
	return strings.HasPrefix(h.Get("Content-Type"), "application/grpc") && h.Get("Beam-Client") == ""
}

// Refuse ends a call that failed: a stock client gets answer, whose error field
// the caller has filled in, everyone else the error itself.
func Refuse[T any](h http.Header, err error, answer *T) (*connect.Response[T], error) {
	if Stock(h) {
		return connect.NewResponse(answer), nil
	}
	return nil, err
}

// Text is an error as one text, for fields of answers: what happened, then what
// to do about it. Causes stay here, as in every answer.
func Text(err error) string {
	f := fault.From(err)
	if f.Hint == "" {
		return f.Message
	}
	return f.Message + "\nhint: " + f.Hint
}

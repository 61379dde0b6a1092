package faultconnect_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"

	beammeshv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/beammesh/v1/beammeshv1connect"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/proto/fault/faultconnect"
)

// failing answers every call with err.
type failing struct {
	beammeshv1connect.UnimplementedNodeServiceHandler
	err error
}

func (f *failing) Status(context.Context, *connect.Request[beammeshv1.StatusRequest]) (*connect.Response[beammeshv1.StatusResponse], error) {
	return nil, f.err
}

func (f *failing) Drain(context.Context, *connect.Request[beammeshv1.DrainRequest], *connect.ServerStream[beammeshv1.DrainEvent]) error {
	return f.err
}

func TestErrorsCrossTheWire(t *testing.T) {
	refused := fault.New(fault.NoCapacity, "no node has a free H100", "add a node with 'beam node invite'")
	cases := []struct {
		name   string
		server error
		want   fault.Error
	}{
		{"fault error", refused, *refused},
		{"wrapped fault error", fmt.Errorf("place task: %w", refused), *refused},
		{"cause stays at home", fault.Wrap(fault.NotFound, errors.New("key /secret/path"), "no such task", ""), fault.Error{Code: fault.NotFound, Message: "no such task"}},
		{"deadline", context.DeadlineExceeded, fault.Error{Code: fault.Timeout, Message: "gave up waiting"}},
		{"plain error", errors.New("disk on fire"), fault.Error{Code: fault.Internal, Message: "internal error", Hint: "see the node's log"}},
		{"connect error of the library", connect.NewError(connect.CodeUnimplemented, errors.New("not here")), fault.Error{Code: fault.Unsupported, Message: "not here"}},
		{"bytes that are no text", fault.New(fault.Invalid, "bad\xff\x1b[31m name", "a\x00b"), fault.Error{Code: fault.Invalid, Message: "bad[31m name", Hint: "ab"}},
		{"endless text", fault.New(fault.Invalid, strings.Repeat("x", 1<<20), ""), fault.Error{Code: fault.Invalid, Message: strings.Repeat("x", 16<<10)}},
	}
	for _, options := range [][]connect.ClientOption{nil, {connect.WithGRPC()}} {
		for _, c := range cases {
			t.Run(fmt.Sprintf("%s/grpc=%v", c.name, options != nil), func(t *testing.T) {
				_, h := beammeshv1connect.NewNodeServiceHandler(&failing{err: c.server}, connect.WithInterceptors(faultconnect.Interceptor()))
				srv := httptest.NewUnstartedServer(h)
				srv.EnableHTTP2 = true
				srv.StartTLS()
				defer srv.Close()
				cl := beammeshv1connect.NewNodeServiceClient(srv.Client(), srv.URL, options...)

				_, err := cl.Status(t.Context(), connect.NewRequest(&beammeshv1.StatusRequest{}))
				compare(t, "unary", err, c.want)

				st, err := cl.Drain(t.Context(), connect.NewRequest(&beammeshv1.DrainRequest{}))
				if err != nil {
					t.Fatalf("open stream: %v", err)
				}
				if st.Receive() {
					t.Fatal("stream gave a message, want an error")
				}
				compare(t, "stream", st.Err(), c.want)
			})
		}
	}
}

func compare(t *testing.T, kind string, err error, want fault.Error) {
	t.Helper()
	if err == nil {
		t.Fatalf("%s: no error, want %s", kind, want.Code)
	}
	got := faultconnect.Decode(err)
	if got.Code != want.Code || got.Message != want.Message || got.Hint != want.Hint {
		t.Errorf("%s: got %q %.80q %q, want %q %.80q %q", kind, got.Code, got.Message, got.Hint, want.Code, want.Message, want.Hint)
	}
}

// Every code survives without the detail at least as a failure, and with it exactly.
func TestEveryCodeRoundTrips(t *testing.T) {
	for _, c := range []fault.Code{fault.Internal, fault.Failed, fault.Invalid, fault.NotFound, fault.Unauthorized,
		fault.Forbidden, fault.Conflict, fault.NoCapacity, fault.TooLarge, fault.Timeout, fault.Unreachable,
		fault.JobTimeout, fault.Cancelled, fault.OutOfMemory, fault.NodeLost, fault.Unsupported,
		fault.PythonMismatch, fault.BuildFailed, fault.DiskFull, fault.Expired} {
		got := faultconnect.Decode(faultconnect.Encode(fault.New(c, "m", "h")))
		if got.Code != c || got.Message != "m" || got.Hint != "h" {
			t.Errorf("%s: got %+v", c, got)
		}
	}
	if faultconnect.Decode(nil) != nil || faultconnect.Encode(nil) != nil {
		t.Error("nil did not stay nil")
	}
}

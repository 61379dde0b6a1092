// Package auth says who is behind a request.
//
// Every API of a node asks a Verifier for the bearer's Identity and puts it into
// the request's context; services take it out with From and check scopes with
// Require. There is no request without a token, on loopback neither.
package auth

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/proto/fault/faultconnect"
)

// Scopes of a token. Admin includes all others.
const (
	ScopeAdmin = "admin" // invite, drain, tokens
	ScopeRun   = "run"   // register and run code
	ScopeRead  = "read"  // list and look
)

// Identity is what a valid token says.
type Identity struct {
	TokenID   string
	Workspace string
	Scopes    []string
	// TaskOf is set for the token of a container: the stub it runs.
	TaskOf string
}

// May tells whether the identity holds a scope.
func (i Identity) May(scope string) bool {
	return slices.Contains(i.Scopes, ScopeAdmin) || slices.Contains(i.Scopes, scope) ||
		(scope == ScopeRead && slices.Contains(i.Scopes, ScopeRun))
}

// Verifier checks a bearer token. Its errors are *fault.Error with code
// Unauthorized, Forbidden or Expired.
type Verifier interface {
	Identify(ctx context.Context, bearer string) (Identity, error)
}

type key struct{}

// With puts an identity into a context.
func With(ctx context.Context, id Identity) context.Context {
	return context.WithValue(ctx, key{}, id)
}

// From gives the identity of a request; ok is false where none was checked.
func From(ctx context.Context) (id Identity, ok bool) {
	id, ok = ctx.Value(key{}).(Identity)
	return id, ok
}

// Require gives the identity if it holds scope.
func Require(ctx context.Context, scope string) (Identity, error) {
	id, ok := From(ctx)
	if !ok {
		return Identity{}, fault.New(fault.Unauthorized, "the request carries no token", "set BEAM_TOKEN, or run 'beam config create'")
	}
	if !id.May(scope) {
		return Identity{}, fault.New(fault.Forbidden, "this token lacks the right \""+scope+"\"", "make one with 'beam token create' on a machine of the mesh")
	}
	return id, nil
}

// Bearer takes the token out of an Authorization header.
func Bearer(h http.Header) string {
	v := h.Get("Authorization")
	if t, ok := strings.CutPrefix(v, "Bearer "); ok {
		return strings.TrimSpace(t)
	}
	return ""
}

// Interceptor checks the token of every RPC. Errors of handlers are turned into
// connect errors that carry their fault.
type Interceptor struct{ Verifier Verifier }

var _ connect.Interceptor = Interceptor{}

func (i Interceptor) identify(ctx context.Context, h http.Header) (context.Context, error) {
	id, err := i.Verifier.Identify(ctx, Bearer(h))
	if err != nil {
		return ctx, err
	}
	return With(ctx, id), nil
}

// WrapUnary implements connect.Interceptor.
func (i Interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		ctx, err := i.identify(ctx, req.Header())
		if err != nil {
			return nil, faultconnect.Encode(err)
		}
		resp, err := next(ctx, req)
		if err != nil {
			return nil, faultconnect.Encode(err)
		}
		return resp, nil
	}
}

// WrapStreamingClient implements connect.Interceptor; servers have none.
func (i Interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (i Interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		ctx, err := i.identify(ctx, conn.RequestHeader())
		if err == nil {
			err = next(ctx, conn)
		}
		if err != nil {
			return faultconnect.Encode(err)
		}
		return nil
	}
}

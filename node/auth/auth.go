// Package auth says who is behind a request.
//
// Every API of a node asks a Verifier for the bearer's Identity and puts it into
// the request's context; services take it out with Require. There is no request
// without a token, on loopback neither.
package auth

import (
	"context"
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"github.com/beammesh/beammesh/node/token"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/proto/fault/faultconnect"
)

// Identity is what a valid token says.
type Identity = token.Claims

// Verifier checks a bearer token. Its errors are *fault.Error with code
// Unauthorized, Forbidden or Expired.
type Verifier interface {
	Identify(ctx context.Context, bearer string) (Identity, error)
}

// VerifierFunc makes a Verifier of a function.
type VerifierFunc func(ctx context.Context, bearer string) (Identity, error)

// Identify implements Verifier.
func (f VerifierFunc) Identify(ctx context.Context, bearer string) (Identity, error) {
	return f(ctx, bearer)
}

type key struct{}

// With puts an identity into a context.
func With(ctx context.Context, id Identity) context.Context {
	return context.WithValue(ctx, key{}, id)
}

// Require gives the identity of a request if it holds scope.
func Require(ctx context.Context, scope token.Scope) (Identity, error) {
	id, ok := ctx.Value(key{}).(Identity)
	if !ok {
		return Identity{}, fault.New(fault.Unauthorized, "the request carries no token", "set BEAM_TOKEN, or run 'beam config create'")
	}
	return id, id.Require(scope)
}

// Bearer takes the token out of an Authorization header.
func Bearer(h http.Header) string {
	t, _ := strings.CutPrefix(h.Get("Authorization"), "Bearer ")
	return strings.TrimSpace(t)
}

// Interceptor checks the token of every RPC. Errors of handlers are turned into
// connect errors that carry their fault.
type Interceptor struct {
	Verifier Verifier
	// Open lists procedures that need no token.
	Open map[string]bool
}

var _ connect.Interceptor = Interceptor{}

func (i Interceptor) identify(ctx context.Context, procedure string, h http.Header) (context.Context, error) {
	id, err := i.Verifier.Identify(ctx, Bearer(h))
	if err != nil {
		if i.Open[procedure] {
			return ctx, nil
		}
		return ctx, err
	}
	return With(ctx, id), nil
}

// WrapUnary implements connect.Interceptor.
func (i Interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		ctx, err := i.identify(ctx, req.Spec().Procedure, req.Header())
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
		ctx, err := i.identify(ctx, conn.Spec().Procedure, conn.RequestHeader())
		if err == nil {
			err = next(ctx, conn)
		}
		return faultconnect.Encode(err)
	}
}

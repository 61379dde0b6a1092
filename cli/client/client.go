package client

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/beammesh/beammesh/proto/beammesh/v1/beammeshv1connect"
	"github.com/beammesh/beammesh/proto/client/gatewaypb/gatewaypbconnect"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/proto/fault/faultconnect"
)

const (
	dialTimeout = 5 * time.Second
	// A node that vanished without closing is noticed by unanswered pings.
	pingAfter   = 15 * time.Second
	pingTimeout = 15 * time.Second
	// maxMessage is the stock clients' cap on one message.
	maxMessage = 16 << 20
)

// Client calls the services of one node.
type Client struct {
	Gateway gatewaypbconnect.GatewayServiceClient
	Node    beammeshv1connect.NodeServiceClient

	settings  Settings
	transport *http.Transport
}

// New makes a client; nothing is dialled before the first call.
func New(s Settings) *Client {
	protocols := new(http.Protocols)
	if s.TLS() {
		protocols.SetHTTP1(true) // what the edge in front of the node negotiates
		protocols.SetHTTP2(true)
	} else {
		protocols.SetUnencryptedHTTP2(true)
	}
	c := &Client{
		settings: s,
		transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout: dialTimeout,
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
			Protocols:           protocols,
			HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		},
	}
	if s.TLS() {
		// A node without TLS is on this machine or its network, where a proxy
		// for the outside has no business; most cannot carry h2c either.
		c.transport.Proxy = http.ProxyFromEnvironment
	}
	h := &http.Client{Transport: c.transport}
	opts := []connect.ClientOption{
		connect.WithInterceptors(bearer(s.Token)),
		connect.WithReadMaxBytes(maxMessage),
	}
	c.Gateway = gatewaypbconnect.NewGatewayServiceClient(h, s.URL(), opts...)
	c.Node = beammeshv1connect.NewNodeServiceClient(h, s.URL(), opts...)
	return c
}

// Settings is what the client was made with.
func (c *Client) Settings() Settings { return c.settings }

// Close drops idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Fault turns the error of a call into one for people: a node that does not
// answer is named together with where its address came from. nil stays nil.
func (c *Client) Fault(err error) error {
	if err == nil {
		return nil
	}
	var op *net.OpError
	var dns *net.DNSError
	if errors.As(err, &dns) || errors.As(err, &op) && op.Op == "dial" {
		return c.unreachable("no node answers at " + c.settings.Address() + " (" + reason(err) + ")")
	}
	f := faultconnect.Decode(err)
	switch {
	case f.Code == fault.Unauthorized && f.Hint == "" && c.settings.Token == "":
		return fault.New(f.Code, f.Message, "set BEAM_TOKEN, or `beam config create` with a token from `beam token create` on a node")
	case (f.Code == fault.Unauthorized || f.Code == fault.Expired) && f.Hint == "":
		return fault.New(f.Code, f.Message, "make a new token on a node with `beam token create`")
	case f.Code == fault.Unreachable && f.Hint == "":
		return c.unreachable("lost the node at " + c.settings.Address() + ": " + f.Message)
	case f.Code == fault.Unsupported && f.Hint == "":
		return fault.New(f.Code, "the node at "+c.settings.Address()+" does not serve this: "+f.Message,
			"it may be older than this program: compare `beam version` on both machines")
	}
	return f
}

func (c *Client) unreachable(message string) *fault.Error {
	hint := "start one with `beam node up` (or `beam dev up`), or say where one is: GATEWAY_HOST, GATEWAY_PORT, `beam config create`"
	if c.settings.Origin != "default" {
		hint = "is it up? the address comes from " + c.settings.Origin + "; `beam config list` shows others"
	}
	return fault.New(fault.Unreachable, message, hint)
}

// reason is the innermost cause in few words: "connection refused".
func reason(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		if op.Timeout() {
			return "no answer within " + dialTimeout.String()
		}
		err = op.Err
	}
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	return text
}

// bearer adds the token to every call. An empty token adds nothing: the node
// then says that one is needed.
func bearer(token string) connect.Interceptor { return bearerToken(token) }

type bearerToken string

func (b bearerToken) add(h http.Header) {
	if b != "" {
		h.Set("Authorization", "Bearer "+string(b))
	}
}

func (b bearerToken) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		b.add(req.Header())
		return next(ctx, req)
	}
}

func (b bearerToken) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		b.add(conn.RequestHeader())
		return conn
	}
}

func (b bearerToken) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

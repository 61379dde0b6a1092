// Package api serves the one HTTP API of a node: gRPC, Connect and plain HTTP,
// on the same mux, over TCP ports and over the unix sockets that containers get.
//
// h2c and HTTP/1.1 share every listener. There are no read or write timeouts: a
// FunctionInvoke lasts as long as its task. What a client can hold is bounded by
// the streams per connection and by header sizes.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// maxStreams per connection: the library's default of 250 deadlocks a stock
	// client that maps over 400 inputs on one connection.
	maxStreams = 10_000
	// headerLimit bounds the time to send a request's header.
	headerLimit = 30 * time.Second
	// idleLimit closes connections that nobody uses.
	idleLimit = 10 * time.Minute
)

type hostKey struct{}

// Host is the host:port that a request was sent to, for URLs that lead back here.
func Host(ctx context.Context) string {
	h, _ := ctx.Value(hostKey{}).(string)
	return h
}

// Server serves a mux on any number of listeners.
type Server struct {
	Mux *http.ServeMux
	log *slog.Logger

	mu      sync.Mutex
	servers map[net.Listener]*http.Server
	closed  bool
	wg      sync.WaitGroup
}

// New makes a server without listeners.
func New(log *slog.Logger) *Server {
	return &Server{Mux: http.NewServeMux(), log: log, servers: map[net.Listener]*http.Server{}}
}

// Listen opens a TCP listener and serves it. It gives the address in use.
func (s *Server) Listen(addr string) (net.Addr, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for the API: %w", err)
	}
	s.Serve(l)
	return l.Addr(), nil
}

// Serve serves l until the server or l is closed. stop closes it early.
func (s *Server) Serve(l net.Listener) (stop func()) {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	hs := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			f := &flusher{ResponseWriter: w}
			ctx := context.WithValue(r.Context(), hostKey{}, r.Host)
			s.Mux.ServeHTTP(f, r.WithContext(context.WithValue(ctx, flushKey{}, f)))
		}),
		Protocols:         &protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ReadHeaderTimeout: headerLimit,
		IdleTimeout:       idleLimit,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		_ = l.Close()
		return func() {}
	}
	s.servers[l] = hs
	s.wg.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.wg.Done()
		if err := hs.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("serve the API", "addr", l.Addr().String(), "err", err)
		}
	}()
	return func() {
		s.mu.Lock()
		delete(s.servers, l)
		s.mu.Unlock()
		_ = hs.Close()
	}
}

// Close ends all connections and waits for the listeners.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for _, hs := range s.servers {
		_ = hs.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

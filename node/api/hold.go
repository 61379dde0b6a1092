package api

import (
	"context"
	"net/http"
)

// Hold keeps what is written to a request's response from being flushed until
// release, which flushes once: several messages of a stream then travel
// together. Buffers that run full are still written. Both are for the request's
// own goroutine; on another kind of context they do nothing.
func Hold(ctx context.Context) (release func()) {
	w, ok := ctx.Value(flushKey{}).(*flusher)
	if !ok {
		return func() {}
	}
	w.held = true
	return func() {
		w.held = false
		if w.due {
			w.Flush()
		}
	}
}

type flushKey struct{}

// flusher is a ResponseWriter whose flushes can wait. What is due when the
// handler returns, the server writes out anyway.
type flusher struct {
	http.ResponseWriter
	held, due bool
}

var _ http.Flusher = (*flusher)(nil)

// Flush implements http.Flusher.
func (f *flusher) Flush() {
	if f.due = f.held; f.due {
		return
	}
	if inner, ok := f.ResponseWriter.(http.Flusher); ok {
		inner.Flush()
	}
}

// Unwrap lets http.ResponseController find what else the writer can do.
func (f *flusher) Unwrap() http.ResponseWriter { return f.ResponseWriter }

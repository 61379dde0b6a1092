package api

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
)

type counter struct {
	*httptest.ResponseRecorder
	flushes int
}

func (c *counter) Flush() { c.flushes++ }

func TestHoldFlushesOnce(t *testing.T) {
	c := &counter{ResponseRecorder: httptest.NewRecorder()}
	w := &flusher{ResponseWriter: c}
	ctx := context.WithValue(context.Background(), flushKey{}, w)
	send := func() {
		if _, err := w.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		w.Flush()
	}
	send()
	release := Hold(ctx)
	send()
	send()
	if c.flushes != 1 || c.Body.String() != "xxx" {
		t.Errorf("%d flushes while held, body %q", c.flushes, c.Body)
	}
	release()
	if c.flushes != 2 {
		t.Errorf("%d flushes after release, want 2", c.flushes)
	}
	Hold(ctx)()
	if c.flushes != 2 {
		t.Error("flushed without anything written")
	}
	send()
	if c.flushes != 3 {
		t.Error("not flushed after release")
	}
	Hold(context.Background())() // outside a request
	if http.NewResponseController(w).Flush() != nil || c.flushes != 4 {
		t.Error("the controller does not reach the writer")
	}
}

package loopback

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/meshtest"
)

func newPair(t *testing.T) (d *Dialer, other *meshtest.Node, stop context.CancelFunc) {
	t.Helper()
	w := meshtest.NewNetwork()
	a, b := w.Join("a"), w.Join("b")
	ctx, stop := context.WithCancel(t.Context())
	d = New(ctx, a.PeerID(), a)
	t.Cleanup(func() { stop(); _ = a.Close(); _ = b.Close() })
	d.Handle("who/1", func(ctx context.Context, s mesh.Stream) {
		defer s.Close()
		b, err := io.ReadAll(s)
		if err == nil {
			_, _ = s.Write(append([]byte(s.Peer()+": "), b...))
		}
	})
	d.Handle("hold/1", func(ctx context.Context, s mesh.Stream) {
		<-ctx.Done()
		_ = s.Close()
	})
	b.Handle("who/1", func(_ context.Context, s mesh.Stream) {
		defer s.Close()
		_, _ = s.Write([]byte("another node"))
	})
	a.Start()
	b.Start()
	return d, b, stop
}

func TestSelf(t *testing.T) {
	d, other, stop := newPair(t)
	for name, open := range map[string]func(context.Context, mesh.PeerID, string) (mesh.Stream, error){"Open": d.Open, "OpenBulk": d.OpenBulk} {
		s, err := open(t.Context(), d.self, "who/1")
		if err != nil {
			t.Fatal(err)
		}
		if s.Peer() != d.self {
			t.Errorf("%s: the peer is %s", name, s.Peer())
		}
		big := bytes.Repeat([]byte("x"), 4<<20) // more than a socket holds
		if _, err := s.Write(big); err != nil {
			t.Fatal(err)
		}
		if err := s.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, append([]byte(string(d.self)+": "), big...)) {
			t.Errorf("%s: got %d bytes, %v", name, len(got), err)
		}
		_ = s.Close()
		s, err = open(t.Context(), other.PeerID(), "who/1")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(s); err != nil || string(got) != "another node" {
			t.Errorf("%s to another: %q, %v", name, got, err)
		}
		_ = s.Close()
	}
	if _, err := d.Open(t.Context(), d.self, "none/1"); err == nil {
		t.Error("a protocol that nobody serves was opened")
	}
	// Deadlines work, and the end of the node ends what its handlers hold.
	s, err := d.Open(t.Context(), d.self, "hold/1")
	if err != nil {
		t.Fatal(err)
	}
	_ = s.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	_ = s.SetReadDeadline(time.Now().Add(time.Minute))
	stop()
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	_ = s.Close()
}

func TestReset(t *testing.T) {
	d, _, _ := newPair(t)
	s, err := d.Open(t.Context(), d.self, "hold/1")
	if err != nil {
		t.Fatal(err)
	}
	blocked := make(chan error, 1)
	go func() {
		_, err := s.Read(make([]byte, 1))
		blocked <- err
	}()
	if err := s.Reset(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-blocked:
		if err == nil {
			t.Error("a reset stream gave bytes")
		}
	case <-time.After(time.Minute):
		t.Error("Reset does not free a reader")
	}
	if _, err := s.Write([]byte("x")); err == nil {
		t.Error("a reset stream takes bytes")
	}
}

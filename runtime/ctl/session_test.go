package ctl

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/runtime"
)

// fakeInit speaks the init side by hand, so that it can break the rules.
// The real one is tested in runtime/initd.
type fakeInit struct {
	t testing.TB
	net.Conn
	r *Reader
}

func dial(t testing.TB, dir, secret string, procs ...ProcInfo) *fakeInit {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	f := &fakeInit{t, c, NewReader(c)}
	f.say(Message{Type: Hello, Version: Version, Secret: secret, Procs: procs}, nil)
	return f
}

func (f *fakeInit) say(m Message, body []byte) {
	f.t.Helper()
	if err := Write(f, &m, body); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fakeInit) want(typ Type) Message {
	f.t.Helper()
	m, _, err := f.r.Next()
	if err != nil || m.Type != typ {
		f.t.Fatalf("got %+v, %v; want %s", m, err, typ)
	}
	return m
}

func (f *fakeInit) wantClosed() {
	f.t.Helper()
	for {
		m, _, err := f.r.Next()
		if err == nil && m.Type == Ack {
			continue
		}
		if err == nil {
			f.t.Fatalf("got %+v, want a closed connection", m)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			f.t.Fatal("connection stays open")
		}
		return
	}
}

func testServer(t testing.TB, dir string) *Server {
	t.Helper()
	s, err := Listen(dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func session(t testing.TB, s *Server) *Session {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ses, err := s.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return ses
}

type started struct {
	p   *Process
	err error
}

func execAsync(t testing.TB, ses *Session, spec runtime.ProcessSpec) <-chan started {
	c := make(chan started, 1)
	go func() {
		p, err := ses.Exec(t.Context(), spec)
		c <- started{p, err}
	}()
	return c
}

func TestSecretAdmitsOnlyInit(t *testing.T) {
	dir := t.TempDir()
	srv := testServer(t, dir)
	init := dial(t, dir, "")
	secret := init.want(Welcome).Secret
	if len(secret) < 20 {
		t.Errorf("secret %q is guessable", secret)
	}
	for _, wrong := range []string{"", "x", secret[1:]} {
		dial(t, dir, wrong).wantClosed()
	}
	ses := session(t, srv)
	if ses.Secret() != secret {
		t.Error("session has another secret")
	}
	again := dial(t, dir, secret)
	again.want(Welcome)
	init.wantClosed()
	again.say(Message{Type: Bye}, nil)
	<-ses.Done()
	if ses.Err() != nil {
		t.Errorf("after goodbye: %v", ses.Err())
	}
}

func TestSilentStrangersDoNotKeepInitOut(t *testing.T) {
	dir := t.TempDir()
	srv := testServer(t, dir)
	for range maxHandshakes - 1 {
		c, err := net.Dial("unix", filepath.Join(dir, SocketName))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	dial(t, dir, "").want(Welcome)
	if err := srv.Close(); err != nil { // does not wait for them either
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, SocketName)); !os.IsNotExist(err) {
		t.Errorf("socket is left: %v", err)
	}
}

func TestListenReplacesStaleSocketInLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{SocketName, SocketName + ".new"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	testServer(t, dir)
	fi, err := os.Stat(filepath.Join(dir, SocketName))
	if err != nil || fi.Mode()&os.ModeSocket == 0 || fi.Mode().Perm() != 0o666 {
		t.Errorf("socket is %v, %v", fi.Mode(), err)
	}
}

// What an init that user code has taken over may try: each ends the session
// with ErrProtocol and nothing grows.
func TestProtocolBreaches(t *testing.T) {
	fill := bytes.Repeat([]byte("x"), Fragment)
	for name, breach := range map[string]func(f *fakeInit){
		"beyond the window": func(f *fakeInit) {
			for i := range 2 + Window/Fragment + 3 {
				if Write(f, &Message{Type: Output, Proc: 1, Seq: uint64(i + 2), FD: 1}, fill) != nil {
					return
				}
			}
		},
		"many empty messages": func(f *fakeInit) {
			for i := range Window {
				if Write(f, &Message{Type: Frame, Proc: 1, Seq: uint64(i + 2)}, nil) != nil {
					return
				}
			}
		},
		"gap":             func(f *fakeInit) { f.say(Message{Type: Output, Proc: 1, Seq: 9, FD: 1}, nil) },
		"unknown process": func(f *fakeInit) { f.say(Message{Type: Output, Proc: 77, Seq: 1, FD: 1}, nil) },
		"bad descriptor":  func(f *fakeInit) { f.say(Message{Type: Output, Proc: 1, Seq: 2, FD: 3}, nil) },
		"node's message":  func(f *fakeInit) { f.say(Message{Type: Exec, Proc: 1}, nil) },
		"large output":    func(f *fakeInit) { f.say(Message{Type: Output, Proc: 1, Seq: 2, FD: 1}, append(fill, 'x')) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			srv := testServer(t, dir)
			init := dial(t, dir, "")
			init.want(Welcome)
			ses := session(t, srv)
			hold := make(chan struct{})
			held := func() { <-hold }
			c := execAsync(t, ses, runtime.ProcessSpec{Args: []string{"x"}, Frames: true,
				Output: func(int, []byte) { held() }, Frame: func([]byte) { held() }})
			init.want(Exec)
			init.say(Message{Type: Started, Proc: 1, Seq: 1, PID: 2}, nil)
			st := <-c
			if st.err != nil {
				t.Fatal(st.err)
			}
			init.want(Ack)
			breach(init)
			<-ses.Done()
			if !errors.Is(ses.Err(), ErrProtocol) {
				t.Errorf("session ended with %v", ses.Err())
			}
			close(hold)
			<-st.p.Done()
			if st.p.ExitCode() != killed {
				t.Errorf("exit code %d", st.p.ExitCode())
			}
		})
	}
}

// A connection that breaks in the middle is made again with nothing lost and
// nothing twice, in both directions.
func TestResumeSameNode(t *testing.T) {
	dir := t.TempDir()
	srv := testServer(t, dir)
	init := dial(t, dir, "")
	secret := init.want(Welcome).Secret
	ses := session(t, srv)
	out := make(chan string, 10)
	c := execAsync(t, ses, runtime.ProcessSpec{Args: []string{"x"}, Frames: true,
		Output: func(_ int, p []byte) { out <- string(p) }})
	init.want(Exec)
	init.Close() // before init has acted on it

	init = dial(t, dir, secret)
	init.want(Welcome)
	init.want(Exec) // once more
	init.say(Message{Type: Started, Proc: 1, Seq: 1, PID: 2}, nil)
	st := <-c
	if st.err != nil {
		t.Fatal(st.err)
	}
	init.want(Ack)
	init.say(Message{Type: Output, Proc: 1, Seq: 2, FD: 1}, []byte("a"))
	if got := <-out; got != "a" {
		t.Fatal(got)
	}
	frame, _ := EncodeRunner(RunnerHeader{Type: RunnerStop}, nil)
	if err := st.p.Send(frame); err != nil {
		t.Fatal(err)
	}
	init.Close() // with the frame not taken and the acknowledgement not seen

	init = dial(t, dir, secret, ProcInfo{Proc: 1, PID: 2, Recv: 0})
	init.want(Welcome)
	if m := init.want(Ack); m.Seq != 2 {
		t.Errorf("resync acknowledges %d, want 2", m.Seq)
	}
	if m := init.want(Frame); m.Seq != 1 {
		t.Errorf("resync sends frame %d, want 1", m.Seq)
	}
	init.say(Message{Type: Output, Proc: 1, Seq: 2, FD: 1}, []byte("a"))
	init.say(Message{Type: Output, Proc: 1, Seq: 3, FD: 1}, []byte("b"))
	init.say(Message{Type: Exited, Proc: 1, Seq: 4, Code: 3}, nil)
	<-st.p.Done()
	if got := <-out; got != "b" || len(out) != 0 || st.p.ExitCode() != 3 {
		t.Errorf("got %q, %d more, exit code %d", got, len(out), st.p.ExitCode())
	}
	for init.want(Ack).Seq != 4 {
	}
	init.Close()

	// The last acknowledgement was lost: it comes again.
	init = dial(t, dir, secret, ProcInfo{Proc: 1, PID: 2, Recv: 1})
	init.want(Welcome)
	if m := init.want(Ack); m.Proc != 1 || m.Seq < 4 {
		t.Errorf("got %+v", m)
	}
	if err := st.p.Signal(9, true); !errors.Is(err, runtime.ErrClosed) {
		t.Errorf("signal after the end: %v", err)
	}
}

func TestExecRefusesAndGivesUp(t *testing.T) {
	dir := t.TempDir()
	srv := testServer(t, dir)
	init := dial(t, dir, "")
	init.want(Welcome)
	ses := session(t, srv)
	for _, args := range [][]string{nil, {"x", strings.Repeat("y", MaxBody)}} {
		if _, err := ses.Exec(t.Context(), runtime.ProcessSpec{Args: args}); !errors.Is(err, ErrExec) {
			t.Errorf("%d arguments: %v", len(args), err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	res := make(chan error)
	go func() {
		_, err := ses.Exec(ctx, runtime.ProcessSpec{Args: []string{"x"}})
		res <- err
	}()
	init.want(Exec)
	cancel()
	if err := <-res; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled exec: %v", err)
	}
	if m := init.want(Signal); m.Signal != 9 || !m.Group {
		t.Errorf("cancelled exec: %+v instead of a kill", m)
	}
	c := execAsync(t, ses, runtime.ProcessSpec{Args: []string{"x"}})
	id := init.want(Exec).Proc
	init.say(Message{Type: Failed, Proc: id, Seq: 1, Error: "no such file"}, nil)
	if st := <-c; !errors.Is(st.err, ErrExec) || !strings.Contains(st.err.Error(), "no such file") {
		t.Errorf("failed exec: %v", st.err)
	}
	ses.Close()
	if _, err := ses.Exec(t.Context(), runtime.ProcessSpec{Args: []string{"x"}}); !errors.Is(err, runtime.ErrClosed) {
		t.Errorf("exec in closed session: %v", err)
	}
}

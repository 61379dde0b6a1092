package ctl

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// SocketName is the socket's name in the container's directory.
const SocketName = "ctl.sock"

const (
	handshakeTime = 10 * time.Second // init answers in microseconds; user code may dawdle
	maxHandshakes = 8                // connections that have not said who they are
)

// Server listens for one container's init. The first connection is init's,
// because PID 1 connects before it starts anything; it gets a secret that all
// later connections must present. Safe for concurrent use.
type Server struct {
	log *slog.Logger
	dir *os.File
	ln  *net.UnixListener

	wg     sync.WaitGroup
	slots  chan struct{} // bounds handshakes
	ready  chan struct{} // closed when session is set
	closed chan struct{}

	mu      sync.Mutex
	secret  string // "" until the first connection
	session *Session
	shut    bool
}

// Listen makes dir/ctl.sock for a container that is about to start. The socket
// takes connections from any user, since root in a container is nobody in
// particular here: dir must lie below a directory that only the node can enter.
// A socket that an earlier process left there is replaced.
func Listen(dir string, log *slog.Logger) (*Server, error) { return listen(dir, "", log) }

// Resume is Listen for a container that survived a restart of the node. The
// secret is what Session.Secret gave to the earlier process.
func Resume(dir, secret string, log *slog.Logger) (*Server, error) {
	if secret == "" {
		return nil, errors.New("resume ctl socket: no secret")
	}
	return listen(dir, secret, log)
}

func listen(dir, secret string, log *slog.Logger) (*Server, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("ctl socket: %w", err)
	}
	// Through the descriptor, a long dir does not meet the 108 bytes that a
	// socket address can have.
	via := "/proc/self/fd/" + strconv.Itoa(int(d.Fd()))
	tmp := via + "/" + SocketName + ".new"
	_ = os.Remove(tmp) // left by a killed process
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err == nil {
		ln.SetUnlinkOnClose(false)
		if err = os.Chmod(tmp, 0o666); err == nil {
			// Under its name only once it answers: init waits for this rename.
			err = os.Rename(tmp, via+"/"+SocketName)
		}
		if err != nil {
			ln.Close()
			_ = os.Remove(tmp)
		}
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("ctl socket %s: %w", filepath.Join(dir, SocketName), err)
	}
	s := &Server{log: log, dir: d, ln: ln, secret: secret,
		slots: make(chan struct{}, maxHandshakes), ready: make(chan struct{}), closed: make(chan struct{})}
	s.wg.Add(1)
	go s.accept()
	return s, nil
}

// Wait returns the session once init has connected.
func (s *Server) Wait(ctx context.Context) (*Session, error) {
	select {
	case <-s.ready:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.session, nil
	case <-s.closed:
		return nil, fmt.Errorf("wait for init: %w", net.ErrClosed)
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for init: %w", ctx.Err())
	}
}

// Close stops listening, removes the socket and ends the session. Init keeps
// running and dials again until its owner gap has passed. May be called twice.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.shut {
		s.mu.Unlock()
		return nil
	}
	s.shut = true
	ses := s.session
	close(s.closed)
	s.mu.Unlock()
	_ = os.Remove("/proc/self/fd/" + strconv.Itoa(int(s.dir.Fd())) + "/" + SocketName)
	err := s.ln.Close()
	if ses != nil {
		ses.end(net.ErrClosed)
	}
	s.wg.Wait()
	s.dir.Close()
	return err
}

func (s *Server) accept() {
	defer s.wg.Done()
	for {
		select {
		case s.slots <- struct{}{}:
		case <-s.closed:
			return
		}
		conn, err := s.ln.Accept()
		if err != nil {
			<-s.slots
			if errors.Is(err, net.ErrClosed) {
				return
			}
			s.log.Warn("accept on ctl socket", "err", err)
			select { // out of descriptors, most likely: let others close some
			case <-time.After(100 * time.Millisecond):
			case <-s.closed:
				return
			}
			continue
		}
		s.wg.Add(1)
		go s.handshake(conn)
	}
}

// handshake reads the Hello of a new connection and gives the connection to
// the session, or closes it.
func (s *Server) handshake(conn net.Conn) {
	defer s.wg.Done()
	stop := make(chan struct{})
	go func() { // Close does not wait for a silent stranger
		select {
		case <-s.closed:
			conn.Close()
		case <-stop:
		}
	}()
	_ = conn.SetReadDeadline(time.Now().Add(handshakeTime))
	r := NewReader(conn)
	m, _, err := r.Next()
	close(stop)
	<-s.slots
	if err == nil && m.Type != Hello {
		err = fmt.Errorf("%w: %s before hello", ErrProtocol, m.Type)
	}
	if err == nil && m.Version != Version {
		err = fmt.Errorf("%w: version %d, want %d", ErrProtocol, m.Version, Version)
	}
	var ses *Session
	if err == nil {
		ses, err = s.admit(m.Secret)
	}
	if err != nil {
		s.log.Warn("refuse connection to ctl socket", "err", err)
		conn.Close()
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	ses.serve(conn, r, m.Procs)
}

func (s *Server) admit(secret string) (*Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return nil, net.ErrClosed
	}
	if s.secret == "" {
		s.secret = rand.Text()
	} else if subtle.ConstantTimeCompare([]byte(secret), []byte(s.secret)) != 1 {
		return nil, errors.New("wrong secret")
	}
	if s.session == nil {
		s.session = newSession(s.secret, s.log)
		close(s.ready)
	}
	return s.session, nil
}

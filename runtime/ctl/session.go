package ctl

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/beammesh/beammesh/runtime"
)

var (
	// ErrExec is wrapped when init could not start a process: no such file,
	// not executable, too many processes.
	ErrExec = errors.New("process not started")
	// ErrLost ends a session whose init broke the connection and did not come back.
	ErrLost = errors.New("init is gone")
	// errApart is returned while the connection is being made again.
	errApart = errors.New("init is not connected")
)

const (
	// reattachWait is how long a broken connection may stay so. Init dials
	// again at once; a dead init is known earlier, by its task's exit.
	reattachWait = 10 * time.Second
	// writeTime is far above what a reader that never blocks needs.
	writeTime = 30 * time.Second
)

// Session is the node's side of one container's init, over all its
// connections.
type Session struct {
	log    *slog.Logger
	secret string
	done   chan struct{}

	wmu sync.Mutex // one writer on conn; taken before mu

	mu    sync.Mutex
	conn  net.Conn // nil while apart
	procs map[uint32]*Process
	next  uint32 // 0 before the first connection; all lower ids are or were in use
	apart *time.Timer
	ended bool
	err   error
}

func newSession(secret string, log *slog.Logger) *Session {
	return &Session{log: log, secret: secret, done: make(chan struct{}), procs: map[uint32]*Process{}}
}

// Secret is what Resume needs after a restart of the node. Keep it where no
// container can read it.
func (s *Session) Secret() string { return s.secret }

// Done is closed when init has said goodbye, is gone or was refused.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is why the session ended: nil after a Shutdown. Valid after Done.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close ends the session from here, when the container is known to be gone.
// Processes that had not ended get exit code 137. May be called twice.
func (s *Session) Close() { s.end(net.ErrClosed) }

// Exec starts a process. It returns when init has started it, or with ErrExec.
// The callbacks of p run on one goroutine of the process, possibly before Exec
// returns. When ctx ends first the process is killed.
//
// When a process ends, what is left of its process group is killed.
func (s *Session) Exec(ctx context.Context, p runtime.ProcessSpec) (*Process, error) {
	body, err := json.Marshal(ExecBody{Args: p.Args, Env: p.Env, Cwd: p.Cwd, Frames: p.Frames})
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	if len(p.Args) == 0 || len(body) > MaxBody {
		return nil, fmt.Errorf("exec: %w: %d arguments, %d bytes of arguments and environment (limit %d)",
			ErrExec, len(p.Args), len(body), MaxBody)
	}
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return nil, fmt.Errorf("exec %s: %w", p.Args[0], runtime.ErrClosed)
	}
	if len(s.procs) >= MaxProcs {
		s.mu.Unlock()
		return nil, fmt.Errorf("exec %s: %w: %d processes run already", p.Args[0], ErrExec, MaxProcs)
	}
	pr := newProcess(s, s.next)
	pr.spec, pr.exec = p, body
	s.next++
	s.procs[pr.id] = pr
	s.mu.Unlock()
	go pr.run()
	// Apart, the Exec goes out with the resync.
	if err := s.write(&Message{Type: Exec, Proc: pr.id}, body); err != nil && !errors.Is(err, errApart) {
		s.log.Warn("write to init", "err", err)
	}
	select {
	case <-pr.started:
		return pr, nil
	case <-pr.done:
		select {
		case <-pr.started: // both: it was a short one
			return pr, nil
		default:
		}
		if pr.failed != nil {
			return nil, fmt.Errorf("exec %s: %w", p.Args[0], pr.failed)
		}
		return nil, fmt.Errorf("exec %s: %w", p.Args[0], runtime.ErrClosed)
	case <-ctx.Done():
		pr.abandon()
		return nil, fmt.Errorf("exec %s: %w", p.Args[0], ctx.Err())
	}
}

// Running lists the processes that init had when it connected to a resumed
// server and that nobody has attached to. Their output stands still.
func (s *Session) Running() []ProcInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	var l []ProcInfo
	for _, p := range s.procs {
		if p.adopted {
			l = append(l, ProcInfo{Proc: p.id, PID: p.pid})
		}
	}
	slices.SortFunc(l, func(a, b ProcInfo) int { return cmp.Compare(a.Proc, b.Proc) })
	return l
}

// Attach takes over a process that an earlier node started; of p only the
// callbacks and Frames are used. Output and frames that the earlier node had
// not acknowledged come again; a frame of which it had taken a part is lost.
func (s *Session) Attach(proc uint32, p runtime.ProcessSpec) (*Process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pr := s.procs[proc]
	if pr == nil || !pr.adopted {
		return nil, fmt.Errorf("attach to process %d: %w", proc, runtime.ErrNotFound)
	}
	pr.adopted = false
	pr.spec = p
	go pr.run()
	return pr, nil
}

// Shutdown asks init to end all processes (TERM, after grace KILL) and itself.
// It does not wait: Done tells when it is over.
func (s *Session) Shutdown(grace time.Duration) error {
	return s.write(&Message{Type: Shutdown, GraceMillis: grace.Milliseconds()}, nil)
}

// end closes the session once; err is nil after a goodbye.
func (s *Session) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended, s.err = true, err
	if s.apart != nil {
		s.apart.Stop()
	}
	if s.conn != nil {
		s.conn.Close()
	}
	close(s.done) // every process wakes and ends
}

// write sends one message on the present connection.
func (s *Session) write(m *Message, body []byte) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	return s.writeLocked(m, body)
}

// writeLocked is write with wmu held.
func (s *Session) writeLocked(m *Message, body []byte) error {
	s.mu.Lock()
	conn, ended := s.conn, s.ended
	s.mu.Unlock()
	switch {
	case ended:
		return runtime.ErrClosed
	case conn == nil:
		return errApart
	}
	_ = conn.SetWriteDeadline(time.Now().Add(writeTime))
	if err := Write(conn, m, body); err != nil {
		conn.Close() // half a message may be out; the reader notices
		return fmt.Errorf("%w: %w", errApart, err)
	}
	return nil
}

// serve takes a new connection into use and reads it until it ends.
func (s *Session) serve(conn net.Conn, r *Reader, have []ProcInfo) {
	s.wmu.Lock()
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		s.wmu.Unlock()
		conn.Close()
		return
	}
	if s.conn != nil {
		s.conn.Close()
	}
	s.conn = conn
	if s.apart != nil {
		s.apart.Stop()
	}
	if s.next == 0 { // the first connection of this session
		for _, i := range have {
			p := newProcess(s, i.Proc)
			p.pid, p.adopted, p.sent = i.PID, true, i.Recv
			close(p.started)
			s.procs[i.Proc] = p
			s.next = max(s.next, i.Proc)
		}
		s.next++
	}
	procs := slices.SortedFunc(maps.Values(s.procs), func(a, b *Process) int { return cmp.Compare(a.id, b.id) })
	s.mu.Unlock()
	err := s.resyncLocked(procs, have)
	s.wmu.Unlock()
	if err == nil {
		err = s.read(r)
	}
	conn.Close()
	if errors.Is(err, ErrProtocol) {
		s.log.Error("init broke the protocol", "err", err)
		s.end(err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.conn != conn {
		return
	}
	s.conn = nil
	s.apart = time.AfterFunc(reattachWait, func() { s.end(ErrLost) })
}

// resyncLocked sends what init lacks after a break; wmu is held.
func (s *Session) resyncLocked(procs []*Process, have []ProcInfo) error {
	if err := s.writeLocked(&Message{Type: Welcome, Secret: s.secret, Version: Version}, nil); err != nil {
		return err
	}
	at := make(map[uint32]ProcInfo, len(have))
	for _, i := range have {
		at[i.Proc] = i
	}
	for _, p := range procs {
		i, known := at[p.id]
		delete(at, p.id)
		if err := p.resync(i, known); err != nil {
			return err
		}
	}
	for id := range at { // ended and acknowledged, but the acknowledgement was lost
		if err := s.writeLocked(&Message{Type: Ack, Proc: id, Seq: math.MaxUint64}, nil); err != nil {
			return err
		}
	}
	return nil
}

func (s *Session) read(r *Reader) error {
	for {
		m, body, err := r.Next()
		if err != nil {
			return err
		}
		switch m.Type {
		case Bye:
			s.end(nil)
			return nil
		case Started, Output, Frame, Exited, Failed, Ack:
		default:
			return fmt.Errorf("%w: unexpected %q from init", ErrProtocol, m.Type)
		}
		s.mu.Lock()
		p, next := s.procs[m.Proc], s.next
		s.mu.Unlock()
		if p == nil {
			if m.Proc < next { // sent again, but consumed in the meantime
				continue
			}
			return fmt.Errorf("%w: %s for unknown process %d", ErrProtocol, m.Type, m.Proc)
		}
		if m.Type == Ack {
			p.acked(m.Seq)
		} else if err := p.deliver(m, body); err != nil {
			return err
		}
	}
}

func (s *Session) forget(p *Process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.procs, p.id)
}

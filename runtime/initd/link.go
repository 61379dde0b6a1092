package initd

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/beammesh/beammesh/runtime/ctl"
)

const (
	writeTime = 30 * time.Second
	// retryTime is how long to wait after a refusal when the watch on the
	// socket's directory says nothing, for kernels where it cannot be had.
	retryTime = 5 * time.Second
)

// link is the connection to the node, made again whenever it breaks.
type link struct {
	path string
	st   *state

	mu     sync.Mutex // one writer; guards conn and secret
	conn   net.Conn
	secret string
}

func newLink(path string, st *state) *link { return &link{path: path, st: st} }

// send writes when connected. What must not be lost is kept by its process
// and sent again on the next connection.
func (l *link) send(m *ctl.Message, body []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sendLocked(m, body)
}

func (l *link) sendLocked(m *ctl.Message, body []byte) {
	if l.conn == nil {
		return
	}
	_ = l.conn.SetWriteDeadline(time.Now().Add(writeTime))
	if err := ctl.Write(l.conn, m, body); err != nil {
		l.conn.Close() // the reader notices
		l.conn = nil
	}
}

func (l *link) connected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn != nil
}

// run keeps the connection until the node has been gone for the owner gap.
func (l *link) run() {
	watch := watchDir(filepath.Dir(l.path), l.st.log)
	last := time.Now() // when a node was last there
	for {
		select { // what happened before this try does not count
		case <-watch:
		default:
		}
		served, err := l.serve()
		now := time.Now()
		if served {
			last = now
		}
		left := l.st.cfg.Gap - now.Sub(last)
		if left <= 0 {
			return
		}
		l.st.log.Info("no connection to the node", "err", err, "left", left)
		wait := retryTime
		if served {
			wait = 100 * time.Millisecond // perhaps it was the connection only
		}
		t := time.NewTimer(min(left, wait))
		select {
		case <-watch:
		case <-t.C:
		case <-l.st.stopped:
			return
		}
		t.Stop()
	}
}

// serve makes one connection and reads it until it breaks. served is whether
// the node welcomed us.
func (l *link) serve() (served bool, err error) {
	conn, err := net.DialTimeout("unix", l.path, retryTime)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	procs := l.st.list()
	hello := &ctl.Message{Type: ctl.Hello, Version: ctl.Version}
	for _, p := range procs {
		hello.Procs = append(hello.Procs, p.info())
	}
	l.mu.Lock()
	hello.Secret = l.secret
	l.mu.Unlock()
	_ = conn.SetDeadline(time.Now().Add(writeTime))
	if err := ctl.Write(conn, hello, nil); err != nil {
		return false, err
	}
	r := ctl.NewReader(conn)
	m, _, err := r.Next()
	if err != nil {
		return false, err
	}
	if m.Type != ctl.Welcome || m.Version != ctl.Version {
		return false, fmt.Errorf("%w: %s version %d instead of welcome", ctl.ErrProtocol, m.Type, m.Version)
	}
	_ = conn.SetReadDeadline(time.Time{})
	l.mu.Lock()
	l.secret, l.conn = m.Secret, conn
	// The lock stays held until all is sent again, since the node takes what a
	// process says in order only. We read meanwhile: the node may be sending
	// again too, and reads only after that.
	go l.resendAndUnlock(procs)
	err = l.read(r)
	l.mu.Lock()
	if l.conn == conn {
		l.conn = nil
	}
	l.mu.Unlock()
	return true, err
}

// resendAndUnlock sends what the node has not acknowledged.
func (l *link) resendAndUnlock(procs []*proc) {
	defer l.mu.Unlock()
	for _, p := range procs {
		msgs, written := p.unackedNow()
		if written > 0 {
			l.sendLocked(&ctl.Message{Type: ctl.Ack, Proc: p.id, Seq: written}, nil)
		}
		for _, o := range msgs {
			l.sendLocked(&o.m, o.body)
		}
	}
}

// read acts on the node's messages. Nothing in it waits for a process or for
// the writing side of the link.
func (l *link) read(r *ctl.Reader) error {
	for {
		m, body, err := r.Next()
		if err != nil {
			return err
		}
		switch m.Type {
		case ctl.Exec:
			var b ctl.ExecBody
			if err := json.Unmarshal(body, &b); err != nil {
				return fmt.Errorf("%w: exec: %w", ctl.ErrProtocol, err)
			}
			l.st.exec(m.Proc, b)
		case ctl.Frame:
			if p := l.st.find(m.Proc); p != nil {
				if err := p.input(m, body); err != nil {
					return err
				}
			}
		case ctl.Ack:
			if p := l.st.find(m.Proc); p != nil && p.acked(m.Seq) {
				l.st.forget(p)
			}
		case ctl.Signal:
			l.st.signal(m.Proc, m.Signal, m.Group)
		case ctl.Shutdown:
			go l.st.shutdown(time.Duration(m.GraceMillis) * time.Millisecond)
		default:
			return fmt.Errorf("%w: unexpected %q from the node", ctl.ErrProtocol, m.Type)
		}
	}
}

package meshtest

import (
	"io"
	"os"
	"sync"
	"time"

	"github.com/beammesh/beammesh/mesh"
)

// pipeSize is how much one direction buffers, as a transport's window would.
const pipeSize = 256 << 10

// pipe is one direction of a stream.
type pipe struct {
	mu     sync.Mutex
	moved  chan struct{} // closed and replaced at every change
	buf    []byte
	eof    bool  // writer closed
	broken error // reset by either side
	gone   bool  // reader closed
	rd, wd deadline
}

func newPipe() *pipe { return &pipe{moved: make(chan struct{})} }

func (p *pipe) changedLocked() {
	close(p.moved)
	p.moved = make(chan struct{})
}

// deadline is a point in time and the timer that announces it.
type deadline struct {
	passed bool
	timer  *time.Timer
	turn   int
}

func (p *pipe) setDeadline(d *deadline, t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
	}
	d.turn++
	d.passed = false
	if !t.IsZero() {
		if wait := time.Until(t); wait <= 0 {
			d.passed = true
		} else {
			turn := d.turn
			d.timer = time.AfterFunc(wait, func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				if d.turn == turn {
					d.passed = true
					p.changedLocked()
				}
			})
		}
	}
	p.changedLocked()
}

func (p *pipe) read(b []byte) (int, error) {
	for {
		p.mu.Lock()
		switch {
		case p.broken != nil:
			defer p.mu.Unlock()
			return 0, p.broken
		case p.gone:
			defer p.mu.Unlock()
			return 0, io.ErrClosedPipe
		case p.rd.passed:
			defer p.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case len(p.buf) > 0 || len(b) == 0:
			n := copy(b, p.buf)
			p.buf = p.buf[n:]
			p.changedLocked()
			p.mu.Unlock()
			return n, nil
		case p.eof:
			defer p.mu.Unlock()
			return 0, io.EOF
		}
		wait := p.moved
		p.mu.Unlock()
		<-wait
	}
}

func (p *pipe) write(b []byte) (n int, err error) {
	for {
		p.mu.Lock()
		switch {
		case p.broken != nil:
			defer p.mu.Unlock()
			return n, p.broken
		case p.eof, p.gone:
			defer p.mu.Unlock()
			return n, io.ErrClosedPipe
		case p.wd.passed:
			defer p.mu.Unlock()
			return n, os.ErrDeadlineExceeded
		}
		k := min(len(b), pipeSize-len(p.buf))
		p.buf = append(p.buf, b[:k]...)
		b, n = b[k:], n+k
		if k > 0 {
			p.changedLocked()
		}
		wait := p.moved
		p.mu.Unlock()
		if len(b) == 0 {
			return n, nil
		}
		<-wait
	}
}

func (p *pipe) set(fn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fn()
	p.changedLocked()
}

// end is one side of a stream.
type end struct {
	peer    mesh.PeerID
	in, out *pipe
	forget  func() // takes the stream off the network's list, once both sides are done
}

func (e *end) Peer() mesh.PeerID           { return e.peer }
func (e *end) Read(b []byte) (int, error)  { return e.in.read(b) }
func (e *end) Write(b []byte) (int, error) { return e.out.write(b) }
func (e *end) CloseWrite() error           { e.out.set(func() { e.out.eof = true }); return nil }

func (e *end) Close() error {
	e.out.set(func() { e.out.eof = true })
	e.in.set(func() { e.in.gone, e.in.buf = true, nil })
	e.forget()
	return nil
}

func (e *end) Reset() error {
	e.breakWith(errReset)
	e.forget()
	return nil
}

func (e *end) breakWith(err error) {
	for _, p := range []*pipe{e.in, e.out} {
		p.set(func() {
			if p.broken == nil {
				p.broken = err
			}
		})
	}
}

func (e *end) SetDeadline(t time.Time) error {
	e.SetReadDeadline(t)
	return e.SetWriteDeadline(t)
}
func (e *end) SetReadDeadline(t time.Time) error  { e.in.setDeadline(&e.in.rd, t); return nil }
func (e *end) SetWriteDeadline(t time.Time) error { e.out.setDeadline(&e.out.wd, t); return nil }

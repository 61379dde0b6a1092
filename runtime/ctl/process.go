package ctl

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/beammesh/beammesh/runtime"
)

var _ runtime.Process = (*Process)(nil)

const killed = 128 + 9

// Process is a process in the container, as runtime.Process.
type Process struct {
	s    *Session
	id   uint32
	exec []byte // ExecBody, for a resync before it started
	spec runtime.ProcessSpec

	started chan struct{} // closed with pid set
	done    chan struct{} // closed with code or failed set
	wake    chan struct{} // capacity 1: the queue has something
	credit  chan struct{} // capacity 1: an acknowledgement came
	pid     int
	code    int
	failed  error
	adopted bool // of an earlier node and not attached yet; Session.mu

	frame []byte // the frame being put together; run only

	sendMu sync.Mutex // one Send at a time, so fragments stay together

	mu       sync.Mutex
	queue    []inbound // received, not consumed; bounded by deliver
	owed     int       // cost of what was received and not acknowledged
	ate      int       // cost of what was consumed and not acknowledged
	seen     uint64    // last Seq received
	eaten    uint64    // last Seq consumed
	sent     uint64    // last Seq sent
	unacked  []outbound
	inFlight int // cost of unacked
	quiet    bool
}

type inbound struct {
	m    Message
	body []byte
}

type outbound struct {
	m    Message
	body []byte
}

func newProcess(s *Session, id uint32) *Process {
	return &Process{s: s, id: id, started: make(chan struct{}), done: make(chan struct{}),
		wake: make(chan struct{}, 1), credit: make(chan struct{}, 1)}
}

// PID is the process's id inside the container.
func (p *Process) PID() int { return p.pid }

// ID is the number to Attach with after a restart of the node.
func (p *Process) ID() uint32 { return p.id }

// Done is closed when the process has ended and all its output and frames
// have been delivered.
func (p *Process) Done() <-chan struct{} { return p.done }

// ExitCode is valid after Done: 128+signal when killed, 137 when the whole
// container went.
func (p *Process) ExitCode() int { return p.code }

// Signal sends a signal to the process, or to its group.
func (p *Process) Signal(sig int, group bool) error {
	select {
	case <-p.done:
		return fmt.Errorf("signal process %d: %w", p.pid, runtime.ErrClosed)
	default:
	}
	return p.s.write(&Message{Type: Signal, Proc: p.id, Signal: sig, Group: group}, nil)
}

// Send writes one runner frame. It blocks while the process does not read,
// until the process or the session ends. body is not kept.
func (p *Process) Send(body []byte) error {
	if !p.spec.Frames {
		return errors.New("send: process has no frames")
	}
	if n, err := RunnerFrameLen(body); err != nil || n != len(body) {
		return fmt.Errorf("send: body of %d bytes is not one runner frame", len(body))
	}
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	select {
	case <-p.done:
		return fmt.Errorf("send: %w", runtime.ErrClosed)
	default:
	}
	for off := 0; off < len(body); off += Fragment {
		part := body[off:min(off+Fragment, len(body))]
		m := Message{Type: Frame, Proc: p.id, Off: int64(off), More: off+len(part) < len(body)}
		if err := p.reserve(&m, part); err != nil {
			return err
		}
		if err := p.s.write(&m, part); err != nil && !errors.Is(err, errApart) {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}

// reserve waits for room in the window and files the message as sent.
func (p *Process) reserve(m *Message, body []byte) error {
	c := Cost(len(body))
	for {
		p.mu.Lock()
		if p.inFlight == 0 || p.inFlight+c <= Window {
			p.sent++
			m.Seq = p.sent
			p.unacked = append(p.unacked, outbound{*m, bytes.Clone(body)})
			p.inFlight += c
			p.mu.Unlock()
			return nil
		}
		p.mu.Unlock()
		select {
		case <-p.credit:
		case <-p.done:
			return fmt.Errorf("send: %w", runtime.ErrClosed)
		case <-p.s.done:
			return fmt.Errorf("send: %w", runtime.ErrClosed)
		}
	}
}

// acked drops what init has taken.
func (p *Process) acked(seq uint64) {
	p.mu.Lock()
	for len(p.unacked) > 0 && p.unacked[0].m.Seq <= seq {
		p.inFlight -= Cost(len(p.unacked[0].body))
		p.unacked[0] = outbound{}
		p.unacked = p.unacked[1:]
	}
	p.mu.Unlock()
	poke(p.credit)
}

// deliver queues a message from init. It never blocks; an init that sends
// beyond the window breaks the protocol.
func (p *Process) deliver(m Message, body []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen == 0 && m.Seq > 1 && p.exec == nil {
		p.seen, p.eaten = m.Seq-1, m.Seq-1 // an adopted process begins where it stands
	}
	if m.Seq <= p.seen {
		return nil // sent again after a break
	}
	if m.Seq != p.seen+1 {
		return fmt.Errorf("%w: process %d: message %d after %d", ErrProtocol, p.id, m.Seq, p.seen)
	}
	if m.Type == Output && m.FD != 1 && m.FD != 2 {
		return fmt.Errorf("%w: process %d: output of descriptor %d", ErrProtocol, p.id, m.FD)
	}
	p.owed += Cost(len(body))
	if len(body) > Fragment || p.owed > Window+2*Cost(Fragment) {
		return fmt.Errorf("%w: process %d: %d bytes beyond the window", ErrProtocol, p.id, p.owed)
	}
	p.seen = m.Seq
	p.queue = append(p.queue, inbound{m, bytes.Clone(body)})
	poke(p.wake)
	return nil
}

// run consumes messages in order until the process has ended.
func (p *Process) run() {
	defer p.s.forget(p)
	defer close(p.done)
	for {
		in, ok := p.take()
		if !ok {
			p.code = killed
			return
		}
		over := p.handle(in)
		p.consumed(in, over)
		if over {
			return
		}
	}
}

func (p *Process) take() (inbound, bool) {
	for last := false; ; {
		p.mu.Lock()
		if len(p.queue) > 0 {
			in := p.queue[0]
			p.queue[0] = inbound{}
			p.queue = p.queue[1:]
			p.mu.Unlock()
			return in, true
		}
		p.mu.Unlock()
		if last {
			return inbound{}, false
		}
		select {
		case <-p.wake:
		case <-p.s.done:
			last = true // what came before the end is still delivered
		}
	}
}

// handle acts on one message and reports whether it was the last.
func (p *Process) handle(in inbound) bool {
	m := in.m
	switch m.Type {
	case Started:
		select {
		case <-p.started:
		default:
			p.pid = m.PID
			close(p.started)
		}
	case Output:
		if p.spec.Output != nil && !p.muted() {
			p.spec.Output(m.FD, in.body)
		}
	case Frame:
		p.fragment(m, in.body)
	case Exited:
		p.code = m.Code
		return true
	case Failed:
		p.failed = fmt.Errorf("%w: %s", ErrExec, m.Error)
		p.code = 127
		return true
	}
	return false
}

// fragment puts a frame together and delivers it. Fragments that do not
// continue what came before belong to a frame whose begin an earlier node took.
func (p *Process) fragment(m Message, body []byte) {
	if m.Off != int64(len(p.frame)) || len(p.frame)+len(body) > MaxRunnerFrame {
		p.frame = nil
		return
	}
	if m.Off == 0 && !m.More { // the usual case, without a copy
		p.emit(body)
		return
	}
	p.frame = append(p.frame, body...)
	if !m.More {
		f := p.frame
		p.frame = nil
		p.emit(f)
	}
}

func (p *Process) emit(frame []byte) {
	if p.spec.Frame != nil && !p.muted() {
		p.spec.Frame(frame)
	}
}

// consumed acknowledges what was taken: at once when nothing waits, else in
// steps of half a window.
func (p *Process) consumed(in inbound, over bool) {
	p.mu.Lock()
	p.eaten = in.m.Seq
	p.ate += Cost(len(in.body))
	ack := over || len(p.queue) == 0 || p.ate >= Window/2
	if ack {
		p.owed -= p.ate
		p.ate = 0
	}
	seq := p.eaten
	p.mu.Unlock()
	if ack {
		// Apart, the resync says it.
		_ = p.s.write(&Message{Type: Ack, Proc: p.id, Seq: seq}, nil)
	}
}

// resync sends again what init lacks; Session.wmu is held.
func (p *Process) resync(i ProcInfo, known bool) error {
	select {
	case <-p.started:
	default:
		if !known && p.exec != nil {
			return p.s.writeLocked(&Message{Type: Exec, Proc: p.id}, p.exec)
		}
	}
	p.mu.Lock()
	eaten, quiet := p.eaten, p.quiet
	again := make([]outbound, 0, len(p.unacked))
	for _, o := range p.unacked {
		if o.m.Seq > i.Recv {
			again = append(again, o)
		}
	}
	p.mu.Unlock()
	if eaten > 0 {
		if err := p.s.writeLocked(&Message{Type: Ack, Proc: p.id, Seq: eaten}, nil); err != nil {
			return err
		}
	}
	if quiet { // the kill may have been lost
		if err := p.s.writeLocked(&Message{Type: Signal, Proc: p.id, Signal: 9, Group: true}, nil); err != nil {
			return err
		}
	}
	for _, o := range again {
		if err := p.s.writeLocked(&o.m, o.body); err != nil {
			return err
		}
	}
	return nil
}

// abandon kills a process that nobody waits for and drops its output.
func (p *Process) abandon() {
	p.mu.Lock()
	p.quiet = true
	p.mu.Unlock()
	_ = p.s.write(&Message{Type: Signal, Proc: p.id, Signal: 9, Group: true}, nil)
}

func (p *Process) muted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.quiet
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

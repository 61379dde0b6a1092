package initd

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/beammesh/beammesh/runtime/ctl"
)

// proc is one process and what the node is still owed about it.
type proc struct {
	st   *state
	id   uint32
	pid  int
	out  [2]*stream // read ends of stdout and stderr
	sock *stream    // our end of descriptor 3; nil without frames

	// mu keeps the order of what is said about the process. It is held while
	// waiting for the window, which is what slows the process down.
	mu    sync.Mutex
	begun chan struct{} // closed when Started is said
	ended bool          // streams are drained and closed
	acc   []byte        // begin of a fragment from descriptor 3
	total int           // length of the runner frame in progress, 0 = not known
	off   int           // of it already sent

	// q is what was said and not acknowledged.
	q struct {
		sync.Mutex
		room     *sync.Cond // unacked shrank
		unacked  []said
		inFlight int // cost of unacked, <= ctl.Window + one message
		seq      uint64
		final    uint64 // Seq of Exited or Failed
	}

	// in is what the node sent for descriptor 3 and is not written yet.
	in struct {
		sync.Mutex
		more    *sync.Cond
		parts   []said
		owed    int // cost of parts, <= ctl.Window + one message
		recv    uint64
		written uint64
		closed  bool
	}
}

type said struct {
	m    ctl.Message
	body []byte
}

func newProc(st *state, id uint32) *proc {
	p := &proc{st: st, id: id, begun: make(chan struct{})}
	p.q.room = sync.NewCond(&p.q.Mutex)
	p.in.more = sync.NewCond(&p.in.Mutex)
	return p
}

// start tells the node and begins to pass the streams on.
func (p *proc) start() {
	p.mu.Lock()
	p.say(ctl.Message{Type: ctl.Started, PID: p.pid}, nil)
	close(p.begun)
	p.mu.Unlock()
	for i, s := range p.out {
		go p.pump(s, func() int { return p.takeOutput(i) })
	}
	if p.sock != nil {
		go p.pump(p.sock, p.takeFrames)
		go p.writeFrames()
	}
}

func (p *proc) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.say(ctl.Message{Type: ctl.Failed, Error: err.Error()}, nil)
}

// finish says what is left in the streams and then how the process ended.
func (p *proc) finish(code int) {
	<-p.begun
	p.mu.Lock()
	if p.sock != nil {
		p.drainFrames()
	}
	p.drainOutput()
	p.ended = true
	p.in.Lock()
	p.in.closed, p.in.parts = true, nil
	p.in.more.Broadcast()
	p.in.Unlock()
	p.say(ctl.Message{Type: ctl.Exited, Code: code}, nil)
	p.mu.Unlock()
	p.closeStreams() // waits for the pumps, which may be waiting for mu
}

func (p *proc) closeStreams() {
	for _, s := range []*stream{p.out[0], p.out[1], p.sock} {
		if s != nil {
			s.f.Close()
		}
	}
}

// say sends one message about the process once the window has room; mu is held.
func (p *proc) say(m ctl.Message, body []byte) {
	m.Proc = p.id
	c := ctl.Cost(len(body))
	p.q.Lock()
	for p.q.inFlight > 0 && p.q.inFlight+c > ctl.Window {
		p.q.room.Wait()
	}
	p.q.seq++
	m.Seq = p.q.seq
	if m.Type == ctl.Exited || m.Type == ctl.Failed {
		p.q.final = m.Seq
	}
	p.q.inFlight += c
	p.q.unacked = append(p.q.unacked, said{m, bytes.Clone(body)})
	p.q.Unlock()
	p.st.link.send(&m, body)
}

// acked drops what the node has consumed and reports whether that was all.
func (p *proc) acked(seq uint64) bool {
	p.q.Lock()
	defer p.q.Unlock()
	for len(p.q.unacked) > 0 && p.q.unacked[0].m.Seq <= seq {
		p.q.inFlight -= ctl.Cost(len(p.q.unacked[0].body))
		p.q.unacked[0] = said{}
		p.q.unacked = p.q.unacked[1:]
	}
	p.q.room.Broadcast()
	return p.q.final != 0 && seq >= p.q.final
}

func (p *proc) unackedNow() (msgs []said, written uint64) {
	p.in.Lock()
	written = p.in.written
	p.in.Unlock()
	p.q.Lock()
	defer p.q.Unlock()
	return append(msgs, p.q.unacked...), written
}

func (p *proc) info() ctl.ProcInfo {
	p.in.Lock()
	defer p.in.Unlock()
	return ctl.ProcInfo{Proc: p.id, PID: p.pid, Recv: p.in.recv}
}

// input queues a fragment for descriptor 3. It never waits.
func (p *proc) input(m ctl.Message, body []byte) error {
	p.in.Lock()
	defer p.in.Unlock()
	if m.Seq <= p.in.recv || p.in.closed {
		return nil
	}
	if p.in.owed > ctl.Window || len(body) > ctl.Fragment || m.Seq != p.in.recv+1 {
		return fmt.Errorf("%w: process %d: frame %d after %d, %d bytes beyond the window",
			ctl.ErrProtocol, p.id, m.Seq, p.in.recv, p.in.owed)
	}
	p.in.recv = m.Seq
	p.in.owed += ctl.Cost(len(body))
	p.in.parts = append(p.in.parts, said{m, bytes.Clone(body)})
	p.in.more.Signal()
	return nil
}

// writeFrames passes fragments on to descriptor 3, at the process's speed.
func (p *proc) writeFrames() {
	for {
		p.in.Lock()
		for len(p.in.parts) == 0 && !p.in.closed {
			p.in.more.Wait()
		}
		if p.in.closed {
			p.in.Unlock()
			return
		}
		o := p.in.parts[0]
		p.in.parts = p.in.parts[1:]
		p.in.Unlock()
		// A process that closed its end loses what comes; its end tells the rest.
		_, _ = p.sock.f.Write(o.body)
		p.in.Lock()
		p.in.written = o.m.Seq
		p.in.owed -= ctl.Cost(len(o.body))
		p.in.Unlock()
		p.st.link.send(&ctl.Message{Type: ctl.Ack, Proc: p.id, Seq: o.m.Seq}, nil)
	}
}

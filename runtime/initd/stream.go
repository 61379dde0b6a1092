package initd

import (
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/runtime/ctl"
)

// stream is our end of one of a process's descriptors. The number is kept
// because os.File.Fd may make the file block.
type stream struct {
	f  *os.File
	fd int
}

func newStream(fd int, name string) (*stream, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		syscall.Close(fd)
		return nil, err
	}
	return &stream{os.NewFile(uintptr(fd), name), fd}, nil
}

// Results of a read, where positive is the number of bytes.
const (
	over  = 0  // end of the stream, or an error
	later = -1 // nothing now
)

// read is read(2) with these results.
func (s *stream) read(buf []byte) int {
	for {
		n, err := syscall.Read(s.fd, buf)
		switch err {
		case nil:
			return n
		case syscall.EINTR:
		case syscall.EAGAIN:
			return later
		default:
			return over
		}
	}
}

// pending is how many bytes the kernel holds.
func (s *stream) pending() int {
	n, err := unix.IoctlGetInt(s.fd, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// buffers for one read; what is kept is copied at its own length.
var buffers = sync.Pool{New: func() any { return new([ctl.Fragment]byte) }}

// pump calls take, with mu held, whenever s can be read, until it is over.
func (p *proc) pump(s *stream, take func() int) {
	rc, err := s.f.SyscallConn()
	if err != nil {
		return
	}
	for n := 1; n != over; {
		err := rc.Read(func(uintptr) bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.ended {
				n = over
			} else {
				n = take()
			}
			return n != later
		})
		if err != nil {
			return // closed by finish
		}
	}
}

// takeOutput passes on one read of stdout (0) or stderr (1); mu is held.
func (p *proc) takeOutput(i int) int {
	buf := buffers.Get().(*[ctl.Fragment]byte)
	defer buffers.Put(buf)
	n := p.out[i].read(buf[:])
	if n > 0 {
		p.say(ctl.Message{Type: ctl.Output, FD: i + 1}, buf[:n])
	}
	return n
}

// takeFrames takes one read of descriptor 3 and passes fragments on; mu is held.
func (p *proc) takeFrames() int {
	buf := buffers.Get().(*[ctl.Fragment]byte)
	defer buffers.Put(buf)
	n := p.sock.read(buf[:])
	if n > 0 {
		p.acc = append(p.acc, buf[:n]...)
		if !p.fragments() {
			return over
		}
	}
	return n
}

// fragments passes on what acc holds of whole fragments. It returns false
// when the process does not speak frames; mu is held.
func (p *proc) fragments() bool {
	for {
		if p.total == 0 {
			if len(p.acc) < 8 {
				return true
			}
			total, err := ctl.RunnerFrameLen(p.acc)
			if err != nil {
				p.st.log.Error("no frames on descriptor 3, end the process", "pid", p.pid, "err", err)
				p.acc = nil
				p.st.signal(p.id, int(syscall.SIGKILL), true)
				return false
			}
			p.total, p.off = total, 0
		}
		part := min(ctl.Fragment, p.total-p.off)
		if len(p.acc) < part {
			return true
		}
		if p.off == 0 {
			p.drainOutput() // what was printed before the frame goes before it
		}
		p.say(ctl.Message{Type: ctl.Frame, Off: int64(p.off), More: p.off+part < p.total}, p.acc[:part])
		p.acc = p.acc[:copy(p.acc, p.acc[part:])]
		if p.off += part; p.off == p.total {
			p.total = 0
		}
	}
}

// drainOutput passes on what stdout and stderr hold now; mu is held. It ends,
// because what is written in the meantime does not count.
func (p *proc) drainOutput() {
	for i, s := range p.out {
		for left := s.pending(); left > 0; {
			n := p.takeOutput(i)
			if n <= 0 {
				break
			}
			left -= n
		}
	}
}

// drainFrames passes on what descriptor 3 holds of a process that has ended;
// mu is held.
func (p *proc) drainFrames() {
	for left := p.sock.pending(); left > 0; {
		n := p.takeFrames()
		if n <= 0 {
			return
		}
		left -= n
	}
}

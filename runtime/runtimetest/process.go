package runtimetest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/ctl"
)

// fakeProcess is a process of this machine in a group of its own.
type fakeProcess struct {
	cmd  *exec.Cmd
	spec runtime.ProcessSpec
	sock *os.File // our end of descriptor 3
	done chan struct{}
	code int

	deliver sync.Mutex // the callbacks run one at a time
	sendMu  sync.Mutex
}

func startProcess(c *FakeContainer, spec runtime.ProcessSpec) (*fakeProcess, error) {
	p := &fakeProcess{spec: spec, done: make(chan struct{})}
	cmd := exec.Command(spec.Args[0], spec.Args[1:]...)
	cmd.Dir = filepath.Join(c.root, spec.Cwd)
	if err := os.MkdirAll(cmd.Dir, 0o755); err != nil {
		return nil, err
	}
	cmd.Env = append(append(append(os.Environ(), "BEAM_FAKE_ROOT="+c.root), c.Spec.Env...), spec.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: 0}
	p.cmd = cmd
	var ours []*os.File
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	for range 2 {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, closing(ours, err)
		}
		ours, theirs = append(ours, r), append(theirs, w)
	}
	cmd.Stdout, cmd.Stderr = theirs[0], theirs[1]
	if spec.Frames {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, closing(ours, err)
		}
		_ = syscall.SetNonblock(fds[0], true)
		p.sock = os.NewFile(uintptr(fds[0]), "frames")
		ours = append(ours, p.sock)
		theirs = append(theirs, os.NewFile(uintptr(fds[1]), "frames"))
		cmd.ExtraFiles = []*os.File{theirs[2]}
	}
	if err := cmd.Start(); err != nil {
		return nil, closing(ours, err)
	}
	go p.run(ours)
	return p, nil
}

func closing(files []*os.File, err error) error {
	for _, f := range files {
		f.Close()
	}
	return err
}

// run delivers everything and then notes the end.
func (p *fakeProcess) run(ours []*os.File) {
	var wg sync.WaitGroup
	out := [2]*stream{newStream(ours[0]), newStream(ours[1])}
	for i, s := range out {
		wg.Go(func() { s.pump(&p.deliver, func(b []byte) { p.output(i+1, b) }) })
	}
	if p.sock != nil {
		wg.Go(func() { p.frames(out) })
	}
	err := p.cmd.Wait()                                   // the files are ours, so this waits for the process only
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // what is left of its group
	wg.Wait()
	_ = closing(ours, nil)
	var ee *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &ee) && ee.Sys().(syscall.WaitStatus).Signaled():
		p.code = 128 + int(ee.Sys().(syscall.WaitStatus).Signal())
	default:
		p.code = p.cmd.ProcessState.ExitCode()
	}
	close(p.done)
}

func (p *fakeProcess) output(fd int, b []byte) {
	if p.spec.Output != nil {
		p.spec.Output(fd, b)
	}
}

// stream is a pipe that can be emptied out of turn.
type stream struct {
	f *os.File
	c syscall.RawConn
}

func newStream(f *os.File) *stream {
	c, _ := f.SyscallConn() // fails for closed files only
	return &stream{f, c}
}

func (s *stream) pump(mu *sync.Mutex, give func([]byte)) {
	buf := make([]byte, 32<<10)
	for {
		// Wait for bytes without the lock, take them with it.
		n, eof := 0, false
		err := s.c.Read(func(fd uintptr) bool {
			mu.Lock()
			defer mu.Unlock()
			var err error
			n, err = syscall.Read(int(fd), buf)
			if err == syscall.EAGAIN || err == syscall.EINTR {
				return false
			}
			eof = n <= 0
			if !eof {
				give(buf[:n])
			}
			return true
		})
		if err != nil || eof {
			return
		}
	}
}

// empty delivers what was written so far; mu is held.
func (s *stream) empty(give func([]byte)) {
	buf := make([]byte, 32<<10)
	_ = s.c.Control(func(fd uintptr) {
		for {
			n, err := syscall.Read(int(fd), buf)
			if err == syscall.EINTR {
				continue
			}
			if n <= 0 {
				return
			}
			give(buf[:n])
		}
	})
}

func (p *fakeProcess) frames(out [2]*stream) {
	r := bufio.NewReader(p.sock)
	for {
		head, err := r.Peek(8)
		if err != nil {
			return
		}
		n, err := ctl.RunnerFrameLen(head)
		if err != nil {
			return
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(r, body); err != nil {
			return
		}
		p.deliver.Lock()
		for i, s := range out { // output written before the frame comes first
			s.empty(func(b []byte) { p.output(i+1, b) })
		}
		if p.spec.Frame != nil {
			p.spec.Frame(body)
		}
		p.deliver.Unlock()
	}
}

func (p *fakeProcess) PID() int { return p.cmd.Process.Pid }

func (p *fakeProcess) Send(body []byte) error {
	if p.sock == nil {
		return errors.New("send: process has no frames")
	}
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	if _, err := p.sock.Write(body); err != nil {
		return fmt.Errorf("send: %w: %w", runtime.ErrClosed, err)
	}
	return nil
}

func (p *fakeProcess) Signal(sig int, group bool) error {
	select {
	case <-p.done:
		return fmt.Errorf("signal process: %w", runtime.ErrClosed)
	default:
	}
	pid := p.cmd.Process.Pid
	if group {
		pid = -pid
	}
	if err := syscall.Kill(pid, syscall.Signal(sig)); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal process: %w", err)
	}
	return nil
}

func (p *fakeProcess) Done() <-chan struct{} { return p.done }
func (p *fakeProcess) ExitCode() int         { return p.code }

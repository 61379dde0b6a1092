package gpu

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// process is one run of the helper.
type process struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	gone chan struct{} // closed when its output ended

	mu   sync.Mutex
	next uint64
	wait map[uint64]chan Reply
}

func startProcess(argv []string, log *slog.Logger, changed func()) (*process, error) {
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), gone: make(chan struct{}), wait: map[uint64]chan Reply{}}
	// An own group: a Ctrl-C at the terminal is for the node to handle.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stderr = &logWriter{log: log}
	p.cmd.WaitDelay = time.Second
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.in = in
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start GPU helper: %w", err)
	}
	go p.read(out, log, changed)
	return p, nil
}

func (p *process) read(out io.Reader, log *slog.Logger, changed func()) {
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, MaxLine)
	for sc.Scan() {
		var r Reply
		if err := json.Unmarshal(sc.Bytes(), &r); err != nil {
			log.Warn("GPU helper's answer", "err", err)
			break
		}
		if r.ID == 0 {
			changed()
			continue
		}
		p.mu.Lock()
		c := p.wait[r.ID]
		delete(p.wait, r.ID)
		p.mu.Unlock()
		if c != nil {
			c <- r
		}
	}
	close(p.gone)
	p.kill()
	// A process in the middle of a driver call may not die at once; nobody
	// waits for it but this goroutine.
	_ = p.cmd.Wait()
}

// ask makes one request.
func (p *process) ask(req Request, limit time.Duration) (Reply, error) {
	c := make(chan Reply, 1)
	p.mu.Lock()
	p.next++
	req.ID = p.next
	p.wait[req.ID] = c
	p.mu.Unlock()
	b, err := json.Marshal(req)
	if err != nil {
		return Reply{}, err
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	sent := make(chan error, 1)
	go func() { // a helper that hangs may not read
		_, err := p.in.Write(append(b, '\n'))
		sent <- err
	}()
	for {
		select {
		case err := <-sent:
			if err != nil {
				return Reply{}, fmt.Errorf("write to GPU helper: %w", err)
			}
			sent = nil
		case r := <-c:
			return r, nil
		case <-p.gone:
			return Reply{}, errors.New("GPU helper ended in the middle of a request")
		case <-t.C:
			return Reply{}, fmt.Errorf("GPU helper gave no answer to %s in %s", req.Op, limit)
		}
	}
}

func (p *process) kill() {
	p.in.Close()
	_ = p.cmd.Process.Kill()
}

// logWriter passes what the helper complains about on, bounded per write.
type logWriter struct{ log *slog.Logger }

func (w *logWriter) Write(b []byte) (int, error) {
	w.log.Warn("GPU helper says", "text", string(b[:min(len(b), 1024)]))
	return len(b), nil
}

package containerd

import (
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// consoleBytes is how much of init's own output is kept, to say why it ended.
const consoleBytes = 8 << 10

// console keeps the end of what init writes to its standard output and error.
// Processes in the container have pipes of their own and do not write here.
type console struct {
	path string
	pipe *os.File
	done chan struct{}

	mu   sync.Mutex
	tail []byte
}

func newConsole(path string) (*console, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	// Open for both: reading does not end while no writer is there yet.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	c := &console{path: path, pipe: f, done: make(chan struct{})}
	go c.read()
	return c, nil
}

func (c *console) read() {
	defer close(c.done)
	buf := make([]byte, 4096)
	for {
		n, err := c.pipe.Read(buf)
		if err != nil {
			return
		}
		c.mu.Lock()
		c.tail = append(c.tail, buf[:n]...)
		if over := len(c.tail) - consoleBytes; over > 0 {
			c.tail = append(c.tail[:0], c.tail[over:]...)
		}
		c.mu.Unlock()
	}
}

// last is what was written, after the writer has ended.
func (c *console) last() string {
	// Nobody says when the pipe is empty; what a dead writer left is there now.
	_ = c.pipe.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.TrimSpace(string(c.tail))
}

func (c *console) close() {
	c.pipe.Close()
	<-c.done
}

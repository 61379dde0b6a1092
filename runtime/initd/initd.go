// Package initd is PID 1 of every container: it starts processes when the node
// asks, passes their output and runner frames on, reaps whatever dies, and
// ends everything when the node says so or is gone for too long.
//
// It is a static program of its own (initd/cmd) that knows nothing of the
// mesh and holds no credential of the node: it dials /run/beam/ctl.sock (see
// runtime/ctl for the protocol) and joins the container's 127.0.0.1:1993 and
// :1994 to /run/beam/api.sock, so that clients inside need no hole in the
// network.
//
//	os.Exit(initd.Run(initd.Config{}, log))
//
// Per process: one reader per stream, at most ctl.Window of unacknowledged
// bytes. All reaping is done by one loop, because a second waiter
// (os/exec) beside it loses exit statuses.
package initd

import (
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/runtime/ctl"
)

// Exit codes of init itself.
const (
	ExitShutdown = 0
	ExitOwnerGap = 70 // the node was gone for longer than Config.Gap
	ExitBroken   = 71 // the machine denies something that init cannot do without
)

const (
	// flushTime bounds how long the last output may take to reach the node
	// after the last process has ended.
	flushTime = 5 * time.Second
	// termGrace is used when the signal TERM, and not the node, ends init.
	termGrace = 10 * time.Second
)

// Config of an init. The zero value is what a container runs with.
type Config struct {
	Ctl   string        // "" = /run/beam/ctl.sock
	API   string        // "" = /run/beam/api.sock
	Proxy []string      // addresses joined to API; nil = 127.0.0.1:1993 and :1994
	Gap   time.Duration // 0 = 60 s without a node, then everything ends
}

func (c Config) withDefaults() Config {
	if c.Ctl == "" {
		c.Ctl = "/run/beam/" + ctl.SocketName
	}
	if c.API == "" {
		c.API = "/run/beam/api.sock"
	}
	if c.Proxy == nil {
		c.Proxy = []string{"127.0.0.1:1993", "127.0.0.1:1994"}
	}
	if c.Gap == 0 {
		c.Gap = 60 * time.Second
	}
	return c
}

// state is everything that init knows.
type state struct {
	cfg  Config
	log  *slog.Logger
	link *link
	pid1 bool

	stop    sync.Once
	stopped chan struct{} // closed when init may exit

	// mu also covers fork + registration as one step: the reaper takes it
	// before it waits, so it never meets a child that it does not know.
	mu      sync.Mutex
	procs   map[uint32]*proc // until the node has acknowledged the end
	byPID   map[int]*proc    // until reaped
	closing bool
	change  chan struct{} // capacity 1: procs or byPID shrank
}

// Run is the whole program; it returns the exit code.
func Run(cfg Config, log *slog.Logger) int {
	cfg = cfg.withDefaults()
	st := &state{cfg: cfg, log: log, pid1: os.Getpid() == 1, stopped: make(chan struct{}),
		procs: map[uint32]*proc{}, byPID: map[int]*proc{}, change: make(chan struct{}, 1)}
	st.link = newLink(cfg.Ctl, st)
	// User code runs as the same user: without this it could read the
	// reconnect secret from our memory.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		log.Error("hide own memory", "err", err)
		return ExitBroken
	}
	if !st.pid1 { // tried out as an ordinary process: orphans still come to us
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			log.Error("become subreaper", "err", err)
			return ExitBroken
		}
	}
	if err := loopbackUp(); err != nil {
		log.Warn("bring up loopback", "err", err)
	}
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, syscall.SIGCHLD)
	go st.reap(chld)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-term
		st.shutdown(termGrace)
	}()
	for _, addr := range cfg.Proxy {
		if err := serveProxy(addr, cfg.API, log); err != nil {
			log.Warn("join to the node's API", "addr", addr, "err", err)
		}
	}
	gone := make(chan struct{})
	go func() {
		st.link.run()
		close(gone)
	}()
	select {
	case <-st.stopped:
		return ExitShutdown
	case <-gone:
	}
	select {
	case <-st.stopped: // the node hung up because we said goodbye
		return ExitShutdown
	default:
	}
	log.Error("node is gone, end everything", "after", cfg.Gap)
	st.shutdown(0)
	return ExitOwnerGap
}

// shutdown ends all processes and then lets Run return. Only the first call
// counts; others wait for it.
func (st *state) shutdown(grace time.Duration) {
	st.stop.Do(func() {
		st.mu.Lock()
		st.closing = true
		st.mu.Unlock()
		if grace > 0 {
			st.signalAll(syscall.SIGTERM)
			st.await(grace, func() bool { return len(st.byPID) == 0 })
		}
		st.signalAll(syscall.SIGKILL)
		st.await(flushTime, func() bool { return len(st.byPID) == 0 })
		if st.link.connected() {
			st.await(flushTime, func() bool { return len(st.procs) == 0 })
		}
		st.link.send(&ctl.Message{Type: ctl.Bye}, nil)
		close(st.stopped)
	})
}

// signalAll reaches every process of the container, also those that left
// their group. Outside of a container only our own groups.
func (st *state) signalAll(sig syscall.Signal) {
	if st.pid1 {
		_ = syscall.Kill(-1, sig)
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	for pid := range st.byPID {
		_ = syscall.Kill(-pid, sig)
	}
}

// await waits until ok, which runs with mu held, or the time is over.
func (st *state) await(limit time.Duration, ok func() bool) {
	t := time.NewTimer(limit)
	defer t.Stop()
	for {
		st.mu.Lock()
		is := ok()
		st.mu.Unlock()
		if is {
			return
		}
		select {
		case <-st.change:
		case <-t.C:
			return
		}
	}
}

func (st *state) changed() { poke(st.change) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Package doctor tries each thing that a node needs of its machine and says
// what mends what does not work: `beam node doctor`.
//
//	checks := doctor.Run(ctx, doctor.Config{DataDir: dir, Listen: addrs}, func(c doctor.Check) { print(c) })
//
// Every probe really does the thing (mounts an overlay, idmaps a mount, limits
// a cgroup, forwards a packet) instead of reading a version number. Probes run
// one after another, each within Config.Timeout, and leave nothing behind, not
// even when the process is killed: mounts are made in a mount namespace that
// ends with the probe's thread, network namespaces end with a child that ends
// with us, and cgroups bear the name of a process so that the next run removes
// those of dead ones.
package doctor

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// State is the end of one check.
type State string

// The states of a check.
const (
	OK   State = "ok"
	Warn State = "warn" // works, but worse than it could
	Fail State = "fail"
	Skip State = "skip" // could not be tried here
)

// Check is the result of one probe.
type Check struct {
	Name   string        `json:"name"`
	State  State         `json:"state"`
	OK     bool          `json:"ok"` // State is ok or warn
	Detail string        `json:"detail,omitempty"`
	Fix    string        `json:"fix,omitempty"` // a command or a setting
	Took   time.Duration `json:"-"`
}

// Config says what to look at. Zero fields take the default.
type Config struct {
	DataDir string // probes of disk and mounts work in it; it is made when missing
	// Listen are the addresses the node will take ("host:port"), TCP and, for
	// those in ListenUDP, UDP.
	Listen, ListenUDP []string
	// Running tells that the node itself runs, so its ports are taken rightly.
	Running bool
	// Skews are clock differences to peers, theirs minus ours.
	Skews map[string]time.Duration
	// Resolve is a name to look up; any answer of the resolver is good.
	// Default "example.com".
	Resolve string
	Timeout time.Duration // of one probe; 0 = 15 s
}

// probe does one thing. It returns what happened and obeys ctx.
type probe struct {
	name string
	root bool // only root can try it
	run  func(context.Context, Config) Check
}

var probes = []probe{
	{"data directory", false, dataDir},
	{"free space", false, freeSpace},
	{"disk sync", false, diskSync},
	{"namespaces", true, namespaces},
	{"overlay mount", true, overlay},
	{"user namespaces", true, userNamespaces},
	{"idmapped mounts", true, idmapped},
	{"cgroups", true, cgroups},
	{"fuse", true, fuse},
	{"udp", false, udp},
	{"dns", false, dns},
	{"forwarding", true, forwarding},
	{"ports", false, ports},
	{"clock", false, clock},
	{"gpu driver", false, gpu},
}

// Run runs all probes and gives each result to report (may be nil) when it is
// known, from one goroutine. It ends early only when ctx does.
func Run(ctx context.Context, c Config, report func(Check)) []Check {
	if c.Timeout == 0 {
		c.Timeout = 15 * time.Second
	}
	if c.Resolve == "" {
		c.Resolve = "example.com"
	}
	var out []Check
	for _, p := range probes {
		if ctx.Err() != nil {
			break
		}
		r := runOne(ctx, c, p)
		out = append(out, r)
		if report != nil {
			report(r)
		}
	}
	return out
}

func runOne(ctx context.Context, c Config, p probe) Check {
	begin := time.Now()
	r := Check{State: Skip, Detail: "only root can try it", Fix: "sudo beam node doctor"}
	if !p.root || os.Geteuid() == 0 {
		pctx, cancel := context.WithTimeout(ctx, c.Timeout)
		defer cancel()
		done := make(chan Check, 1)
		go func() { done <- p.run(pctx, c) }()
		select {
		case r = <-done:
		case <-pctx.Done():
			// A probe that hangs in the kernel (a dead network disk) keeps its
			// thread until that returns.
			r = fail("", "took longer than %s", c.Timeout)
		}
	}
	r.Name, r.Took = p.name, time.Since(begin)
	r.OK = r.State == OK || r.State == Warn
	return r
}

func ok(format string, args ...any) Check {
	return Check{State: OK, Detail: fmt.Sprintf(format, args...)}
}

func warn(fix, format string, args ...any) Check {
	return Check{State: Warn, Fix: fix, Detail: fmt.Sprintf(format, args...)}
}

func fail(fix, format string, args ...any) Check {
	return Check{State: Fail, Fix: fix, Detail: fmt.Sprintf(format, args...)}
}

func skip(format string, args ...any) Check {
	return Check{State: Skip, Detail: fmt.Sprintf(format, args...)}
}

// onThread runs fn on a thread that ends afterwards, with a mount namespace of
// its own: whatever fn mounts is seen by nobody and gone with the thread.
func onThread(fn func() Check) Check {
	out := make(chan Check, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			out <- fail("a container or a security module forbids it: run the node on the machine itself", "no mount namespace: %v", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			out <- fail("", "cannot make mounts private: %v", err)
			return
		}
		out <- fn()
	}()
	return <-out
}

// workDir makes a folder in the data directory for one probe.
func workDir(c Config) (dir string, remove func(), err error) {
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return "", nil, err
	}
	dir, err = os.MkdirTemp(c.DataDir, ".doctor-")
	if err != nil {
		return "", nil, err
	}
	return dir, func() { _ = os.RemoveAll(dir) }, nil
}

// Package cgroup sets and reads the limits of containers, on cgroup v1 and v2
// behind one contract.
//
//	h, err := cgroup.Detect()
//	g := h.Group("/beam/abc")
//	g.Set(cgroup.Limits{CPUMillis: 500, MemoryBytes: 64 << 20, PIDs: 128})
//	u, err := g.Usage()
//	oom, err := g.WatchOOM(ctx) // closed when the kernel has killed a process
//	g.Kill(ctx); g.Remove(ctx)
//
// Groups are made by runc (or by Make); this package finds them again by path.
// On v1 a group is a folder in each controller's hierarchy. Safe for
// concurrent use.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of a group; a zero field stays as it is.
type Limits struct {
	CPUMillis   int64 // thousandths of a core
	MemoryBytes int64
	PIDs        int64
}

// Usage is what a group has consumed.
type Usage struct {
	CPU         time.Duration
	MemoryBytes int64
	OOMKills    int64
	PIDs        int64
}

// Period is the kernel's default accounting period of the CPU quota. Half of
// it would halve the longest stall but double the switches.
const Period = 100 * time.Millisecond

// Hierarchy is how cgroups are mounted on this machine.
type Hierarchy struct {
	unified string            // mount point of v2 when it holds the controllers, else ""
	v1      map[string]string // controller or "name=…" → mount point
	roots   []string          // every mount point, each once
}

// Detect reads how cgroups are mounted.
func Detect() (*Hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	defer f.Close()
	h := &Hierarchy{v1: map[string]string{}}
	var v2 string
	for s := bufio.NewScanner(f); s.Scan(); {
		left, right, ok := strings.Cut(s.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 {
			continue
		}
		switch r[0] {
		case "cgroup2":
			v2 = l[4]
			h.roots = append(h.roots, l[4])
		case "cgroup":
			h.roots = append(h.roots, l[4])
			for c := range strings.SplitSeq(r[2], ",") {
				h.v1[c] = l[4]
			}
		}
	}
	slices.Sort(h.roots)
	h.roots = slices.Compact(h.roots)
	if h.v1["memory"] == "" && v2 != "" {
		h.unified = v2
	}
	if h.unified == "" {
		for _, c := range []string{"cpu", "memory", "pids"} {
			if h.v1[c] == "" {
				return nil, fmt.Errorf("find cgroups: controller %s is not mounted: %w", c, fs.ErrNotExist)
			}
		}
	}
	return h, nil
}

// Version is 1 or 2.
func (h *Hierarchy) Version() int {
	if h.unified != "" {
		return 2
	}
	return 1
}

// Group is the group at path, an absolute path as runc's cgroupsPath.
func (h *Hierarchy) Group(path string) *Group {
	return &Group{h: h, path: filepath.Clean("/" + path)}
}

// Group is one cgroup.
type Group struct {
	h    *Hierarchy
	path string
}

func (g *Group) dir(controller string) string {
	if g.h.unified != "" {
		return filepath.Join(g.h.unified, g.path)
	}
	return filepath.Join(g.h.v1[controller], g.path)
}

// dirs are the group's folders in all hierarchies, whether they exist or not.
func (g *Group) dirs() []string {
	out := make([]string, len(g.h.roots))
	for i, r := range g.h.roots {
		out[i] = filepath.Join(r, g.path)
	}
	return out
}

// Exists reports whether the group exists in any hierarchy.
func (g *Group) Exists() bool {
	return slices.ContainsFunc(g.dirs(), func(d string) bool { _, err := os.Stat(d); return err == nil })
}

// Children are the names of the groups directly below.
func (g *Group) Children() []string {
	var out []string
	for _, d := range g.dirs() {
		l, _ := os.ReadDir(d) // absent in this hierarchy
		for _, e := range l {
			if e.IsDir() {
				out = append(out, e.Name())
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Child is a group directly below.
func (g *Group) Child(name string) *Group { return g.h.Group(filepath.Join(g.path, name)) }

// pids are the processes of the group and of all below it.
func (g *Group) pids() ([]int, error) {
	var out []int
	for _, d := range g.dirs() {
		err := filepath.WalkDir(d, func(p string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !e.IsDir() {
				return err
			}
			b, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil // removed meanwhile
			}
			for f := range strings.FieldsSeq(string(b)) {
				if n, aerr := strconv.Atoi(f); aerr == nil && n > 0 {
					out = append(out, n)
				}
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", g.path, err)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// Kill ends every process in the group and below, and returns when none is left.
func (g *Group) Kill(ctx context.Context) error {
	for {
		l, err := g.pids()
		if err != nil || len(l) == 0 {
			return err
		}
		var fds []unix.PollFd
		for _, pid := range l {
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue // ended meanwhile
			}
			fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		for i := range fds {
			// A process blocked in the kernel may take its time; look again
			// at what the group holds after a second at the latest.
			_, _ = unix.Poll(fds[i:i+1], 1000)
		}
		for _, f := range fds {
			unix.Close(int(f.Fd))
		}
		if ctx.Err() != nil {
			return fmt.Errorf("kill cgroup %s: %d processes left: %w", g.path, len(l), ctx.Err())
		}
		if len(fds) == 0 { // only zombies that their parent has not reaped
			if err := pause(ctx); err != nil {
				return fmt.Errorf("kill cgroup %s: %w", g.path, err)
			}
		}
	}
}

// Remove removes the group and all below it. Its processes must have ended.
func (g *Group) Remove(ctx context.Context) error {
	for _, d := range g.dirs() {
		for {
			err := removeTree(d)
			if err == nil {
				break
			}
			// The kernel lets go of a group a moment after its last process
			// was reaped and, on v1, tells nobody.
			if !errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("remove cgroup: %w", err)
			}
			if perr := pause(ctx); perr != nil {
				return fmt.Errorf("remove cgroup: %w", err)
			}
		}
	}
	return nil
}

// pause waits the few milliseconds for which the kernel offers no event.
func pause(ctx context.Context) error {
	select {
	case <-time.After(5 * time.Millisecond):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func removeTree(dir string) error {
	l, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range l {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// Make creates the group in every hierarchy, for use without runc.
func (g *Group) Make() error {
	for _, d := range g.dirs() {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	return nil
}

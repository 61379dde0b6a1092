package dev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/proto/fault"
)

// DownOptions say how to end a mesh.
type DownOptions struct {
	Root string // "" = DefaultRoot
	// Now skips asking the nodes to drain.
	Now bool
	// KeepData leaves the nodes' folders where they are.
	KeepData bool
	// Sweep is called for each node after its processes have ended; may be nil.
	Sweep Sweep
}

// drainTime is how long a node that was asked to end may take; then it is killed.
const drainTime = 15 * time.Second

// Down ends the mesh at o.Root and removes everything of it from the machine.
// No mesh is no error. It may be called again after it failed or was killed.
func Down(ctx context.Context, o DownOptions, ui UI) error {
	if o.Root == "" {
		o.Root = DefaultRoot
	}
	var err error
	if o.Root, err = filepath.Abs(o.Root); err != nil {
		return fault.Wrap(fault.Invalid, err, "folder "+o.Root, "")
	}
	if _, err := os.Stat(o.Root); errors.Is(err, os.ErrNotExist) {
		ui.say("no dev mesh is up")
		return nil
	}
	if err := checkHost(); err != nil {
		return err
	}
	unlock, err := lockRoot(o.Root)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := Load(o.Root)
	if fault.CodeOf(err) == fault.NotFound {
		removeRoot(o.Root) // an Up that was killed before it made anything
		ui.say("no dev mesh is up")
		return nil
	}
	if err != nil {
		return err
	}
	return m.remove(ctx, o, ui)
}

// remove works through everything the state names; the state file goes last.
func (m *Mesh) remove(ctx context.Context, o DownOptions, ui UI) error {
	if !o.Now {
		m.drain(ctx, ui)
	}
	if err := m.killAll(ctx); err != nil {
		return fault.Wrap(fault.Internal, err, "end the dev mesh's processes", "")
	}
	var errs []error
	if o.Sweep != nil {
		for _, n := range m.Nodes {
			if _, err := os.Stat(n.Dir); err == nil {
				if err := o.Sweep(n.Dir); err != nil {
					errs = append(errs, fmt.Errorf("sweep %s: %w", n.Name, err))
				}
			}
		}
	}
	errs = append(errs, unmountBelow(m.Root), m.removeNetwork(ctx))
	for _, n := range m.Nodes {
		errs = append(errs, removeCgroup(ctx, n.Cgroup))
	}
	errs = append(errs, removeCgroup(ctx, filepath.Join("/beam-dev", m.Name)))
	for _, h := range hierarchies() {
		_ = unix.Rmdir(filepath.Join(h, "beam-dev")) // stays while another mesh is in it
	}
	if err := errors.Join(errs...); err != nil {
		return fault.Wrap(fault.Internal, err, "remove the dev mesh", "'beam dev down' tries again")
	}
	if !o.KeepData {
		for _, n := range m.Nodes {
			errs = append(errs, os.RemoveAll(n.Dir), os.RemoveAll(n.Log))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fault.Wrap(fault.Internal, err, "remove the dev mesh's folders", "'beam dev down' tries again")
	}
	if err := errors.Join(os.Remove(statePath(m.Root)), os.RemoveAll(statePath(m.Root)+".new")); err != nil {
		return fault.Wrap(fault.Internal, err, "remove the dev mesh's state", "")
	}
	removeRoot(m.Root)
	ui.say("the dev mesh is gone: processes, namespaces, links, rules, cgroups, mounts, folders")
	return nil
}

// drain asks all nodes to end and waits for them.
func (m *Mesh) drain(ctx context.Context, ui UI) {
	var wg sync.WaitGroup
	for _, n := range m.Nodes {
		if !n.Alive() {
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			_ = signalAndWait(ctx, n.PID, n.Start, unix.SIGTERM, drainTime) // killAll is next
		}()
	}
	ui.say("asking %d nodes to end", len(m.Nodes))
	wg.Wait()
}

// killAll kills what is left, by every mark that a process of a node bears,
// again until there is none: a dying process may have forked.
func (m *Mesh) killAll(ctx context.Context) error {
	for range 20 {
		left := m.processes()
		if len(left) == 0 {
			return nil
		}
		var wg sync.WaitGroup
		for pid, start := range left {
			wg.Add(1)
			go func() {
				defer wg.Done()
				_ = signalAndWait(ctx, pid, start, unix.SIGKILL, 10*time.Second) // counted again below
			}()
		}
		wg.Wait()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return fmt.Errorf("processes %v do not end", m.processes())
}

// processes finds the live processes of all nodes: pid → start time.
func (m *Mesh) processes() map[int]uint64 {
	found := map[int]uint64{}
	add := func(list []int) {
		for _, pid := range list {
			if t := startTime(pid); t != 0 && pid != os.Getpid() {
				found[pid] = t
			}
		}
	}
	var namespaces []string
	for _, n := range m.Nodes {
		if n.Alive() {
			found[n.PID] = n.Start
		}
		namespaces = append(namespaces, n.NetNS)
		add(inCgroup(n.Cgroup))
		add(withRootBelow(n.Dir))
	}
	add(inNetNS(namespaces))
	return found
}

// unmountBelow detaches every mount below dir, last one first.
func unmountBelow(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	mounts := parseMounts(string(b))
	for i := len(mounts) - 1; i >= 0; i-- {
		if p := mounts[i].point; strings.HasPrefix(p, dir+"/") {
			if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
			}
		}
	}
	return errors.Join(errs...)
}

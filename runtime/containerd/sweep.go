package containerd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/runtime/cgroup"
	"github.com/beammesh/beammesh/runtime/network"
)

// Sweep ends the containers that keep does not name and removes what failed
// removals left.
func (e *Engine) Sweep(ctx context.Context, keep []string) error {
	ctx, leave, err := e.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	errs := []error{e.stopAll(ctx, keep)}
	parent := e.cgroups.Group(e.cfg.CgroupParent)
	left := parent.Children()
	entries, err := os.ReadDir(e.cfg.containers())
	errs = append(errs, err)
	for _, d := range entries {
		left = append(left, d.Name())
	}
	slices.Sort(left)
	for _, id := range slices.Compact(left) {
		e.mu.Lock()
		_, live := e.containers[id]
		e.mu.Unlock()
		if live {
			continue
		}
		g := parent.Child(id)
		errs = append(errs, g.Kill(ctx), g.Remove(ctx), removeContainerFiles(&e.cfg, id))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep containers: %w", err)
	}
	return nil
}

// Sweep removes everything of an engine that does not run any more, layers
// excepted. Of cfg only Root, State, Name and CgroupParent are used. It refuses
// while an engine runs on the same Root.
func Sweep(ctx context.Context, cfg Config) error {
	if err := cfg.nameDefaults(); err != nil {
		return err
	}
	if _, err := os.Stat(cfg.Root); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	lock, err := takeLock(&cfg)
	if err != nil {
		return err
	}
	defer lock.Close()
	h, err := cgroup.Detect()
	if err != nil {
		return err
	}
	return sweepMachine(ctx, &cfg, h)
}

// sweepMachine removes processes, then mounts, then the rest. The lock is held.
func sweepMachine(ctx context.Context, c *Config, h *cgroup.Hierarchy) error {
	group := h.Group(c.CgroupParent)
	// The shims first: they would report, and with the node gone, linger.
	errs := []error{killHelpers(ctx, c), group.Kill(ctx), group.Remove(ctx)}
	errs = append(errs, network.Sweep(c.Name), unmountBelow(c.State), unmountBelow(c.Root))
	if err := errors.Join(errs...); err != nil {
		// Removing files now could reach into something that is still mounted.
		return fmt.Errorf("sweep: %w", err)
	}
	entries, err := os.ReadDir(c.State)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("sweep: %w", err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(c.State, e.Name())); err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
	}
	if err := os.RemoveAll(c.disks()); err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	tmp, _ := filepath.Glob(filepath.Join(c.layers(), "mnt-*")) // the pattern is good
	for _, d := range tmp {
		_ = os.Remove(d)
	}
	return nil
}

// helpers are the programs that work for us outside of containers' cgroups.
var helpers = []string{"mkfs.ext4", "mke2fs"}

// killHelpers ends shims, runc and mkfs of this engine. They are told from
// others by their program and by an argument below State or Root.
func killHelpers(ctx context.Context, c *Config) error {
	names := append([]string{filepath.Base(c.ShimPath), filepath.Base(c.RuncPath), "containerd-shim-runc-v2", "runc"}, helpers...)
	for {
		fds, err := openHelpers(c, names)
		if err != nil || len(fds) == 0 {
			return err
		}
		for _, fd := range fds {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		for _, fd := range fds {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000)
			unix.Close(fd)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("end helpers of containers: %w", ctx.Err())
		}
	}
}

func openHelpers(c *Config, names []string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		// Looked at after the descriptor is held: the id is not reused now.
		b, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if isHelper(strings.Split(string(b), "\x00"), names, c.State, c.Root) {
			fds = append(fds, fd)
		} else {
			unix.Close(fd)
		}
	}
	return fds, nil
}

func isHelper(args, names []string, folders ...string) bool {
	if len(args) == 0 || !slices.Contains(names, filepath.Base(args[0])) {
		return false
	}
	for _, a := range args[1:] {
		for _, f := range folders {
			if strings.HasPrefix(a, f+"/") {
				return true
			}
		}
	}
	return false
}

// mountsBelow lists mount points in a folder, the deepest and latest first.
func mountsBelow(dir string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 5 {
			continue
		}
		// Folders of ours need no escapes, and others are none of our business.
		if strings.HasPrefix(f[4], filepath.Clean(dir)+"/") {
			out = append(out, f[4])
		}
	}
	slices.Reverse(out)
	return out, nil
}

func unmountBelow(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range points {
		errs = append(errs, unmount(p))
	}
	return errors.Join(errs...)
}

// removeContainerFiles removes a container's mounts and folders, containerd's
// and runc's own included.
func removeContainerFiles(c *Config, id string) error {
	bundle := filepath.Join(c.daemonState(), "io.containerd.runtime.v2.task", ctrdNamespace, id)
	dirs := []string{c.container(id), bundle}
	for _, d := range dirs {
		if err := unmountBelow(d); err != nil {
			return err
		}
	}
	dirs = append(dirs, filepath.Join(c.daemonRoot(), "io.containerd.runtime.v2.task", ctrdNamespace, id),
		filepath.Join(c.runcRoot(), ctrdNamespace, id))
	var errs []error
	for _, d := range dirs {
		errs = append(errs, os.RemoveAll(d))
	}
	return errors.Join(errs...)
}

package dev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// unified tells whether cgroup v2 has everything.
func unified() bool {
	var st unix.Statfs_t
	return unix.Statfs(cgroupRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// hierarchies are the roots of all cgroup trees of this machine that may hold
// something of a node.
func hierarchies() []string {
	if unified() {
		return []string{cgroupRoot}
	}
	var out []string
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		p := filepath.Join(cgroupRoot, e.Name())
		if fi, err := os.Stat(p); err == nil && fi.IsDir() && e.Type()&fs.ModeSymlink == 0 {
			out = append(out, p)
		}
	}
	return out
}

// cpuDir is the folder of a group that limits CPU.
func cpuDir(group string) string {
	if unified() {
		return filepath.Join(cgroupRoot, group)
	}
	return filepath.Join(cgroupRoot, "cpu", group)
}

// makeCgroup makes a node's group in the CPU hierarchy and gives the files
// that a process enters it by. On v2 the node's own processes live in the leaf
// "node" of the group, because containers become its children.
func makeCgroup(group string) ([]string, error) {
	dir := cpuDir(group)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	if !unified() {
		return []string{filepath.Join(dir, "cgroup.procs")}, nil
	}
	// Each level above must pass its controllers on.
	at := cgroupRoot
	for _, part := range strings.Split(strings.Trim(group, "/"), "/") {
		if err := passControllers(at); err != nil {
			return nil, err
		}
		at = filepath.Join(at, part)
	}
	if err := passControllers(at); err != nil {
		return nil, err
	}
	leaf := filepath.Join(dir, "node")
	if err := os.MkdirAll(leaf, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	return []string{filepath.Join(leaf, "cgroup.procs")}, nil
}

func passControllers(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read cgroup controllers: %w", err)
	}
	for _, c := range strings.Fields(string(b)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644); err != nil && c == "cpu" {
			return fmt.Errorf("pass controller %s below %s: %w", c, dir, err)
		}
	}
	return nil
}

// period is the kernel's usual window of a CPU quota.
const period = 100 * time.Millisecond

// setQuota gives a group cores of CPU; 0 = no limit. On v1 no group may have a
// higher quota than one around it, so what runs in it now is lowered too, for
// the rest of its life.
func setQuota(group string, cores float64) error {
	dir, us := cpuDir(group), period.Microseconds()
	quota := int64(cores * float64(us))
	if cores > 0 {
		quota = max(quota, 1000) // the kernel's least
	}
	name, value := "cpu.cfs_quota_us", "-1"
	if unified() {
		name, value = "cpu.max", fmt.Sprint("max ", us)
	}
	if cores > 0 {
		value = strconv.FormatInt(quota, 10)
		if unified() {
			value = fmt.Sprint(quota, " ", us)
		}
	}
	if cores > 0 && !unified() {
		if err := lowerQuotas(dir, quota); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set CPU quota: %w", err)
	}
	return nil
}

// lowerQuotas brings every group below dir down to quota, the innermost first.
func lowerQuotas(dir string, quota int64) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("set CPU quota: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		below := filepath.Join(dir, e.Name())
		if err := lowerQuotas(below, quota); err != nil {
			return err
		}
		file := filepath.Join(below, "cpu.cfs_quota_us")
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it ended meanwhile
		}
		if now, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err != nil || now <= quota {
			continue // -1 = none of its own
		}
		if err := os.WriteFile(file, []byte(strconv.FormatInt(quota, 10)), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set CPU quota: %w", err)
		}
	}
	return nil
}

// inCgroup lists the processes in a group of any hierarchy or below it.
func inCgroup(group string) []int {
	var out []int
	for _, h := range hierarchies() {
		_ = filepath.WalkDir(filepath.Join(h, group), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "cgroup.procs" {
				return nil // groups vanish while we look
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return nil
			}
			for _, w := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(w); err == nil && pid > 0 {
					out = append(out, pid)
				}
			}
			return nil
		})
	}
	return out
}

// removeCgroup removes a group with all below it in every hierarchy. Its
// processes have been killed; the kernel frees a group a moment after the last
// of them, which no event tells, hence the few tries.
func removeCgroup(ctx context.Context, group string) error {
	var errs []error
	for _, h := range hierarchies() {
		dir := filepath.Join(h, group)
		var err error
		for try := range 100 {
			if err = rmdirAll(dir); err == nil {
				break
			}
			select {
			case <-time.After(time.Duration(min(try+1, 10)) * 5 * time.Millisecond):
			case <-ctx.Done():
				return errors.Join(append(errs, err)...)
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// rmdirAll removes a tree of cgroups, deepest first; their files cannot be
// unlinked and go with them.
func rmdirAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := rmdirAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}

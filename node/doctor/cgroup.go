package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// groupPrefix is followed by our pid, so that a later run knows whose it is.
const groupPrefix = "beam-doctor-"

// cgroups makes a group with limits of CPU, memory and processes, in whichever
// version the machine has.
func cgroups(_ context.Context, _ Config) Check {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return fail("mount -t cgroup2 none /sys/fs/cgroup", "no cgroups: %v", err)
	}
	v2 := st.Type == unix.CGROUP2_SUPER_MAGIC
	limits := []struct{ controller, file, value string }{
		{"cpu", "cpu.cfs_quota_us", "50000"}, {"memory", "memory.limit_in_bytes", "67108864"}, {"pids", "pids.max", "64"},
	}
	if v2 {
		limits[0].file, limits[0].value = "cpu.max", "50000 100000"
		limits[1].file = "memory.max"
	}
	const fix = "boot with systemd.unified_cgroup_hierarchy=1, or mount the missing controller below /sys/fs/cgroup"
	var bad []string
	for _, l := range limits {
		root := cgroupRoot
		if !v2 {
			root = filepath.Join(cgroupRoot, l.controller)
		}
		removeDead(root)
		if err := tryGroup(root, l.controller, l.file, l.value, v2); err != nil {
			bad = append(bad, fmt.Sprintf("%s: %v", l.controller, err))
		}
	}
	version := "v1"
	if v2 {
		version = "v2"
	}
	if len(bad) > 0 {
		return fail(fix, "cgroup %s: %s", version, strings.Join(bad, "; "))
	}
	return ok("%s: cpu, memory and pids can be limited", version)
}

func tryGroup(root, controller, file, value string, v2 bool) (err error) {
	if v2 {
		b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
		if err != nil {
			return err
		}
		if !strings.Contains(" "+strings.TrimSpace(string(b))+" ", " "+controller+" ") {
			return errors.New("the kernel does not offer this controller")
		}
		// A node passes its controllers on in the same way.
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+controller), 0o644); err != nil {
			return err
		}
	}
	dir := filepath.Join(root, groupPrefix+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Rmdir(dir)) }()
	if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0o644); err != nil {
		return err
	}
	got, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(got)) != value {
		return fmt.Errorf("the limit reads %q after writing %q", got, value)
	}
	return nil
}

// removeDead removes groups of doctors that were killed.
func removeDead(root string) {
	old, err := filepath.Glob(filepath.Join(root, groupPrefix+"*"))
	if err != nil {
		return
	}
	for _, d := range old {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(d), groupPrefix))
		if err == nil && (pid == os.Getpid() || unix.Kill(pid, 0) == unix.ESRCH) {
			_ = unix.Rmdir(d)
		}
	}
}

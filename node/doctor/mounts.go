package doctor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const kernelFix = "use a Linux kernel of 5.15 or later, on the machine itself rather than in a container"

// namespaces starts a process in all the namespaces a container has.
func namespaces(ctx context.Context, _ Config) Check {
	cmd := exec.CommandContext(ctx, "/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP,
		Pdeathsig:  unix.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		return fail(kernelFix, "a process with its own mounts, pids, names, IPC, network and cgroups cannot start: %v", err)
	}
	return ok("mount, pid, uts, ipc, net, cgroup")
}

// tree makes lower (with a file), upper, work and merged below dir.
func tree(dir string) error {
	for _, d := range []string{"lower", "upper", "work", "merged", "mapped"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "lower", "file"), []byte("lower"), 0o644)
}

// overlayOn mounts lower below upper and tries the mount.
func overlayOn(dir, lower string) error {
	at := func(name string) string { return filepath.Join(dir, name) }
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, at("upper"), at("work"))
	if err := unix.Mount("overlay", at("merged"), "overlay", 0, opts); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	defer func() { _ = unix.Unmount(at("merged"), unix.MNT_DETACH) }()
	if b, err := os.ReadFile(filepath.Join(at("merged"), "file")); err != nil || string(b) != "lower" {
		return fmt.Errorf("read through it: %q %w", b, err)
	}
	if err := os.Remove(filepath.Join(at("merged"), "file")); err != nil {
		return fmt.Errorf("remove through it: %w", err)
	}
	if _, err := os.Stat(filepath.Join(lower, "file")); err != nil {
		return fmt.Errorf("removing changed the layer below: %w", err)
	}
	return nil
}

func overlay(_ context.Context, c Config) Check {
	dir, remove, err := workDir(c)
	if err != nil {
		return fail("", "%v", err)
	}
	defer remove()
	if err := tree(dir); err != nil {
		return fail("", "%v", err)
	}
	return onThread(func() Check {
		if err := overlayOn(dir, filepath.Join(dir, "lower")); err != nil {
			return fail("modprobe overlay; the data directory must be on a local ext4 or xfs disk: --data DIR", "%v", err)
		}
		return ok("layers stack in %s", c.DataDir)
	})
}

// firstID is a user id that no system gives out.
const firstID = 1 << 30

// held is a child that keeps namespaces alive until release, or our end: it
// reads a pipe that only we hold open.
type held struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

func hold(attr *syscall.SysProcAttr) (*held, error) {
	cmd := exec.Command("/bin/cat")
	cmd.SysProcAttr = attr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &held{cmd, in}, nil
}

func (h *held) release() {
	_ = h.stdin.Close()
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait()
}

// holdUser makes a user namespace as containers get one.
func holdUser() (*held, error) {
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: firstID, Size: 65536}}
	return hold(&syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
	})
}

func userNamespaces(context.Context, Config) Check {
	h, err := holdUser()
	if err != nil {
		fix := "sysctl -w user.max_user_namespaces=65536"
		if b, rerr := os.ReadFile("/proc/sys/user/max_user_namespaces"); rerr == nil && string(b) != "0\n" {
			fix = kernelFix
		}
		return fail(fix, "a process with own users and network cannot start: %v", err)
	}
	defer h.release()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", h.cmd.Process.Pid))
	if err != nil {
		return fail(kernelFix, "%v", err)
	}
	var in, out, n int
	if _, err := fmt.Sscan(string(b), &in, &out, &n); err != nil || in != 0 || out != firstID || n != 65536 {
		return fail(kernelFix, "ids are mapped as %q", b)
	}
	return ok("65536 ids each")
}

// idmapped maps a layer's owners for a container without changing a file, and
// stacks an overlay on it, as every container start does.
func idmapped(_ context.Context, c Config) Check {
	h, err := holdUser()
	if err != nil {
		return skip("needs user namespaces")
	}
	defer h.release()
	dir, remove, err := workDir(c)
	if err != nil {
		return fail("", "%v", err)
	}
	defer remove()
	if err := tree(dir); err != nil {
		return fail("", "%v", err)
	}
	const fix = "use Linux 5.19 or later with the data directory on ext4, xfs or btrfs"
	return onThread(func() Check {
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", h.cmd.Process.Pid))
		if err != nil {
			return fail("", "%v", err)
		}
		defer func() { _ = ns.Close() }()
		fd, err := unix.OpenTree(unix.AT_FDCWD, filepath.Join(dir, "lower"), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fail(fix, "clone a mount: %v", err)
		}
		defer func() { _ = unix.Close(fd) }()
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fail(fix, "map owners of a mount: %v", err)
		}
		mapped := filepath.Join(dir, "mapped")
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, mapped, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fail(fix, "attach the mapped mount: %v", err)
		}
		defer func() { _ = unix.Unmount(mapped, unix.MNT_DETACH) }()
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(mapped, "file"), &st); err != nil || st.Uid != firstID {
			return fail(fix, "the file's owner shows as %d, want %d: %v", st.Uid, firstID, err)
		}
		if err := overlayOn(dir, mapped); err != nil {
			return fail(fix, "overlay on a mapped mount: %v", err)
		}
		return ok("owners of layers are mapped without a copy")
	})
}

// fuse mounts a file system of ours and reads the kernel's first request.
func fuse(_ context.Context, c Config) Check {
	const fix = "modprobe fuse"
	dir, remove, err := workDir(c)
	if err != nil {
		return fail("", "%v", err)
	}
	defer remove()
	return onThread(func() Check {
		fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fail(fix, "open /dev/fuse: %v", err)
		}
		defer func() { _ = unix.Close(fd) }()
		opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)
		if err := unix.Mount("beam-doctor", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
			return fail(fix, "mount: %v", err)
		}
		defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
		// The mount's first request, INIT (opcode 26), waits already.
		b := make([]byte, 1<<16)
		n, err := unix.Read(fd, b)
		if err != nil || n < 40 || binary.NativeEndian.Uint32(b[4:]) != 26 {
			return fail(fix, "the kernel does not talk to it: %d bytes, %v", n, errors.Join(err))
		}
		return ok("mounts and answers")
	})
}

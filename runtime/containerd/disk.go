package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/proto/fault"
)

// defaultDisk is what a container may write when nothing else is said.
const defaultDisk = 10 << 30

// minDisk is the smallest that mkfs makes with room for files in it.
const minDisk = 4 << 20

// mountDisk makes a filesystem of the given size for a writable layer, mounts
// it on target and gives it to the owner. It is a sparse file behind a loop
// device: it takes space as it is written, "no space left" comes from a real
// filesystem, df shows the truth, and it works on whatever the host has. The
// file's name is removed at once and the loop device frees itself with the
// mount, so unmounting is all the cleaning there is, also after a kill.
func mountDisk(ctx context.Context, disks, target string, size int64, owner uint32) error {
	f, err := os.CreateTemp(disks, "disk-")
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	defer f.Close()
	defer os.Remove(f.Name())
	size = max(size, minDisk)
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("make disk of %d bytes: %w", size, err)
	}
	// No journal: the disk does not outlive a crash. The inode tables are
	// zeroes already in a sparse file, so nobody needs to write them.
	mkfs, err := findMkfs()
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, mkfs, "-q", "-F", "-b", "4096", "-m", "0", "-i", "16384",
		"-O", "^has_journal,^resize_inode", "-E", "nodiscard,lazy_itable_init=1,root_owner=0:0", f.Name()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("make disk of %d bytes: mkfs.ext4: %w: %s", size, err, bytes.TrimSpace(out))
	}
	loop, err := attachLoop(f.Name())
	if errors.Is(err, os.ErrNotExist) {
		return fault.New(fault.Unsupported, "this machine has no loop devices: no writable disks for containers", "sudo modprobe loop")
	}
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	defer loop.Close() // the mount holds the device from here on
	if err := os.MkdirAll(target, 0o700); err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	if err := unix.Mount(loop.Name(), target, "ext4", unix.MS_NOATIME|unix.MS_NODEV, "noinit_itable"); err != nil {
		return fmt.Errorf("mount disk %s: %w", loop.Name(), err)
	}
	for _, d := range []string{"upper", "work"} {
		p := filepath.Join(target, d)
		if err := errors.Join(os.Mkdir(p, 0o755), os.Chmod(p, 0o755), os.Chown(p, int(owner), int(owner))); err != nil {
			return errors.Join(fmt.Errorf("make disk: %w", err), unmount(target))
		}
	}
	_ = os.Remove(filepath.Join(target, "lost+found")) // only fsck wants it
	return nil
}

// findMkfs looks where a PATH without sbin does not.
func findMkfs() (string, error) {
	for _, p := range []string{"mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"} {
		if found, err := exec.LookPath(p); err == nil {
			return found, nil
		}
	}
	return "", fault.New(fault.Unsupported, "mkfs.ext4 is not installed: no writable disks for containers", "sudo apt-get install -y e2fsprogs")
}

// attachLoop finds a free loop device. Without direct I/O every page would be
// cached twice, so it is asked for first; not all filesystems have it.
func attachLoop(image string) (*os.File, error) {
	loop, err := mount.SetupLoop(image, mount.LoopParams{Autoclear: true, Direct: true})
	if err != nil {
		loop, err = mount.SetupLoop(image, mount.LoopParams{Autoclear: true})
	}
	return loop, err
}

// unmount unmounts whatever is on target; no error if nothing is.
func unmount(target string) error {
	for {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue // something may lie below
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.EBUSY):
			// Somebody looks at it from outside; it goes when they leave.
			if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", target, err)
			}
		default:
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
}

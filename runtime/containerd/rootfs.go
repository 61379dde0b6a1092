package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/runtime/userns"
)

// mountRootfs puts a root filesystem together on target: the layers' folders
// (lower, topmost first, relative to layers) below the writable layer on disk. The layers belong to root on the host; through an idmapped mount they
// belong to root of the pair, without a copy or a chown.
func mountRootfs(p *userns.Pair, layers string, lower []string, disk, target string) error {
	mapped := target + ".lower"
	if err := errors.Join(os.MkdirAll(mapped, 0o700), os.MkdirAll(target, 0o711)); err != nil {
		return fmt.Errorf("make root filesystem: %w", err)
	}
	if err := p.Bind(layers, mapped, false); err != nil {
		return fmt.Errorf("make root filesystem: %w", err)
	}
	// The overlay keeps the layers by itself; the name is for mounting only.
	defer func() { _ = unix.Unmount(mapped, unix.MNT_DETACH); _ = os.Remove(mapped) }()

	// volatile: fsync inside returns at once, since the disk is scratch.
	opts := "index=off,metacopy=off,redirect_dir=off,volatile" +
		",upperdir=" + filepath.Join(disk, "upper") + ",workdir=" + filepath.Join(disk, "work") +
		",lowerdir=" + strings.Join(lower, ":") + ":" + skeletonName
	if len(opts) >= os.Getpagesize() {
		return fmt.Errorf("make root filesystem: %d layers are too many", len(lower))
	}
	errc := make(chan error, 1)
	go func() {
		// Paths are relative to keep hundreds of layers within the page that
		// mount takes. The thread gets a working directory of its own and
		// ends with the goroutine.
		goruntime.LockOSThread()
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Chdir(mapped)
		}
		if err == nil {
			err = unix.Mount("beam", target, "overlay", unix.MS_NODEV, opts)
		}
		errc <- err
	}()
	if err := <-errc; err != nil {
		return fmt.Errorf("mount root filesystem of %d layers: %w", len(lower), err)
	}
	return nil
}

// skeletonName is the folder beside the snapshots that lies below every root
// filesystem.
const skeletonName = "skeleton"

// makeSkeleton makes the folders and files that a container is mounted
// together from. With them at the very bottom runc finds each mount point, and
// none of them turns up among the container's changes.
func makeSkeleton(dir string) error {
	for _, d := range []string{"", "dev", "etc", "proc", "run", runTarget, "sys", "tmp", filepath.Dir(initTarget)} {
		p := filepath.Join(dir, d)
		if err := errors.Join(os.MkdirAll(p, 0o755), os.Chmod(p, 0o755)); err != nil {
			return fmt.Errorf("make skeleton: %w", err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky); err != nil {
		return fmt.Errorf("make skeleton: %w", err)
	}
	for _, f := range []string{"etc/hosts", "etc/hostname", "etc/resolv.conf", initTarget} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
			return fmt.Errorf("make skeleton: %w", err)
		}
	}
	return nil
}

package containerd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/runtime/userns"
)

// mountRootfs puts a root filesystem together on target: the layers' folders
// (lower, topmost first, relative to snapshots) below the writable layer on
// disk. The layers belong to root on the host; through an idmapped mount they
// belong to root of the pair, without a copy or a chown.
func mountRootfs(p *userns.Pair, snapshots string, lower []string, disk, target string) error {
	mapped := target + ".lower"
	if err := errors.Join(os.MkdirAll(mapped, 0o700), os.MkdirAll(target, 0o711)); err != nil {
		return fmt.Errorf("make root filesystem: %w", err)
	}
	if err := p.Bind(snapshots, mapped, false); err != nil {
		return fmt.Errorf("make root filesystem: %w", err)
	}
	// The overlay keeps the layers by itself; the name is for mounting only.
	defer func() { _ = unix.Unmount(mapped, unix.MNT_DETACH); _ = os.Remove(mapped) }()

	// volatile: fsync inside returns at once, since the disk is scratch.
	opts := "index=off,metacopy=off,redirect_dir=off,volatile" +
		",upperdir=" + filepath.Join(disk, "upper") + ",workdir=" + filepath.Join(disk, "work") +
		",lowerdir=" + strings.Join(lower, ":")
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
	if err := addTmp(target, p.First); err != nil {
		return errors.Join(fmt.Errorf("make root filesystem: %w", err), unmount(target))
	}
	return nil
}

// addTmp makes sure of /tmp, which small images lack. The image is not
// trusted: os.Root follows none of its links out of it.
func addTmp(rootfs string, owner uint32) error {
	r, err := os.OpenRoot(rootfs)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := r.Lstat("tmp"); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(r.Mkdir("tmp", 0o700), r.Lchown("tmp", int(owner), int(owner)), r.Chmod("tmp", 0o777|os.ModeSticky))
}

package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/gpu"
)

// Mounts that exist on the host while runc makes the container, for it to
// mount from: host files under the container's ids, and device nodes that its
// root may open.

// mapMounts makes idmapped copies of the caller's mounts, so that files of the
// host's root belong to the container's root. A filesystem that cannot do that
// is mounted as it is; its files then belong to nobody.
func (c *container) mapMounts() ([]runtime.Mount, error) {
	var out []runtime.Mount
	for i, m := range c.spec.Mounts {
		fi, err := os.Stat(m.Source)
		if err != nil {
			return nil, fmt.Errorf("mount on %s: %w", m.Target, err)
		}
		target := filepath.Join(c.dir, fmt.Sprintf("mount-%d", i))
		if fi.IsDir() {
			err = os.Mkdir(target, 0o711)
		} else {
			err = os.WriteFile(target, nil, 0o600)
		}
		if err != nil {
			return nil, fmt.Errorf("mount on %s: %w", m.Target, err)
		}
		c.sources = append(c.sources, target)
		if err := c.slot.pair.Bind(m.Source, target, true); err == nil {
			m.Source = target
		} else if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EPERM) {
			return nil, fmt.Errorf("mount on %s: %w", m.Target, err)
		}
		out = append(out, m)
	}
	return out, nil
}

// deviceNode is a complete description and a node of it to mount from.
type deviceNode struct {
	gpu.DeviceNode
	source string
}

// makeDevices makes copies of device nodes that everybody may open. The host's
// own often belong to a group, which is nobody in the container; whether the
// device can be used is the cgroup's decision.
func (c *container) makeDevices(devices []gpu.DeviceNode) ([]deviceNode, error) {
	if len(devices) == 0 {
		return nil, nil
	}
	dir := filepath.Join(c.dir, "devices")
	if err := os.Mkdir(dir, 0o711); err != nil {
		return nil, fmt.Errorf("make devices: %w", err)
	}
	// A filesystem of its own, as /run is mounted with nodev.
	if err := unix.Mount("beam", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=711,size=64k"); err != nil {
		return nil, fmt.Errorf("make devices: %w", err)
	}
	c.sources = append(c.sources, dir)
	var out []deviceNode
	for i, d := range devices {
		d, err := complete(d)
		if err != nil {
			return nil, err
		}
		n := deviceNode{DeviceNode: d, source: filepath.Join(dir, fmt.Sprint(i))}
		mode := map[string]uint32{"c": unix.S_IFCHR, "b": unix.S_IFBLK}[d.Type]
		if err := unix.Mknod(n.source, mode|0o666, int(unix.Mkdev(uint32(d.Major), uint32(d.Minor)))); err != nil {
			return nil, fmt.Errorf("device %s: %w", d.Path, err)
		}
		if err := os.Chmod(n.source, 0o666); err != nil { // whatever the umask
			return nil, fmt.Errorf("device %s: %w", d.Path, err)
		}
		out = append(out, n)
	}
	return out, nil
}

// complete reads from the host's node what d does not say.
func complete(d gpu.DeviceNode) (gpu.DeviceNode, error) {
	if d.Path == "" {
		d.Path = d.HostPath
	}
	if d.Access == "" {
		d.Access = "rw"
	}
	if d.Type == "" {
		var st unix.Stat_t
		if err := unix.Stat(d.HostPath, &st); err != nil {
			return d, fmt.Errorf("device %s: %w", d.HostPath, err)
		}
		d.Type = map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b"}[st.Mode&unix.S_IFMT]
		d.Major, d.Minor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
	}
	if d.Type != "c" && d.Type != "b" || d.Major == 0 || !filepath.IsAbs(d.Path) {
		return d, fmt.Errorf("device %s: type %q, number %d:%d: not a device", d.Path, d.Type, d.Major, d.Minor)
	}
	return d, nil
}

func (c *container) dropSources() {
	for _, d := range c.sources {
		_ = unix.Unmount(d, unix.MNT_DETACH) // not all of them are mount points
		_ = os.Remove(d)
	}
	c.sources = nil
}

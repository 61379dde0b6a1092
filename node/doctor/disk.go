package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Floors of free space: below the first a node takes no work, below the
// second an image or two fill it.
const (
	leastFree = 2 << 30
	someFree  = 10 << 30
)

var fsNames = map[int64]string{
	unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.TMPFS_MAGIC: "tmpfs", unix.NFS_SUPER_MAGIC: "nfs",
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
	unix.FUSE_SUPER_MAGIC: "fuse", 0x2fc12fc1: "zfs", 0xff534d42: "cifs", 0xfe534d42: "smb2", unix.V9FS_MAGIC: "9p",
}

func dataDir(_ context.Context, c Config) Check {
	const fix = "give the node another folder: --data DIR on a local ext4 or xfs disk"
	removeStale(c.DataDir)
	dir, remove, err := workDir(c)
	if err != nil {
		return fail(fix, "%s cannot be written: %v", c.DataDir, err)
	}
	defer remove()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fail(fix, "%s: %v", c.DataDir, err)
	}
	name := fsNames[int64(st.Type)]
	if name == "" {
		name = fmt.Sprintf("file system %#x", st.Type)
	}
	switch name {
	case "overlayfs":
		return fail(fix, "%s is on overlayfs: containers' layers cannot be stacked on it", c.DataDir)
	case "nfs", "cifs", "smb2", "9p", "fuse":
		return fail(fix, "%s is on %s: containers' layers and locks need a local disk", c.DataDir, name)
	case "tmpfs":
		return warn(fix, "%s is on tmpfs: everything is lost at the next boot", c.DataDir)
	}
	return ok("%s on %s", c.DataDir, name)
}

// removeStale removes work folders that a killed doctor left.
func removeStale(dir string) {
	old, err := filepath.Glob(filepath.Join(dir, ".doctor-*"))
	if err != nil {
		return
	}
	for _, d := range old {
		if fi, err := os.Stat(d); err == nil && time.Since(fi.ModTime()) > time.Hour {
			_ = os.RemoveAll(d)
		}
	}
}

func freeSpace(_ context.Context, c Config) Check {
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return fail("", "%v", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(c.DataDir, &st); err != nil {
		return fail("", "%s: %v", c.DataDir, err)
	}
	free := int64(st.Bavail) * st.Bsize
	text := fmt.Sprintf("%.1f GiB free", float64(free)/(1<<30))
	fix := "make room, or give the node a larger disk: --data DIR"
	switch {
	case st.Ffree < 50_000 && st.Files > 0:
		return warn(fix, "%s, but only %d more files", text, st.Ffree)
	case free < leastFree:
		return fail(fix, "%s: a node takes no work below 2 GiB", text)
	case free < someFree:
		return warn(fix, "%s: room for few images", text)
	}
	return ok("%s", text)
}

// diskSync times what every acknowledged write pays.
func diskSync(ctx context.Context, c Config) Check {
	dir, remove, err := workDir(c)
	if err != nil {
		return fail("", "%v", err)
	}
	defer remove()
	f, err := os.Create(filepath.Join(dir, "sync"))
	if err != nil {
		return fail("", "%v", err)
	}
	defer func() { _ = f.Close() }()
	block := make([]byte, 4096)
	var times []time.Duration
	for i := range 20 {
		if _, err := f.WriteAt(block, int64(i)*4096); err != nil {
			return fail("make room or replace the disk", "write: %v", err)
		}
		begin := time.Now()
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return fail("replace the disk", "sync: %v", err)
		}
		times = append(times, time.Since(begin))
		if ctx.Err() != nil {
			break
		}
	}
	slices.Sort(times)
	median := times[len(times)/2]
	text := fmt.Sprintf("%.2f ms to sync 4 KiB", float64(median.Microseconds())/1000)
	if median > 20*time.Millisecond {
		return warn("put the data directory on an SSD: --data DIR", "%s: every task waits for two of these", text)
	}
	return ok("%s", text)
}

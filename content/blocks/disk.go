package blocks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/content"
)

// floor is the admission check: it asks for the free space at most once a
// second or once per 16 MiB written.
type floor struct {
	min  int64 // bytes that stay free; < 0 switches the check off
	free func() (int64, error)

	mu   sync.Mutex
	left int64 // bytes that may be written before the next look
	at   time.Time
}

const (
	floorStep   = 16 << 20
	floorMaxAge = time.Second
)

// admit gives content.ErrDiskFull when n more bytes would reach below the floor.
func (f *floor) admit(n int) error {
	if f.min < 0 {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left < int64(n) || time.Since(f.at) > floorMaxAge {
		free, err := f.free()
		if err != nil {
			return fmt.Errorf("look for free space: %w", err)
		}
		if free-int64(n) < f.min {
			f.left = 0
			return fmt.Errorf("%d MiB free, %d MiB must stay: %w", free>>20, f.min>>20, content.ErrDiskFull)
		}
		f.left, f.at = min(free-f.min, floorStep), time.Now()
	}
	f.left -= int64(n)
	return nil
}

func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// diskError makes the kernel's "no space" ours.
func diskError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w (%w)", content.ErrDiskFull, err)
	}
	return err
}

// maxDirty is how many blocks are synced one by one; more are synced with the
// whole file system, which is cheaper then and needs no list.
const maxDirty = 512

// dirty lists the blocks written since the last sync.
type dirty struct {
	mu   sync.Mutex
	list []place
	many bool // more than maxDirty: list is not kept

	syncing sync.Mutex // one Sync at a time; the second waits for the first's blocks too
}

func (d *dirty) add(p place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.many {
		return
	}
	if len(d.list) == maxDirty {
		d.list, d.many = nil, true
		return
	}
	d.list = append(d.list, p)
}

// Sync makes every block put so far durable.
func (s *Store) Sync(ctx context.Context) error {
	d := &s.dirty
	d.syncing.Lock()
	defer d.syncing.Unlock()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	d.mu.Lock()
	list, many := d.list, d.many
	d.list, d.many = nil, false
	d.mu.Unlock()

	err := s.syncBlocks(list, many)
	if err != nil {
		d.mu.Lock()
		d.list, d.many = nil, true
		d.mu.Unlock()
		return fmt.Errorf("sync block store: %w", diskError(err))
	}
	return nil
}

func (s *Store) syncBlocks(list []place, many bool) error {
	if many {
		f, err := os.Open(s.dir)
		if err != nil {
			return err
		}
		defer f.Close()
		return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
	}
	dirs := map[string]struct{}{}
	for _, p := range list {
		// A block that was removed meanwhile needs no sync.
		if err := syncPath(s.path(p)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		dirs[p.shard] = struct{}{}
	}
	for shard := range dirs {
		if err := syncDir(filepath.Join(s.dir, "data", shard)); err != nil {
			return err
		}
	}
	if len(list) == 0 {
		return nil
	}
	return syncDir(filepath.Join(s.dir, "data")) // new folders
}

func syncPath(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func syncDir(name string) error { return syncPath(name) }

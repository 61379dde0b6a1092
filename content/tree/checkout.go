package tree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/content"
)

// CheckoutOptions says how a tree is written.
type CheckoutOptions struct {
	// Prefix is the folder below dir that the tree lands in ("" or "mnt/code");
	// it is made when missing (0755) and may not pass through a link.
	Prefix string
	// KeepOwner leaves files to the calling user instead of setting UID, GID
	// and capabilities. Needed without root.
	KeepOwner bool
	// IDs translates owners in the tree to owners on disk; nil keeps them.
	IDs func(uid, gid uint32) (uint32, uint32, error)
	// Sync makes all of it durable before Checkout returns.
	Sync     bool
	Workers  int // 0 = one per core, at most 8
	Progress content.Progress
}

// Checkout writes the tree into dir, which may be empty or a mounted overlay
// on top of lower layers: whiteouts remove the path, opaque directories are
// emptied first, other paths replace what is there, directories are merged. It
// never follows a link. Nobody else may write below dir meanwhile.
//
// When it fails, dir holds complete files only, but not all of them: the
// caller removes it. An error that is content.ErrNotFound or ErrCorrupt names a
// block to fetch again.
func Checkout(ctx context.Context, store content.Blocks, root content.Root, dir string, o CheckoutOptions) error {
	if err := checkout(ctx, store, root, dir, o); err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = fmt.Errorf("%w (%w)", content.ErrDiskFull, err)
		}
		return fmt.Errorf("write tree %s to %s: %w", root, dir, err)
	}
	return nil
}

func checkout(ctx context.Context, store content.Blocks, root content.Root, dir string, o CheckoutOptions) error {
	if u, ok := store.(content.User); ok {
		defer u.Use(root)()
	}
	t, _, err := readRoot(ctx, store, root)
	if err != nil {
		return err
	}
	top, err := openTop(dir, o.Prefix)
	if err != nil {
		return err
	}
	c := &writer{store: store, o: o, total: t.bytes, top: newDirFD("", top)}
	defer c.top.release()
	if err := c.write(ctx, root); err != nil {
		return err
	}
	if o.Sync {
		return os.NewSyscallError("syncfs", unix.Syncfs(top))
	}
	return nil
}

// openTop opens dir and makes and opens the prefix below it.
func openTop(dir, prefix string) (int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	if prefix == "" {
		return fd, nil
	}
	defer unix.Close(fd)
	if err := CheckPath(prefix); err != nil {
		return -1, err
	}
	for i := range len(prefix) + 1 {
		if i < len(prefix) && prefix[i] != '/' {
			continue
		}
		parent, name := splitPath(prefix[:i])
		pfd, err := openBeneath(fd, parent, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return -1, err
		}
		err = unix.Mkdirat(pfd, name, 0o755)
		if err == nil {
			err = unix.Fchmodat(pfd, name, 0o755, 0) // whatever the umask
		}
		unix.Close(pfd)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, &os.PathError{Op: "mkdir", Path: prefix[:i], Err: err}
		}
	}
	return openBeneath(fd, prefix, unix.O_RDONLY|unix.O_DIRECTORY)
}

// dirFD is an open directory, closed when its last user is done. All names are
// used relative to one, so that no path is walked twice and no link followed.
type dirFD struct {
	path string
	fd   int
	refs atomic.Int32
}

func newDirFD(path string, fd int) *dirFD {
	d := &dirFD{path: path, fd: fd}
	d.refs.Store(1)
	return d
}

func (d *dirFD) use() *dirFD { d.refs.Add(1); return d }

func (d *dirFD) release() {
	if d.refs.Add(-1) == 0 {
		unix.Close(d.fd)
	}
}

// writer writes one tree.
type writer struct {
	store content.Blocks
	o     CheckoutOptions
	top   *dirFD
	total int64
	done  atomic.Int64

	// Of the walking goroutine alone:
	stack []*dirFD // open directories down to the current one; refs held
	dirs  []*Entry // attributes are set at the end: writing below changes mtime
	links []*Entry
	files chan writeJob
}

type writeJob struct {
	dir   *dirFD // a reference
	name  string
	entry *Entry
}

func (w *writer) write(ctx context.Context, root content.Root) error {
	n := workerCount(w.o.Workers)
	w.files = make(chan writeJob, 2*n)
	g, gctx := errgroup.WithContext(ctx)
	for range n {
		g.Go(func() error {
			buf := make([]byte, 0, content.ChunkSize)
			for j := range w.files {
				err := w.file(gctx, j, buf)
				j.dir.release()
				if err != nil {
					return fmt.Errorf("%q: %w", j.entry.Path, err)
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(w.files)
		defer w.popTo("\x00")
		w.stack = []*dirFD{w.top.use()}
		return Walk(gctx, w.store, root, func(e *Entry) error {
			if err := w.entry(gctx, e); err != nil {
				return fmt.Errorf("%q: %w", e.Path, err)
			}
			return nil
		})
	})
	err := g.Wait()
	for j := range w.files { // after a failure some are left
		j.dir.release()
	}
	if err != nil {
		return err
	}
	for _, e := range w.links {
		if err := w.link(e); err != nil {
			return fmt.Errorf("%q: %w", e.Path, err)
		}
	}
	// Deepest first: a parent may become unreadable or its mtime change.
	for _, e := range slices.Backward(w.dirs) {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := w.dirAttributes(e); err != nil {
			return fmt.Errorf("%q: %w", e.Path, err)
		}
	}
	return nil
}

// popTo closes directories until path is the innermost; "\x00" closes all.
func (w *writer) popTo(path string) {
	for len(w.stack) > 0 && w.stack[len(w.stack)-1].path != path {
		w.stack[len(w.stack)-1].release()
		w.stack = w.stack[:len(w.stack)-1]
	}
}

// entry makes one entry, or hands a file to the workers. The decoder has seen
// to it that the parent came before.
func (w *writer) entry(ctx context.Context, e *Entry) error {
	if e.Path == "" {
		w.dirs = append(w.dirs, cloneEntry(e))
		return nil
	}
	parent, name := splitPath(e.Path)
	w.popTo(parent)
	dir := w.stack[len(w.stack)-1]
	switch e.Kind {
	case Whiteout:
		return removeAll(dir.fd, name)
	case Dir:
		fd, err := makeDir(dir.fd, name, e.Opaque)
		if err != nil {
			return err
		}
		w.stack = append(w.stack, newDirFD(e.Path, fd))
		w.dirs = append(w.dirs, cloneEntry(e))
		return nil
	case Symlink:
		return w.symlink(dir.fd, name, e)
	case Hardlink:
		w.links = append(w.links, cloneEntry(e))
		return nil
	}
	select {
	case w.files <- writeJob{dir.use(), name, cloneEntry(e)}:
		return nil
	case <-ctx.Done():
		dir.release()
		return context.Cause(ctx)
	}
}

// cloneEntry copies what Walk lends.
func cloneEntry(e *Entry) *Entry {
	c := *e
	c.Chunks = slices.Clone(e.Chunks)
	c.Xattrs = slices.Clone(e.Xattrs)
	for i, a := range c.Xattrs {
		c.Xattrs[i] = Xattr{strings.Clone(a.Name), slices.Clone(a.Value)}
	}
	return &c
}

// makeDir makes or takes over a directory and opens it.
func makeDir(dirfd int, name string, opaque bool) (int, error) {
	err := unix.Mkdirat(dirfd, name, 0o700)
	fresh := err == nil
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err = unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return -1, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err = unix.Unlinkat(dirfd, name, 0); err == nil {
				err = unix.Mkdirat(dirfd, name, 0o700)
			}
			fresh = true
		}
	}
	if err == nil && opaque && !fresh {
		// Removed and made anew, not emptied: overlay then marks it opaque once
		// instead of holding a whiteout for each name.
		if err = removeAll(dirfd, name); err == nil {
			err = unix.Mkdirat(dirfd, name, 0o700)
		}
	}
	if err != nil {
		return -1, err
	}
	return unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

func (w *writer) symlink(dirfd int, name string, e *Entry) error {
	err := unix.Symlinkat(e.Target, dirfd, name)
	if errors.Is(err, unix.EEXIST) {
		if err = removeAll(dirfd, name); err == nil {
			err = unix.Symlinkat(e.Target, dirfd, name)
		}
	}
	if err != nil {
		return err
	}
	if err := w.chown(e, func(uid, gid int) error {
		return unix.Fchownat(dirfd, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	}); err != nil {
		return err
	}
	return unix.UtimesNanoAt(dirfd, name, times(e), unix.AT_SYMLINK_NOFOLLOW)
}

// file writes one file; when it fails, the file is not there.
func (w *writer) file(ctx context.Context, j writeJob, buf []byte) (err error) {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(j.dir.fd, j.name, flags, 0o600)
	if errors.Is(err, unix.EEXIST) {
		if err = removeAll(j.dir.fd, j.name); err == nil {
			fd, err = unix.Openat(j.dir.fd, j.name, flags, 0o600)
		}
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), j.entry.Path)
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			unix.Unlinkat(j.dir.fd, j.name, 0)
		}
	}()
	for i, d := range j.entry.Chunks {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		data, err := readBlock(ctx, w.store, d, buf)
		if err != nil {
			return err
		}
		if want := ChunkBytes(j.entry.Size, i); int64(len(data)) != want {
			return malformed("chunk of %d bytes, want %d", len(data), want)
		}
		if _, err := f.Write(data); err != nil {
			return err
		}
		if done := w.done.Add(int64(len(data))); w.o.Progress != nil {
			w.o.Progress(done, w.total)
		}
	}
	return w.attributes(fd, j.entry)
}

// link makes a second name of a file that this tree has written.
func (w *writer) link(e *Entry) error {
	oldDir, oldName := splitPath(e.Target)
	newDir, newName := splitPath(e.Path)
	from, err := openBeneath(w.top.fd, oldDir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := openBeneath(w.top.fd, newDir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	var st unix.Stat_t
	if err := unix.Fstatat(from, oldName, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "link", Path: e.Target, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return malformed("linked to %q, which is no file", e.Target)
	}
	err = unix.Linkat(from, oldName, to, newName, 0)
	if errors.Is(err, unix.EEXIST) {
		if err = removeAll(to, newName); err == nil {
			err = unix.Linkat(from, oldName, to, newName, 0)
		}
	}
	return os.NewSyscallError("link", err)
}

package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/content"
)

// ImportOptions says how a directory is read.
type ImportOptions struct {
	// ContentOnly drops what differs between machines for equal content (for
	// code trees): mtime 0, owner 0, mode 0644/0755, no attributes, no
	// whiteouts.
	ContentOnly bool
	// IDs translates owners on disk to owners in the tree; nil keeps them. For
	// a layer written through an idmapped mount. An error stops the import.
	IDs func(uid, gid uint32) (uint32, uint32, error)
	// Skip leaves a path (and what is below it) out. May be nil.
	Skip func(path string, dir bool) bool
	// RefuseSpecial makes sockets, pipes and devices an error instead of a Note.
	RefuseSpecial bool
	MaxBytes      int64 // of all files; 0 = no limit
	MaxEntries    int   // 0 = the package's MaxEntries
	Workers       int   // 0 = one per core, at most 8
	Progress      content.Progress
}

// ImportDir puts the tree below dir into store and commits its root. Equal
// trees give equal roots. The directory should not change meanwhile; a file
// that grows or shrinks is taken as it was read.
//
// A character device 0/0 and overlay's opaque mark become a Whiteout and an
// opaque directory, so dir may be the upper directory of an overlay. Marks that
// a layer cannot carry (redirect, metacopy) are an error.
func ImportDir(ctx context.Context, store content.Blocks, dir string, o ImportOptions) (Info, error) {
	top, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Info{}, &os.PathError{Op: "import", Path: dir, Err: err}
	}
	defer unix.Close(top)
	if o.MaxEntries <= 0 || o.MaxEntries > MaxEntries {
		o.MaxEntries = MaxEntries
	}
	w := &dirWalk{o: o, top: top, b: &builder{store: store, maxBytes: o.MaxBytes, progress: o.Progress}}
	if err := w.topDir(ctx); err != nil {
		return Info{}, fmt.Errorf("import %s: %w", dir, err)
	}
	info, err := w.b.build(ctx, o.Workers)
	if err != nil {
		return Info{}, fmt.Errorf("import %s: %w", dir, err)
	}
	return info, nil
}

// dirWalk lists a directory tree. It reaches everything from the top's
// descriptor without passing through links.
type dirWalk struct {
	o     ImportOptions
	top   int
	b     *builder
	links map[inode]string // files with several names: the first
}

type inode struct{ dev, ino uint64 }

func (w *dirWalk) topDir(ctx context.Context) error {
	var st unix.Stat_t
	if err := unix.Fstat(w.top, &st); err != nil {
		return err
	}
	e := &Entry{Kind: Dir}
	if err := w.attributes(e, &st); err != nil {
		return err
	}
	w.b.entries = append(w.b.entries, e)
	return w.dir(ctx, e, w.top)
}

// dir reads the directory e, open as fd, and all below it.
func (w *dirWalk) dir(ctx context.Context, e *Entry, fd int) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if !w.o.ContentOnly {
		marks, err := w.xattrs(e, fd)
		if err != nil {
			return err
		}
		e.Opaque = marks.opaque && e.Path != ""
	}
	names, err := readNames(fd)
	if err != nil {
		return &os.PathError{Op: "readdir", Path: e.Path, Err: err}
	}
	var sub []*Entry
	for _, name := range names {
		path := name
		if e.Path != "" {
			path = e.Path + "/" + name
		}
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "stat", Path: path, Err: err}
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if w.o.Skip != nil && w.o.Skip(path, isDir) {
			continue
		}
		x := &Entry{Path: path}
		if ok, err := w.entry(x, fd, name, &st); err != nil {
			return err
		} else if ok {
			sub = append(sub, x)
		}
	}
	// Directories are opened one after the other, by their path: the number
	// of open descriptors does not grow with the depth.
	for _, x := range sub {
		if len(w.b.entries) >= w.o.MaxEntries {
			return fmt.Errorf("more than %d entries: %w", w.o.MaxEntries, content.ErrLimit)
		}
		w.b.entries = append(w.b.entries, x)
		if x.Kind == Dir {
			if err := w.subdir(ctx, x); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *dirWalk) subdir(ctx context.Context, x *Entry) error {
	fd, err := openBeneath(w.top, x.Path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return w.dir(ctx, x, fd)
}

// entry fills x from what stat saw; ok is false when it is left out.
func (w *dirWalk) entry(x *Entry, fd int, name string, st *unix.Stat_t) (ok bool, err error) {
	if err := CheckPath(x.Path); err != nil {
		return false, err
	}
	special := ""
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		x.Kind = Dir
	case unix.S_IFLNK:
		x.Kind = Symlink
		if x.Target, err = readLink(fd, name); err != nil {
			return false, &os.PathError{Op: "readlink", Path: x.Path, Err: err}
		}
	case unix.S_IFREG:
		return true, w.file(x, st)
	case unix.S_IFCHR:
		if st.Rdev == 0 && !w.o.ContentOnly {
			x.Kind = Whiteout
			return true, nil
		}
		special = "character device"
	case unix.S_IFBLK:
		special = "block device"
	case unix.S_IFIFO:
		special = "named pipe"
	case unix.S_IFSOCK:
		special = "socket"
	default:
		special = "unknown kind of file"
	}
	if special != "" {
		if w.o.RefuseSpecial {
			return false, fmt.Errorf("%q is a %s: %w", x.Path, special, content.ErrUnsafe)
		}
		w.b.note(x.Path, special+" left out")
		return false, nil
	}
	return true, w.attributes(x, st)
}

func (w *dirWalk) file(x *Entry, st *unix.Stat_t) error {
	x.Kind = File
	if st.Nlink > 1 && !w.o.ContentOnly {
		id := inode{uint64(st.Dev), st.Ino}
		if first, ok := w.links[id]; ok {
			x.Kind, x.Target = Hardlink, first
			return nil
		}
		if w.links == nil {
			w.links = map[inode]string{}
		}
		w.links[id] = x.Path
	}
	if err := w.attributes(x, st); err != nil {
		return err
	}
	w.b.addFile(x, st.Size, func() (io.ReadCloser, error) { return w.open(x) })
	return nil
}

// open opens a file for reading and takes its extended attributes along. It
// gives nil for what turns out to be a whiteout.
func (w *dirWalk) open(x *Entry) (io.ReadCloser, error) {
	fd, err := openBeneath(w.top, x.Path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), x.Path)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil, errors.New("changed its kind during the import")
	}
	if !w.o.ContentOnly {
		marks, err := w.xattrs(x, fd)
		if err != nil {
			f.Close()
			return nil, err
		}
		if marks.whiteout && st.Size == 0 {
			f.Close()
			*x = Entry{Path: x.Path, Kind: Whiteout}
			return nil, nil
		}
	}
	return f, nil
}

func (w *dirWalk) attributes(x *Entry, st *unix.Stat_t) error {
	if w.o.ContentOnly {
		x.Mode = contentMode(x.Kind, uint32(st.Mode))
		return nil
	}
	x.Mode, x.UID, x.GID, x.MTime = uint32(st.Mode)&0o7777, st.Uid, st.Gid, st.Mtim.Sec
	if w.o.IDs == nil {
		return nil
	}
	var err error
	if x.UID, x.GID, err = w.o.IDs(x.UID, x.GID); err != nil {
		return fmt.Errorf("%q: %w", x.Path, err)
	}
	return nil
}

// contentMode is the one mode that equal content has everywhere.
func contentMode(k Kind, mode uint32) uint32 {
	switch {
	case k == Symlink:
		return 0o777
	case k == Dir, mode&0o111 != 0:
		return 0o755
	}
	return 0o644
}

// marks are what overlay notes in attributes.
type marks struct{ opaque, whiteout bool }

// xattrs reads the attributes that are kept into x.
func (w *dirWalk) xattrs(x *Entry, fd int) (m marks, err error) {
	names, err := listXattrs(fd)
	if err != nil {
		return m, &os.PathError{Op: "listxattr", Path: x.Path, Err: err}
	}
	total := 0
	for _, name := range names {
		mark, isMark := strings.CutPrefix(name, "trusted.overlay.")
		if !isMark {
			mark, isMark = strings.CutPrefix(name, "user.overlay.")
		}
		if !isMark && !keepXattr(name) {
			continue
		}
		value, err := getXattr(fd, name)
		if err != nil {
			return m, &os.PathError{Op: "getxattr", Path: x.Path, Err: err}
		}
		switch {
		case !isMark:
			if total += len(name) + len(value); total > MaxXattrs || len(x.Xattrs) == 64 {
				return m, fmt.Errorf("%q: attributes: %w", x.Path, content.ErrLimit)
			}
			x.Xattrs = append(x.Xattrs, Xattr{name, value})
		case mark == "opaque":
			m.opaque = string(value) == "y"
		case mark == "whiteout":
			m.whiteout = true
		case mark == "redirect", mark == "metacopy":
			return m, fmt.Errorf("%q: overlay's %s cannot be kept (mount with redirect_dir=off,metacopy=off): %w",
				x.Path, mark, errors.ErrUnsupported)
		}
	}
	slices.SortFunc(x.Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return m, nil
}

func listXattrs(fd int) ([]string, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Flistxattr(fd, buf)
		switch {
		case errors.Is(err, unix.ERANGE):
			if buf = make([]byte, len(buf)*4); len(buf) > 1<<20 {
				return nil, err
			}
			continue
		case errors.Is(err, unix.ENOTSUP):
			return nil, nil
		case err != nil:
			return nil, err
		}
		var names []string
		for name := range bytes.SplitSeq(buf[:n], []byte{0}) {
			if len(name) > 0 {
				names = append(names, string(name))
			}
		}
		return names, nil
	}
}

func getXattr(fd int, name string) ([]byte, error) {
	buf := make([]byte, 1<<16) // the kernel's largest
	n, err := unix.Fgetxattr(fd, name, buf)
	if err != nil {
		return nil, err
	}
	return bytes.Clone(buf[:n]), nil
}

func readLink(dirfd int, name string) (string, error) {
	buf := make([]byte, MaxPath+1)
	n, err := unix.Readlinkat(dirfd, name, buf)
	if err == nil && n > MaxPath {
		err = unix.ENAMETOOLONG
	}
	return string(buf[:max(n, 0)]), err
}

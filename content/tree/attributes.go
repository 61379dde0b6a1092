package tree

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// attributes sets owner, mode, attributes and time of an open file or directory.
func (w *writer) attributes(fd int, e *Entry) error {
	// The owner first: a change of it clears setuid and capabilities.
	if err := w.chown(e, func(uid, gid int) error { return unix.Fchown(fd, uid, gid) }); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, e.Mode); err != nil {
		return err
	}
	for _, a := range e.Xattrs {
		if w.o.KeepOwner && strings.HasPrefix(a.Name, "security.") {
			continue
		}
		err := unix.Fsetxattr(fd, a.Name, a.Value, 0)
		// Not every file system keeps the user's own attributes; a missing
		// capability, though, would break the program.
		if errors.Is(err, unix.ENOTSUP) && strings.HasPrefix(a.Name, "user.") {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "setxattr " + a.Name, Path: e.Path, Err: err}
		}
	}
	ts := times(e)
	return os.NewSyscallError("futimens", futimens(fd, ts))
}

func (w *writer) chown(e *Entry, set func(uid, gid int) error) error {
	if w.o.KeepOwner {
		return nil
	}
	uid, gid := e.UID, e.GID
	if w.o.IDs != nil {
		var err error
		if uid, gid, err = w.o.IDs(uid, gid); err != nil {
			return err
		}
	}
	return os.NewSyscallError("chown", set(int(uid), int(gid)))
}

func times(e *Entry) []unix.Timespec {
	t := unix.Timespec{Sec: e.MTime}
	return []unix.Timespec{t, t}
}

func futimens(fd int, ts []unix.Timespec) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), ts, 0)
}

// dirAttributes sets those of a directory, unless they are right already: on an
// overlay that spares a copy of the lower layer's.
func (w *writer) dirAttributes(e *Entry) error {
	fd, err := openBeneath(w.top.fd, e.Path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if len(e.Xattrs) == 0 && w.o.IDs == nil && (w.o.KeepOwner || st.Uid == e.UID && st.Gid == e.GID) &&
		uint32(st.Mode)&0o7777 == e.Mode && st.Mtim.Sec == e.MTime {
		return nil
	}
	return w.attributes(fd, e)
}

// Package userns makes pairs of a user namespace and a network namespace that
// belongs to it, for containers to be started in.
//
// The network namespace is created inside the user namespace: only then may
// root of the container mount /sys. The pair is held by two open files and by
// nothing else, no bind mount and no process, so it is gone when they are
// closed, also when this process is killed. Another process on the machine
// (runc) reaches it through UserPath and NetPath while the files are open.
//
//	p, err := userns.New(1<<30, 65536)
//	defer p.Close()
//
// Functions are safe for concurrent use. Needs root and Linux 5.12.
package userns

import (
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Pair is a user namespace and a network namespace that belongs to it.
type Pair struct {
	First uint32 // the host's id of user 0 and group 0 in the pair
	Count uint32
	User  *os.File
	Net   *os.File // nil in one made by Unmapped
}

// New makes a pair in which ids 0..count-1 are the host's first..first+count-1.
func New(first, count uint32) (*Pair, error) {
	p, err := makePair(syscall.CLONE_NEWUSER|syscall.CLONE_NEWNET, 0, first, count)
	if err != nil {
		return nil, fmt.Errorf("make user namespace at id %d: %w", first, err)
	}
	return p, nil
}

// Unmapped makes the opposite of New for mounts: what belongs to the host's
// first..first+count-1 on disk shows as 0..count-1 in its Clone or Bind. It has
// no network, and no container can run in it.
func Unmapped(first, count uint32) (*Pair, error) {
	p, err := makePair(syscall.CLONE_NEWUSER, first, 0, count)
	if err != nil {
		return nil, fmt.Errorf("make user namespace for id %d: %w", first, err)
	}
	return p, nil
}

func makePair(namespaces uintptr, inside, outside, count uint32) (*Pair, error) {
	// A namespace needs a process to be born in. The child is traced, so it
	// stops at the first instruction of the program it executes and never runs
	// one. Only the thread that started it can wait for it.
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	ids := []syscall.SysProcIDMap{{ContainerID: int(inside), HostID: int(outside), Size: int(count)}}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"namespace"}, &syscall.ProcAttr{
		Sys: &syscall.SysProcAttr{
			Ptrace:      true,
			Pdeathsig:   syscall.SIGKILL,
			Cloneflags:  namespaces,
			UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		},
	})
	if err != nil {
		return nil, err
	}
	p := &Pair{First: outside, Count: count}
	open := func(name string) *os.File {
		f, oerr := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/" + name)
		err = errors.Join(err, oerr)
		return f
	}
	p.User = open("user")
	if namespaces&syscall.CLONE_NEWNET != 0 {
		p.Net = open("net")
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	for {
		var ws syscall.WaitStatus
		_, werr := syscall.Wait4(pid, &ws, 0, nil)
		if werr == syscall.EINTR || werr == nil && ws.Stopped() {
			continue
		}
		break
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Close gives the pair up; it lives on as long as processes or devices use it.
// May be called twice.
func (p *Pair) Close() error {
	return errors.Join(closeFile(p.User), closeFile(p.Net))
}

func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// UserPath and NetPath name the namespaces for other processes.
func (p *Pair) UserPath() string { return procPath(p.User) }

// NetPath: see UserPath.
func (p *Pair) NetPath() string { return procPath(p.Net) }

func procPath(f *os.File) string {
	// The dot is for runc 1.5: it takes any path that begins with /proc/PID for
	// /proc/PID/ns/user, and the mapping of process PID for the namespace's.
	return "/proc/./" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(int(f.Fd()))
}

// InNet runs f on a thread that has entered the pair's network namespace.
// f must not start goroutines that count on it.
func (p *Pair) InNet(f func() error) error {
	errc := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine and takes the
		// foreign namespace with it.
		goruntime.LockOSThread()
		if err := unix.Setns(int(p.Net.Fd()), unix.CLONE_NEWNET); err != nil {
			errc <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		errc <- f()
	}()
	return <-errc
}

// Clone makes a detached copy of the mount tree at path in which the owner
// root is the pair's root, and so on for all its ids. It returns a descriptor
// for move_mount. Filesystems without idmapped mounts return EINVAL or EOPNOTSUPP.
func (p *Pair) Clone(path string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	attrFlags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
		attrFlags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err != nil {
		return -1, fmt.Errorf("clone mount of %s: %w", path, err)
	}
	err = unix.MountSetattr(fd, "", attrFlags, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(p.User.Fd()), Propagation: unix.MS_PRIVATE,
	})
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("map ids of %s: %w", path, err)
	}
	return fd, nil
}

// Bind mounts an idmapped copy of source on target.
func (p *Pair) Bind(source, target string, recursive bool) error {
	fd, err := p.Clone(source, recursive)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}

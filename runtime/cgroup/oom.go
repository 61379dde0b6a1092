package cgroup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// WatchOOM returns a channel that is closed when the kernel has killed a
// process of the group for want of memory. It watches until ctx ends or the
// group is removed.
func (g *Group) WatchOOM(ctx context.Context) (<-chan struct{}, error) {
	var events *os.File
	var err error
	if g.h.unified != "" {
		events, err = g.notifyV2()
	} else {
		events, err = g.notifyV1()
	}
	if err != nil {
		return nil, fmt.Errorf("watch out of memory: %w", err)
	}
	oom := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { events.Close() })
	go func() {
		defer stop()
		defer events.Close()
		buf := make([]byte, 4096)
		for wait := time.Duration(0); ; wait = settle {
			if g.killed(ctx, wait) {
				close(oom)
				return
			}
			if !g.Exists() {
				return
			}
			if _, err := events.Read(buf); err != nil {
				return
			}
		}
	}()
	return oom, nil
}

// settle is how long after its notification a kill may take to be counted: on
// v1 the notification comes before the kill, and none comes after it.
const settle = 200 * time.Millisecond

// killed reports whether the kernel has killed a process, or does so within wait.
func (g *Group) killed(ctx context.Context, wait time.Duration) bool {
	for end := time.Now().Add(wait); ; {
		n, err := g.OOMKills()
		if n > 0 || err != nil || time.Now().After(end) || pause(ctx) != nil {
			return n > 0
		}
	}
}

// notifyV1 returns an eventfd on which the kernel reports.
func (g *Group) notifyV1() (*os.File, error) {
	dir := g.dir("memory")
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		return nil, err
	}
	defer control.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	events := os.NewFile(uintptr(fd), "oom events")
	line := fmt.Sprintf("%d %d", fd, control.Fd())
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(line), 0); err != nil {
		events.Close()
		return nil, err
	}
	return events, nil
}

// notifyV2 returns an inotify descriptor on memory.events.
func (g *Group) notifyV2() (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(g.dir(""), "memory.events"), unix.IN_MODIFY|unix.IN_DELETE_SELF); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "oom events"), nil
}

package initd

import (
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// loopbackUp brings lo up in a fresh network namespace. When it is up already
// nothing is asked of the kernel that needs a capability.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return err
	}
	if ifr.Uint16()&unix.IFF_UP != 0 {
		return nil
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// watchDir says when something in dir changed: a node that starts renames its
// socket into place. Without inotify the channel stays silent.
func watchDir(dir string, log *slog.Logger) <-chan struct{} {
	c := make(chan struct{}, 1)
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err == nil {
		_, err = unix.InotifyAddWatch(fd, dir, unix.IN_MOVED_TO|unix.IN_CREATE)
	}
	if err != nil {
		log.Warn("watch for the node's socket", "dir", dir, "err", err)
		return c
	}
	f := os.NewFile(uintptr(fd), "inotify")
	go func() {
		var buf [4096]byte
		for {
			if _, err := f.Read(buf[:]); err != nil {
				log.Warn("watch for the node's socket", "dir", dir, "err", err)
				return
			}
			poke(c)
		}
	}()
	return c
}

package userns

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPair(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	p, err := New(1<<30, 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	host, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var inside string
	if err := p.InNet(func() error {
		inside, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if inside == host {
		t.Errorf("network namespace inside is the host's, %s", host)
	}
	// The network namespace's owner is the pair's user namespace.
	owner, err := unix.IoctlRetInt(int(p.Net.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(owner)
	var a, b unix.Stat_t
	if err := unix.Fstat(owner, &a); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fstat(int(p.User.Fd()), &b); err != nil {
		t.Fatal(err)
	}
	if a.Ino != b.Ino {
		t.Errorf("network namespace belongs to user namespace %d, want %d", a.Ino, b.Ino)
	}
	if _, err := os.Readlink(p.NetPath()); err != nil {
		t.Errorf("path for other processes: %v", err)
	}
}

func TestBindMapsOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	p, err := New(1<<30, 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	src, dst := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Bind(src, dst, false); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dst, unix.MNT_DETACH)
	fi, err := os.Stat(filepath.Join(dst, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if uid := fi.Sys().(*syscall.Stat_t).Uid; uid != 1<<30 {
		t.Errorf("owner through the mount is %d, want %d", uid, 1<<30)
	}
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		p, err := New(1<<30, 1<<16)
		if err != nil {
			b.Fatal(err)
		}
		p.Close()
	}
}

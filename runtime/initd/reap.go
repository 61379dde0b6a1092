package initd

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reap is the only place that waits for children. Several signals may arrive
// as one, so each round takes all that are dead.
func (st *state) reap(chld <-chan os.Signal) {
	for range chld {
		for st.reapOne() {
		}
	}
}

// reapOne takes one dead child, and before its number becomes free kills what
// is left of its group.
func (st *state) reapOne() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	pid := deadChild()
	if pid == 0 {
		return false
	}
	p := st.byPID[pid]
	if p != nil {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
	var ws syscall.WaitStatus
	for {
		_, err := syscall.Wait4(pid, &ws, syscall.WNOHANG, nil)
		if err != syscall.EINTR {
			break
		}
	}
	if p != nil {
		delete(st.byPID, pid)
		st.changed()
		go p.finish(exitCode(ws))
	}
	return true
}

// deadChild names a child that has ended, without reaping it.
func deadChild() int {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil { // ECHILD
			return 0
		}
		// si_pid is the first member of the union after three ints, which is
		// aligned as a pointer.
		const align = unsafe.Sizeof(uintptr(0))
		off := (3*unsafe.Sizeof(int32(0)) + align - 1) / align * align
		return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), off)))
	}
}

func exitCode(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

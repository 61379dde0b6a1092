package dev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// startTime is when pid began, in clock ticks since boot; 0 when there is no
// such process or it is a zombie. With the pid it names a process for good.
func startTime(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name in parentheses may hold blanks: count from the last one.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return 0
	}
	t, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return 0
	}
	return t
}

// pids lists the processes of this machine.
func pids() []int {
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	var out []int
	for _, n := range names {
		if pid, err := strconv.Atoi(filepath.Base(n)); err == nil && pid != os.Getpid() {
			out = append(out, pid)
		}
	}
	return out
}

// inNetNS lists the processes in any of the named network namespaces.
func inNetNS(names []string) []int {
	want := map[uint64]bool{}
	for _, n := range names {
		var st unix.Stat_t
		if unix.Stat(netnsPath(n), &st) == nil {
			want[st.Ino] = true
		}
	}
	var self unix.Stat_t
	if len(want) == 0 || unix.Stat("/proc/self/ns/net", &self) != nil {
		return nil
	}
	delete(want, self.Ino) // a file that is no longer mounted on: never our own
	var out []int
	for _, pid := range pids() {
		var st unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) == nil && want[st.Ino] {
			out = append(out, pid)
		}
	}
	return out
}

// withRootBelow lists the processes whose root filesystem is an overlay with
// layers below dir: containers of nodes that lie there.
func withRootBelow(dir string) []int {
	var out []int
	for _, pid := range pids() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil {
			continue
		}
		for _, m := range parseMounts(string(b)) {
			if m.point == "/" && (strings.Contains(m.options, "="+dir+"/") || strings.Contains(m.options, ":"+dir+"/")) {
				out = append(out, pid)
				break
			}
		}
	}
	return out
}

type mount struct{ point, options string }

// parseMounts reads mountinfo, see proc(5).
func parseMounts(s string) []mount {
	var out []mount
	for _, line := range strings.Split(s, "\n") {
		left, right, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(left), strings.Fields(right)
		if !ok || len(f) < 5 || len(g) < 3 {
			continue
		}
		out = append(out, mount{unescape(f[4]), g[2]})
	}
	return out
}

// unescape undoes the kernel's \040 for a blank and the like.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// signalAndWait sends sig and waits until the process (with this start time)
// has ended, at most d. It wakes by the kernel's notice, not by polling.
func signalAndWait(ctx context.Context, pid int, start uint64, sig unix.Signal, d time.Duration) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it has ended
	}
	defer func() { _ = unix.Close(fd) }()
	if startTime(pid) != start { // the pid was given anew before we held it
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		return nil
	}
	deadline := time.Now().Add(d)
	if t, ok := ctx.Deadline(); ok && t.Before(deadline) {
		deadline = t
	}
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("process %d still runs", pid)
		}
		// In slices, so that a cancelled ctx is noticed.
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(min(left, 500*time.Millisecond).Milliseconds())+1)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func netnsPath(name string) string { return "/run/netns/" + name }

// startIn starts cmd in a network namespace. Unlike `ip netns exec` it leaves
// mounts alone: that one mounts /sys anew, and then runc finds no cgroups.
func startIn(netns string, cmd *exec.Cmd) error {
	out := make(chan error, 1)
	onOwnThread(func() {
		fd, err := unix.Open(netnsPath(netns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			out <- fmt.Errorf("open network namespace %s: %w", netns, err)
			return
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			out <- fmt.Errorf("enter network namespace %s: %w", netns, err)
			return
		}
		out <- cmd.Start()
	})
	return <-out
}

// onOwnThread runs fn on a thread that ends with it, so that fn may leave the
// thread in another namespace. The process's first thread never ends and is
// what others see of the process: it is not used.
func onOwnThread(fn func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			fn()
			return // locked still: the thread ends
		}
		done := make(chan struct{})
		go func() { // gets another thread, since we hold this one
			defer close(done)
			runtime.LockOSThread()
			fn()
		}()
		<-done
		runtime.UnlockOSThread()
	}()
}

// tool runs a system program to its end and gives what it printed. netns ""
// is the host's.
func tool(ctx context.Context, netns, stdin, name string, args ...string) (string, error) {
	path, err := lookTool(name)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if netns == "" {
		err = cmd.Start()
	} else {
		err = startIn(netns, cmd)
	}
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

package initd

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/beammesh/beammesh/runtime/ctl"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// exec starts a process and files it under id. It does not wait for the link.
func (st *state) exec(id uint32, b ctl.ExecBody) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.procs[id] != nil {
		return // asked for again after a break
	}
	p := newProc(st, id)
	st.procs[id] = p
	err := func() error {
		switch {
		case st.closing:
			return errors.New("container is shutting down")
		case len(st.procs) > ctl.MaxProcs:
			return fmt.Errorf("%d processes run already", ctl.MaxProcs)
		}
		return p.forkLocked(b)
	}()
	if err != nil {
		go p.fail(err)
		return
	}
	st.byPID[p.pid] = p
	go p.start()
}

// forkLocked makes the streams and the process; state.mu is held, so the
// reaper cannot meet the child before it is filed.
func (p *proc) forkLocked(b ctl.ExecBody) (err error) {
	if len(b.Args) == 0 || b.Args[0] == "" {
		return errors.New("no arguments")
	}
	env := mergeEnv(os.Environ(), b.Env)
	dir := b.Cwd
	if dir == "" {
		dir = "/"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	path, err := lookPath(b.Args[0], dir, env)
	if err != nil {
		return err
	}
	var theirs []int
	defer func() {
		for _, fd := range theirs {
			syscall.Close(fd)
		}
		if err != nil {
			p.closeStreams()
		}
	}()
	null, err := syscall.Open("/dev/null", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	theirs = append(theirs, null)
	for i := range p.out {
		var fds [2]int
		if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
			return fmt.Errorf("pipe: %w", err)
		}
		theirs = append(theirs, fds[1])
		// Only our end does not block: the ends of a pipe are two open files.
		if p.out[i], err = newStream(fds[0], "output"); err != nil {
			return err
		}
	}
	if b.Frames {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socketpair: %w", err)
		}
		theirs = append(theirs, fds[1])
		if p.sock, err = newStream(fds[0], "frames"); err != nil {
			return err
		}
	}
	files := make([]uintptr, len(theirs))
	for i, fd := range theirs {
		files[i] = uintptr(fd)
	}
	p.pid, err = syscall.ForkExec(path, b.Args, &syscall.ProcAttr{
		Dir: dir, Env: env, Files: files,
		// An own session: no controlling terminal, and an own group to kill.
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("%s: %w", b.Args[0], err)
	}
	unprotect(p.pid)
	return nil
}

// unprotect undoes for a child what spares init from the OOM killer.
func unprotect(pid int) {
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil || !strings.HasPrefix(string(own), "-") {
		return
	}
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("0"), 0)
}

// mergeEnv adds more to base, later values winning, in a stable order.
func mergeEnv(base, more []string) []string {
	at := map[string]int{}
	var env []string
	for _, kv := range slices.Concat([]string{defaultPath}, base, more) {
		k, _, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			continue
		}
		if i, ok := at[k]; ok {
			env[i] = kv
			continue
		}
		at[k] = len(env)
		env = append(env, kv)
	}
	return env
}

// lookPath finds an executable by the PATH that the process will have.
func lookPath(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil // ForkExec resolves it in dir
	}
	found := error(os.ErrNotExist)
	for _, kv := range env {
		list, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for _, d := range filepath.SplitList(list) {
			if !filepath.IsAbs(d) {
				d = filepath.Join(dir, d)
			}
			f := filepath.Join(d, name)
			fi, err := os.Stat(f)
			switch {
			case err != nil || fi.IsDir():
			case fi.Mode()&0o111 == 0:
				found = os.ErrPermission
			default:
				return f, nil
			}
		}
	}
	return "", fmt.Errorf("%s: executable not in PATH: %w", name, found)
}

func (st *state) find(id uint32) *proc {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.procs[id]
}

func (st *state) list() []*proc {
	st.mu.Lock()
	defer st.mu.Unlock()
	return slices.SortedFunc(maps.Values(st.procs), func(a, b *proc) int { return cmp.Compare(a.id, b.id) })
}

// forget drops a process whose end the node has acknowledged.
func (st *state) forget(p *proc) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.procs[p.id] == p {
		delete(st.procs, p.id)
		st.changed()
	}
}

// signal reaches a process that is not reaped yet, so never a stranger that
// was given its number.
func (st *state) signal(id uint32, sig int, group bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	p := st.procs[id]
	if p == nil || st.byPID[p.pid] != p {
		return
	}
	pid := p.pid
	if group {
		pid = -pid
	}
	_ = syscall.Kill(pid, syscall.Signal(sig))
}

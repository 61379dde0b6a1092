package build

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/beammesh/beammesh/proto/fault"
)

// suites are the Debian releases that a base can be made of, by their Python.
var suites = map[string]string{"bullseye": "3.9", "bookworm": "3.11", "trixie": "3.13"}

// SuiteOf returns the Debian suite whose python3 is of this minor, "3.11".
func SuiteOf(python string) (suite string, ok bool) {
	for s, p := range suites {
		if p == python {
			return s, true
		}
	}
	return "", false
}

// Pythons lists the Python minors that bases can be made for, in order.
func Pythons() []string { return []string{"3.9", "3.11", "3.13"} }

// BaseRecipe names what Bootstrap installs: raise it when the same suite would
// give another tree.
const BaseRecipe = "debian-python-1"

// packages beside the essential ones: the whole standard library, pip, venv,
// certificates, the time zones that zoneinfo reads, a link "python".
var packages = []string{"python3", "python3-venv", "python3-pip", "python-is-python3", "ca-certificates", "tzdata", "netbase"}

// more is what a suite keeps outside of python3 although it is of the library.
var more = map[string][]string{
	"bullseye": {"python3-distutils", "python3-lib2to3"},
	"bookworm": {"python3-distutils", "python3-lib2to3"},
}

// BaseConfig of a Bootstrap.
type BaseConfig struct {
	Suite string // bullseye, bookworm, trixie
	// Dir gets the tree. Its parent must be on a file system that takes
	// owners and device files.
	Dir string
	// Tool is mmdebstrap's path, "" = from PATH.
	Tool string
}

// Bootstrap makes the root file system of a base image from Debian packages:
// Python with its whole standard library, pip and venv, without documents or
// package lists, about 200 MB. It takes mirrors, proxies and certificates from
// this machine's apt configuration, so it needs Debian or a system with
// Debian's archive configured in apt, and root.
//
// When Dir is there already, nothing is done: it gets its name only when it is
// complete. What an attempt that was killed left is removed by the next one;
// a killed node takes the running tools with it. One call per Dir works, others
// wait. report, which may be nil, is called from one goroutine.
func Bootstrap(ctx context.Context, c BaseConfig, report func(Progress)) error {
	if _, ok := suites[c.Suite]; !ok {
		return fault.New(fault.Invalid, fmt.Sprintf("no base can be made of Debian %q", c.Suite),
			"Python 3.9, 3.11 and 3.13 are there: bullseye, bookworm, trixie")
	}
	if report == nil {
		report = func(Progress) {}
	}
	if done(c.Dir) {
		return nil
	}
	if os.Geteuid() != 0 {
		return fault.New(fault.Forbidden, "a base image is made as root", "run it with sudo")
	}
	tool, err := exec.LookPath(cmp.Or(c.Tool, "mmdebstrap"))
	if err != nil {
		return fault.Wrap(fault.Unsupported, err, "mmdebstrap is not installed", "sudo apt-get install -y mmdebstrap")
	}
	if err := os.MkdirAll(filepath.Dir(c.Dir), 0o755); err != nil {
		return fmt.Errorf("bootstrap %s: %w", c.Suite, err)
	}
	held, err := lock(ctx, c.Dir+".lock")
	if err != nil {
		return fmt.Errorf("bootstrap %s: %w", c.Suite, err)
	}
	defer held.Close()
	if done(c.Dir) {
		return nil
	}
	part := c.Dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return fmt.Errorf("bootstrap %s: remove what was left: %w", c.Suite, err)
	}
	defer os.RemoveAll(part) // gone after the rename
	src, err := hostSources("/etc/apt", c.Suite)
	if err != nil {
		return fmt.Errorf("bootstrap %s: %w", c.Suite, err)
	}
	err = mmdebstrap(ctx, tool, c.Suite, part, src, held, newParser(report))
	var failed *toolError
	if errors.As(err, &failed) && len(src) > 1 && ctx.Err() == nil {
		// Old suites lose their updates and security archives, and a mirror
		// may not carry them.
		if err = os.RemoveAll(part); err == nil {
			err = mmdebstrap(ctx, tool, c.Suite, part, src[:1], held, newParser(report))
		}
	}
	if errors.As(err, &failed) {
		return fault.New(fault.BuildFailed, fmt.Sprintf("base image of Debian %s: %s\n  %s", c.Suite, failed.err,
			strings.Join(failed.tail, "\n  ")), "is the package mirror of /etc/apt reachable? try: apt-get update")
	}
	if err != nil {
		return fmt.Errorf("bootstrap %s: %w", c.Suite, err)
	}
	report(Progress{Phase: PhaseTrim})
	if err := trim(part, src); err != nil {
		return fmt.Errorf("bootstrap %s: trim: %w", c.Suite, err)
	}
	if err := os.Rename(part, c.Dir); err != nil {
		return fmt.Errorf("bootstrap %s: %w", c.Suite, err)
	}
	report(Progress{Phase: PhaseDone})
	return nil
}

func done(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "usr/bin/python3"))
	return err == nil
}

// toolError is mmdebstrap's own failure, with its last lines.
type toolError struct {
	err  error
	tail []string
}

func (e *toolError) Error() string { return e.err.Error() + ": " + strings.Join(e.tail, "; ") }
func (e *toolError) Unwrap() error { return e.err }

// mmdebstrap runs the tool in its own pid namespace, so that nothing of it can
// outlive it, and it dies with us.
func mmdebstrap(ctx context.Context, tool, suite, dir string, src sources, held *os.File, p *parser) error {
	args := []string{"--mode=root", "--format=directory", "--variant=minbase", "--verbose", "--skip=output/dev",
		"--include=" + strings.Join(slices.Concat(packages, more[suite]), ","),
		`--aptopt=Apt::Install-Recommends "false"`,
		"--dpkgopt=force-unsafe-io", // what is half written is thrown away anyhow
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-include=/usr/share/doc/*/copyright", // licences ask for it
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/info/*",
	}
	// Saves usrmerge and the perl that it needs, where the tool knows how.
	if hook := "/usr/share/mmdebstrap/hooks/maybe-merged-usr"; isDir(hook) {
		args = append(args, "--hook-dir="+hook)
	}
	for _, l := range aptSettings(ctx) {
		args = append(args, "--aptopt="+strings.TrimSuffix(l, ";"))
	}
	cmd := exec.CommandContext(ctx, tool, append(args, suite, dir, "-")...)
	cmd.Stdin = strings.NewReader(src.list(true))
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	// The tool and its children hold the lock too: when we are killed, the next
	// one begins only after the last of them is gone.
	cmd.ExtraFiles = []*os.File{held}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	out, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	tail := make(chan []string)
	go func() { tail <- p.read(out) }()
	ran := make(chan error)
	go func() {
		// The signal at our death is tied to the thread that starts the child.
		goruntime.LockOSThread()
		defer goruntime.UnlockOSThread()
		ran <- cmd.Run()
	}()
	err := <-ran
	w.Close()
	last := <-tail
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return &toolError{err, last}
	}
	return nil
}

func isDir(p string) bool {
	fi, err := os.Stat(p)
	return err == nil && fi.IsDir()
}

// lock takes an exclusive lock on a file; it is given back when the last copy
// of the descriptor is closed.
func lock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	got := make(chan error, 1)
	go func() {
		for {
			err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
			if !errors.Is(err, syscall.EINTR) {
				got <- err
				return
			}
		}
	}()
	select {
	case err = <-got:
		if err != nil {
			f.Close()
			return nil, &os.PathError{Op: "lock", Path: path, Err: err}
		}
		return f, nil
	case <-ctx.Done():
		go func() { // when its turn comes, it is nobody's
			<-got
			f.Close()
		}()
		return nil, ctx.Err()
	}
}

// trim takes away what belongs to this machine or to no image.
func trim(root string, src sources) error {
	for _, empty := range []string{"dev", "proc", "sys", "run", "tmp", "var/tmp", "var/log", "var/cache/apt", "var/lib/apt/lists", "boot"} {
		list, err := os.ReadDir(filepath.Join(root, empty))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range list {
			if err := os.RemoveAll(filepath.Join(root, empty, e.Name())); err != nil {
				return err
			}
		}
	}
	gone := []string{"etc/resolv.conf", "etc/hostname", "etc/machine-id", "var/lib/dbus/machine-id", "var/cache/debconf/config.dat-old",
		"var/cache/debconf/templates.dat-old", "var/lib/dpkg/status-old", "var/lib/dpkg/diversions-old"}
	// Users may install into the image's Python with pip: it is theirs.
	marks, err := filepath.Glob(filepath.Join(root, "usr/lib/python3*/EXTERNALLY-MANAGED"))
	if err != nil {
		return err
	}
	for _, m := range marks {
		rel, err := filepath.Rel(root, m)
		if err != nil {
			return err
		}
		gone = append(gone, rel)
	}
	for _, f := range gone {
		if err := os.Remove(filepath.Join(root, f)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	// Proxies and their passwords were in here.
	conf := filepath.Join(root, "etc/apt/apt.conf.d/99mmdebstrap")
	if err := os.WriteFile(conf, []byte("Apt::Install-Recommends \"false\";\n"), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "etc/apt/sources.list"), []byte(src.list(false)), 0o644)
}

// read reports the tool's progress and returns its last lines.
func (p *parser) read(r io.Reader) (last []string) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	sc.Split(scanLines)
	for sc.Scan() {
		l := strings.TrimSpace(sc.Text())
		if l == "" {
			continue
		}
		if len(last) == tailLines {
			last = append(last[:0], last[1:]...)
		}
		last = append(last, l)
		p.line(l)
	}
	_, _ = io.Copy(io.Discard, r) // a line too long must not stop the tool
	return last
}

// scanLines is bufio.ScanLines that also ends a line at a carriage return.
func scanLines(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if i := bytes.IndexAny(data, "\r\n"); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

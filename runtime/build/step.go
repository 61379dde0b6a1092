package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/runtime"
)

// job is one step to run.
type job struct {
	workspace, key, title string
	serial                uint64
	step                  Step
	layers                []runtime.Layer
	env                   []string
}

// stopTime bounds the removal of a step's container.
const stopTime = time.Minute

// run executes a step in a container and imports what it wrote.
func (b *Builder) run(ctx context.Context, j job, f *flight) (root string, err error) {
	dir, mounts, env, err := b.cfg.Host.prepare()
	if err != nil {
		return "", fmt.Errorf("settings of this machine: %w", err)
	}
	defer os.RemoveAll(dir)
	spec := runtime.Spec{
		ID:        fmt.Sprintf("build-%s-%d", j.key[:12], j.serial),
		Workspace: j.workspace, Layers: j.layers, Hostname: "build",
		Env: append(env, j.env...), Mounts: mounts, Limits: b.cfg.Limits,
	}
	c, err := b.cfg.Engine.Start(ctx, spec)
	if err != nil {
		return "", fmt.Errorf("start container: %w", err)
	}
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		if serr := c.Stop(stop, 0); serr != nil {
			b.cfg.Log.Warn("stop build container", "container", spec.ID, "err", serr)
		}
	}()
	lines := &lineWriter{say: f.say}
	p, err := c.Exec(ctx, runtime.ProcessSpec{Args: j.step.args(), Cwd: "/", Output: lines.write})
	if err != nil {
		return "", b.failed(j, f, err.Error())
	}
	select {
	case <-p.Done():
	case <-c.Done():
		return "", b.failed(j, f, "its container ended: "+string(c.End().Reason))
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return "", b.failed(j, f, fmt.Sprintf("still running after %s", b.cfg.StepTime))
		}
		return "", ctx.Err()
	}
	lines.flush()
	if code := p.ExitCode(); code != 0 {
		why := fmt.Sprintf("exit code %d", code)
		if u, err := c.Usage(ctx); err == nil && u.OOMKills > 0 {
			why += ", out of memory"
		}
		return "", b.failed(j, f, why)
	}
	err = b.cfg.Engine.(runtime.Differ).Diff(ctx, spec.ID, func(dir string) error {
		root, err = b.cfg.Import(ctx, dir, skip)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("keep what it wrote: %w", err)
	}
	return root, nil
}

// failed is a step's failure as its user gets to see it.
func (b *Builder) failed(j job, f *flight, why string) error {
	msg := fmt.Sprintf("image %s: %s", j.title, why)
	if tail := f.last(); len(tail) > 0 {
		msg += "\n  " + strings.Join(tail, "\n  ")
	}
	hint := "the lines above are the command's last; mend it in the Image and run again"
	if j.step.Kind == Pip {
		hint = "check the names and versions in python_packages; pip's last lines are above"
	}
	return fault.New(fault.BuildFailed, msg, hint)
}

// skip leaves out what is no part of an image: mount points of ours, what
// exists at run time only, and caches.
func skip(path string) bool {
	for _, p := range []string{"run", "tmp", "proc", "sys", "dev", "var/tmp", "root/.cache", "var/cache/apt", "var/lib/apt/lists",
		"etc/resolv.conf", "etc/hostname", "etc/hosts"} {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

// lineWriter cuts output into lines. stdout and stderr are taken as one.
type lineWriter struct {
	say func(string)
	buf []byte
}

// maxLine bounds a line in bytes; progress bars without an end are cut there.
const maxLine = 4 << 10

func (w *lineWriter) write(_ int, p []byte) {
	for _, c := range p {
		if c == '\n' || c == '\r' || len(w.buf) == maxLine {
			w.flush()
		}
		if c != '\n' && c != '\r' {
			w.buf = append(w.buf, c)
		}
	}
}

func (w *lineWriter) flush() {
	if l := strings.TrimRight(strings.ToValidUTF8(string(w.buf), "\ufffd"), " \t"); l != "" {
		w.say(l)
	}
	w.buf = w.buf[:0]
}

// Package python finds the interpreter that a user's program runs with, and
// makes sure that `import beam` there gives this project's package.
//
//	py, err := python.Find(getenv, override)
//	path, err := py.SDK(ctx, getenv, embedded) // what to put before PYTHONPATH
//
// It starts the interpreter once, to ask which `beam` it would import.
package python

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
)

// probeTimeout bounds the one start of the interpreter that asks for `beam`.
const probeTimeout = 30 * time.Second

// Interpreter is a Python that can be started.
type Interpreter struct{ Path string }

// Find gives the interpreter: override when it is set, else the active virtual
// environment's, else python3 in PATH.
func Find(getenv func(string) string, override string) (Interpreter, error) {
	if override != "" {
		p, err := lookPath(override, getenv("PATH"))
		if err != nil {
			return Interpreter{}, fault.New(fault.NotFound, fmt.Sprintf("no Python at %s", override), "check --python or BEAM_PYTHON")
		}
		return Interpreter{p}, nil
	}
	if venv := getenv("VIRTUAL_ENV"); venv != "" {
		p := filepath.Join(venv, "bin", "python3")
		if executable(p) {
			return Interpreter{p}, nil
		}
		return Interpreter{}, fault.New(fault.NotFound, fmt.Sprintf("VIRTUAL_ENV is %s, but there is no %s", venv, p),
			"make it again with `python3 -m venv`, or unset VIRTUAL_ENV")
	}
	p, err := lookPath("python3", getenv("PATH"))
	if err != nil {
		return Interpreter{}, fault.New(fault.NotFound, "no python3 in PATH", "install Python 3.9 or newer (Debian: apt-get install python3), or say which with --python")
	}
	return Interpreter{p}, nil
}

// lookPath is exec.LookPath with a PATH that is a value, not the process's.
func lookPath(name, path string) (string, error) {
	if strings.Contains(name, "/") {
		if executable(name) {
			return filepath.Abs(name)
		}
		return "", exec.ErrNotFound
	}
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			continue // the current folder is never meant
		}
		if p := filepath.Join(dir, name); executable(p) {
			return filepath.Abs(p)
		}
	}
	return "", exec.ErrNotFound
}

func executable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// probe prints the folder of the `beam` that would be imported, without
// importing it.
const probe = `import importlib.util as u
s = u.find_spec("beam")
print(((list(s.submodule_search_locations or []) or [""])[0]) if s else "")`

// SDK gives the folder that has to stand first in PYTHONPATH, or "" when the
// interpreter finds our package by itself. The order: BEAM_SDK_PATH, what is
// installed, the copy inside this program (embedded; may be nil).
func (i Interpreter) SDK(ctx context.Context, environ []string, getenv func(string) string, embedded func() (string, error)) (string, error) {
	if dir := getenv("BEAM_SDK_PATH"); dir != "" {
		if !ours(filepath.Join(dir, "beam")) {
			return "", fault.New(fault.NotFound, fmt.Sprintf("BEAM_SDK_PATH is %s, but there is no beam package for running files in it", dir),
				"it has to be the folder above beam/, in this repository sdk/python")
		}
		return dir, nil
	}
	found, err := i.find(ctx, environ)
	if err != nil {
		return "", err
	}
	if ours(found) {
		return "", nil
	}
	if embedded != nil {
		dir, err := embedded()
		if err == nil && ours(filepath.Join(dir, "beam")) {
			return dir, nil
		}
		if err != nil {
			return "", fault.Wrap(fault.Internal, err, "unpack the Python package", "set BEAM_SDK_PATH to a folder that has it")
		}
	}
	message := "the Python package `beam` of this project is not installed for " + i.Path
	if found != "" {
		message = fmt.Sprintf("%s imports another package called beam (%s)", i.Path, found)
	}
	return "", fault.New(fault.NotFound, message, "install it into this environment (`pip install ./sdk/python` in the repository), or set BEAM_SDK_PATH=sdk/python")
}

// ours tells our package from others of that name by the module that `beam
// run` starts.
func ours(dir string) bool {
	if dir == "" {
		return false
	}
	st, err := os.Stat(filepath.Join(dir, "run.py"))
	return err == nil && st.Mode().IsRegular()
}

func (i Interpreter) find(ctx context.Context, environ []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	c := exec.CommandContext(ctx, i.Path, "-c", probe)
	c.Env = environ
	c.WaitDelay = time.Second
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err == nil {
		return strings.TrimSpace(string(out)), nil
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		text := strings.TrimSpace(stderr.String())
		if n := strings.LastIndexByte(text, '\n'); n >= 0 {
			text = text[n+1:]
		}
		return "", fault.New(fault.Failed, fmt.Sprintf("%s does not start: %s", i.Path, text), "try it by hand: "+i.Path+" -c pass")
	}
	return "", fault.Wrap(fault.Failed, err, "start "+i.Path, "")
}

// Prepend gives environ with dir first in PYTHONPATH.
func Prepend(environ []string, dir string) []string {
	if dir == "" {
		return environ
	}
	value := dir
	out := make([]string, 0, len(environ)+1)
	for _, kv := range environ {
		if v, ok := strings.CutPrefix(kv, "PYTHONPATH="); ok {
			if v != "" {
				value = dir + string(os.PathListSeparator) + v
			}
			continue
		}
		out = append(out, kv)
	}
	return append(out, "PYTHONPATH="+value)
}

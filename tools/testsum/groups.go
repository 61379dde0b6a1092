package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const module = "github.com/beammesh/beammesh"

// Limits of one package's tests and of one group: a hang becomes a failure
// with goroutine stacks instead of a silent pipeline.
const (
	packageTimeout = 10 * time.Minute
	e2eTimeout     = 40 * time.Minute
	pytestTimeout  = 20 * time.Minute
	waitDelay      = 10 * time.Second
)

// heavy are modules whose packages take minutes to compile with the race
// detector; tests that link them run without it.
var heavy = []string{"github.com/libp2p/go-libp2p/", "github.com/libp2p/go-libp2p", "github.com/containerd/containerd/v2/"}

// command is exec.CommandContext that interrupts first and kills later, with
// everything the command started.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGINT) }
	c.WaitDelay = waitDelay
	return c
}

// useRace is the flag -race.
var useRace = true

// goTests runs the tests of all packages but e2e.
func goTests(ctx context.Context, r *report, packages []string) error {
	race, plain, err := split(ctx, packages)
	if err != nil {
		return err
	}
	if !useRace {
		return runGo(ctx, r, append(append([]string{"-timeout", packageTimeout.String()}, race...), plain...))
	}
	if len(race) > 0 {
		r.note("%d packages with the race detector", len(race))
		if err := runGo(ctx, r, append([]string{"-race", "-timeout", packageTimeout.String()}, race...)); err != nil {
			return err
		}
	}
	if len(plain) > 0 {
		r.note("%d packages without it, because they link libp2p or containerd", len(plain))
		return runGo(ctx, r, append([]string{"-timeout", packageTimeout.String()}, plain...))
	}
	return nil
}

// split divides the packages that have tests by what their tests link.
func split(ctx context.Context, packages []string) (race, plain []string, err error) {
	if len(packages) == 0 {
		packages = []string{"./..."}
	}
	c := command(ctx, "go", append([]string{"list", "-test", "-f", `{{.ImportPath}}{{"\t"}}{{join .Deps " "}}`}, packages...)...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		return nil, nil, fmt.Errorf("go list: %w\n%s", err, stderr.String())
	}
	for _, line := range strings.Split(string(out), "\n") {
		name, deps, _ := strings.Cut(line, "\t")
		pkg, isTest := strings.CutSuffix(name, ".test")
		if !isTest || pkg == module+"/e2e" || strings.HasPrefix(pkg, module+"/e2e/") {
			continue
		}
		if slices.ContainsFunc(strings.Fields(deps), func(d string) bool {
			return slices.ContainsFunc(heavy, func(h string) bool { return strings.HasPrefix(d, h) })
		}) {
			plain = append(plain, pkg)
		} else {
			race = append(race, pkg)
		}
	}
	return race, plain, nil
}

// runGo runs `go test -json` and reports what it says.
func runGo(ctx context.Context, r *report, args []string) error {
	c := command(ctx, "go", append([]string{"test", "-json"}, args...)...)
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	c.Stderr = &stderr
	if err := c.Start(); err != nil {
		return err
	}
	before := r.failures()
	rerr := newGoResults(r).read(out)
	err = c.Wait()
	if rerr != nil {
		return rerr
	}
	// Its exit status is no news when a failed test was reported.
	if err != nil && r.failures() == before {
		return fmt.Errorf("go test: %w\n%s", err, stderr.String())
	}
	return nil
}

func (r *report) failures() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, x := range r.all {
		if x.State == failed {
			n++
		}
	}
	return n
}

// venv is where tools/setup.sh installs pytest and the SDK.
const venv = ".cache/venv"

// pythonTests runs the SDK's tests and type check.
func pythonTests(ctx context.Context, r *report, _ []string) error {
	if _, err := os.Stat(filepath.Join(venv, "bin", "pytest")); err != nil {
		return errors.New("no pytest in " + venv + ": run tools/setup.sh")
	}
	bin, err := filepath.Abs(filepath.Join(venv, "bin"))
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "testsum-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(ctx, pytestTimeout)
	defer cancel()
	xmlFile := filepath.Join(dir, "junit.xml")
	c := command(ctx, filepath.Join(bin, "pytest"), "-q", "--junitxml="+xmlFile)
	c.Dir = "sdk/python"
	var output bytes.Buffer
	c.Stdout, c.Stderr = &output, &output
	runErr := c.Run()
	before := r.failures()
	f, err := os.Open(xmlFile)
	if err != nil {
		return fmt.Errorf("pytest: %v\n%s", runErr, output.String())
	}
	defer f.Close()
	if err := readJUnit(f, r); err != nil {
		return err
	}
	if runErr != nil && r.failures() == before {
		return fmt.Errorf("pytest: %w\n%s", runErr, output.String())
	}
	step(ctx, r, "python types", "sdk/python", filepath.Join(bin, "mypy"))
	return nil
}

// endToEnd runs e2e as root, through sudo when we are not.
func endToEnd(ctx context.Context, r *report, _ []string) error {
	if _, err := os.Stat("bin/beam"); err != nil {
		return errors.New("no bin/beam: run `make build`")
	}
	args := []string{"-count=1", "-p=1", "-timeout", e2eTimeout.String()}
	if os.Geteuid() != 0 {
		sudo, err := exec.LookPath("sudo")
		if err != nil {
			return errors.New("the end-to-end tests need root, and there is no sudo")
		}
		args = append(args, "-exec", sudo+" -n -E")
	}
	return runGo(ctx, r, append(args, "./e2e/..."))
}

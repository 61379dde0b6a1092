package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// staticcheck is where tools/setup.sh builds it, at the version written there.
const staticcheck = ".cache/bin/staticcheck"

// pure are the packages that staticcheck reads: it analyses everything they
// link, which takes minutes for libp2p and containerd.
var pure = []string{"./cli", "./cli/client", "./cli/interrupt", "./cli/output", "./cli/python", "./cli/sim", "./internal/...", "./proto/fault/...",
	"./scheduler/...", "./simulations/...", "./tools/..."}

// lint checks form: each check counts as one test.
func lint(ctx context.Context, r *report, _ []string) error {
	gofmt(ctx, r)
	step(ctx, r, "go vet", ".", "go", "vet", "./...")
	if _, err := os.Stat(staticcheck); err != nil {
		return errors.New("no " + staticcheck + ": run tools/setup.sh")
	}
	var present []string
	for _, p := range pure {
		if _, err := os.Stat(strings.TrimSuffix(p, "/...")); err == nil {
			present = append(present, p)
		}
	}
	step(ctx, r, "staticcheck", ".", staticcheck, present...)
	return nil
}

// gofmt looks at the files that git knows or would add.
func gofmt(ctx context.Context, r *report) {
	out, err := command(ctx, "git", "ls-files", "-co", "--exclude-standard", "*.go").Output()
	if err != nil {
		r.add(result{Name: "gofmt", State: failed, Output: fmt.Sprintf("git ls-files: %v", err)})
		return
	}
	var files []string
	for _, f := range strings.Fields(string(out)) {
		if _, err := os.Stat(f); err == nil { // not deleted
			files = append(files, f)
		}
	}
	bad, err := command(ctx, "gofmt", append([]string{"-l"}, files...)...).CombinedOutput()
	if err != nil || len(bad) > 0 {
		r.add(result{Name: "gofmt", State: failed, Output: "run gofmt -w on:\n" + string(bad)})
		return
	}
	r.add(result{Name: "gofmt", State: passed})
}

// step runs a command that counts as one test.
func step(ctx context.Context, r *report, name, dir, program string, args ...string) {
	c := command(ctx, program, args...)
	c.Dir = dir
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		r.add(result{Name: name, State: passed})
		r.note("ok   %s", name)
	case errors.As(err, &exit):
		r.add(result{Name: name, State: failed, Output: out.String()})
	default:
		r.add(result{Name: name, State: failed, Output: err.Error()})
	}
}

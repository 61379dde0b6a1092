package demotest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestListsAllThatIsMissing runs the demo where there is a shell and little
// else: it has to tell its plan, then everything that is missing at once, each
// with what mends it, and to write nothing.
func TestListsAllThatIsMissing(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	// A copy, so that what it would write is seen.
	repo := t.TempDir()
	for _, name := range []string{"tools/demo.sh", "tools/setup.sh", "go.mod"} {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(repo, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, b, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	bin := t.TempDir()
	for _, name := range []string{"sh", "dirname", "date", "id", "cat", "uname", "grep", "awk", "df", "test", "tail", "head", "env"} {
		p, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(p, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "sh"), filepath.Join(repo, "tools/demo.sh"))
	cmd.Env = []string{"PATH=" + bin, "HOME=" + t.TempDir(), "BEAM_DEMO_DIR=" + filepath.Join(t.TempDir(), "mesh")}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("the demo ended with %v, want status 1\n%s%s", err, &out, &errs)
	}
	for _, want := range []string{"OS packages  git make", "base image", "undo", "dev down"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the plan does not say %q:\n%s", want, &out)
		}
	}
	for _, want := range []string{
		"- git\n      apt-get install git\n",
		"- Python 3\n      apt-get install python3 python3-venv\n",
		"- apt-get, to install: git make",
	} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("the list of what is missing lacks %q:\n%s", want, &errs)
		}
	}
	made, err := os.ReadDir(repo)
	if err != nil {
		t.Fatal(err)
	}
	if len(made) != 2 {
		t.Errorf("the demo wrote into the repository before anything else: %v", made)
	}
}

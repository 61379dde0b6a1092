package sim_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The policy "waits" never ends by itself: with one job, a sweep that comes to
// it stands still there, at a place that is the same every time.
const waits = "experiment mmc\nset customers 100\npolicy fifo lifo waits\nseeds 1..3\n"

// sweep is a running `beam sim sweep` of the scenario waits.
type process struct {
	cmd    *exec.Cmd
	dir    string
	stderr bytes.Buffer // what came after the line that start waited for
	drain  chan struct{}
}

// start runs the program until it says line on stderr.
func start(t *testing.T, dir, line string, args ...string) *process {
	t.Helper()
	program, err := exec.LookPath("beam")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	p := &process{cmd: exec.CommandContext(ctx, program, args...), dir: dir, drain: make(chan struct{})}
	p.cmd.Dir = dir
	p.cmd.Env = append(os.Environ(), "BEAM_TRACES=")
	pipe, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(pipe)
	for {
		got, err := in.ReadString('\n')
		if err != nil {
			t.Fatalf("%s ended before it said %q", strings.Join(args, " "), line)
		}
		if strings.TrimSpace(got) == line {
			break
		}
	}
	go func() {
		defer close(p.drain)
		_, _ = p.stderr.ReadFrom(in)
	}()
	return p
}

// end waits for the end and gives the exit status, -1 after a signal that kills.
func (p *process) end(t *testing.T) int {
	t.Helper()
	<-p.drain
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode()
}

func folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "w.sim"), []byte(waits), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func lines(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte("\n"))
}

// resume does the scenario without the policy that waits; four runs are left.
func resume(t *testing.T, dir string) {
	t.Helper()
	p := start(t, dir, "2 runs are in w.jsonl already, 4 to go", "sim", "sweep", "w.sim", "--policy", "fifo,lifo")
	if status := p.end(t); status != 0 {
		t.Fatalf("the second sweep ended with %d:\n%s", status, p.stderr.String())
	}
	if n := lines(t, filepath.Join(dir, "w.jsonl")); n != 6 {
		t.Errorf("%d results, want 6", n)
	}
}

func TestInterruptedSweep(t *testing.T) {
	dir := folder(t)
	p := start(t, dir, "2 of 9 runs", "sim", "sweep", "w.sim", "--jobs", "1")
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if status := p.end(t); status != 130 {
		t.Errorf("ended with %d, want 130", status)
	}
	const want = "error: interrupted, 2 of 9 runs done and kept in w.jsonl\nhint: the same command goes on from there\n"
	if got := p.stderr.String(); got != want {
		t.Errorf("said\n%swant\n%s", got, want)
	}
	resume(t, dir)
}

func TestKilledSweep(t *testing.T) {
	dir := folder(t)
	p := start(t, dir, "2 of 9 runs", "sim", "sweep", "w.sim", "--jobs", "1")
	// While it runs, nobody else may write the file, and anybody may read it.
	other := start(t, dir, "error: w.jsonl is being written by another sweep", "sim", "sweep", "w.sim")
	if status := other.end(t); status != 5 {
		t.Errorf("a second sweep of the same file ended with %d, want 5", status)
	}
	report := start(t, dir, "w.csv: 2 runs", "sim", "report", "w.jsonl", "-o", "w.csv")
	if status := report.end(t); status != 0 {
		t.Errorf("a report beside the sweep ended with %d", status)
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if status := p.end(t); status != -1 {
		t.Errorf("ended with %d, want to be killed", status)
	}
	if n := lines(t, filepath.Join(dir, "w.jsonl")); n != 2 {
		t.Errorf("%d results after the kill, want 2", n)
	}
	resume(t, dir)
}

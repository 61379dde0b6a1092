package cli_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/beammesh/beammesh/cli"
)

// fakeEnv is the environment of a command that runs inside the test.
func fakeEnv(t *testing.T, stdout, stderr io.Writer) cli.Env {
	t.Helper()
	host, port, stop, err := serveFake()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return cli.Env{
		Stdin: strings.NewReader(""), Stdout: stdout, Stderr: stderr,
		Environ: []string{"HOME=" + t.TempDir(), "GATEWAY_HOST=" + host, "GATEWAY_PORT=" + port, "BEAM_TOKEN=" + tokenGood},
		Now:     func() time.Time { return now },
	}
}

func TestCtrlCOnLogsOnlyDetaches(t *testing.T) {
	out, in := io.Pipe()
	var stderr bytes.Buffer
	env := fakeEnv(t, in, &stderr)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	status := make(chan int, 1)
	go func() {
		status <- cli.New(cli.Roles{}).Run(ctx, []string{"logs", "-f", "task-3"}, env)
		in.Close()
	}()
	buf := make([]byte, 1024)
	if _, err := out.Read(buf); err != nil { // it is following now
		t.Fatal(err)
	}
	cancel()
	go func() { _, _ = io.Copy(io.Discard, out) }() // ends with in.Close
	select {
	case got := <-status:
		if got != 130 {
			t.Errorf("exit status %d, want 130", got)
		}
	case <-time.After(time.Minute):
		t.Fatal("still following after Ctrl-C")
	}
	for _, want := range []string{"error: detached", "task task-3 goes on", "beam task stop task-3"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("stderr lacks %q:\n%s", want, stderr.String())
		}
	}
}

func TestQuestionsOnATerminal(t *testing.T) {
	for _, c := range []struct {
		answer string
		status int
	}{{"y\n", 0}, {"YES\n", 0}, {"n\n", 130}, {"\n", 130}, {"", 130}} {
		var stdout, stderr bytes.Buffer
		env := fakeEnv(t, &stdout, &stderr)
		env.Stdin, env.StdinTTY, env.StderrTTY = strings.NewReader(c.answer), true, true
		got := cli.New(cli.Roles{}).Run(t.Context(), []string{"token", "delete", "tok-2"}, env)
		if got != c.status || !strings.Contains(stderr.String(), "revoke tok-2? [y/N]") {
			t.Errorf("answer %q: status %d, want %d; stderr %q", c.answer, got, c.status, stderr.String())
		}
		if deleted := strings.Contains(stdout.String(), "tok-2"); deleted != (c.status == 0) {
			t.Errorf("answer %q: deleted %v", c.answer, deleted)
		}
	}
}

// Ctrl-C before an answer ends the command.
func TestInterruptEndsACall(t *testing.T) {
	var stdout, stderr bytes.Buffer
	env := fakeEnv(t, &stdout, &stderr)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := cli.New(cli.Roles{}).Run(ctx, []string{"task", "list"}, env); got != 130 {
		t.Errorf("exit status %d, want 130; stderr %q", got, stderr.String())
	}
}

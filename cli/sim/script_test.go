package sim_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/beammesh/beammesh/cli"
	"github.com/beammesh/beammesh/cli/sim"
	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/simtest"
)

var update = flag.Bool("update", false, "rewrite the expected outputs in testdata")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"beam": beam})
}

// beam is the command line with `sim` and, beside the real experiments, the one
// for tests.
func beam() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	experiments := append([]simulations.Experiment{simtest.Queue{}}, sim.Experiments()...)
	env := cli.System()
	if os.Getenv("TEST_TTY") != "" {
		env.StdoutTTY, env.StderrTTY = true, true
	}
	roles := cli.Roles{Version: "v1.2.3", Sim: sim.Command(experiments)}
	os.Exit(cli.New(roles).Run(ctx, os.Args[1:], env))
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("LANG", "C.UTF-8")
			e.Setenv("BEAM_TRACES", "")
			e.Setenv("GORACE", "atexit_sleep_ms=0") // else each command waits a second
			program, err := exec.LookPath("beam")   // put there by testscript.Main
			e.Setenv("BEAM", program)
			return err
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){"code": code, "timeless": timeless},
	})
}

// code STATUS COMMAND… runs a command that has to end with that status.
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code STATUS COMMAND…")
	}
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit interface{ ExitCode() int }
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("%s ended with %d, want %s", strings.Join(args[1:], " "), got, args[0])
	}
}

// took is what differs between two runs of a command.
var took = regexp.MustCompile(`took [0-9.]+ (µs|ms|s)`)

// timeless FILE copies what was last printed, stdout or stderr, without times.
func timeless(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: timeless stdout|stderr FILE")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), took.ReplaceAll([]byte(ts.ReadFile(args[0])), []byte("took T")), 0o600))
}

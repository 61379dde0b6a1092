package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/beammesh/beammesh/cli"
	"github.com/beammesh/beammesh/proto/fault"
)

var update = flag.Bool("update", false, "rewrite the expected outputs in testdata")

// now is the time at which every script runs.
var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"beam": beam})
}

// beam is the program under test: the real command line with roles that say
// what they were asked to do.
func beam() {
	env := cli.System()
	env.Now = func() time.Time { return now }
	if os.Getenv("TEST_TTY") != "" {
		env.StdoutTTY, env.StderrTTY = true, true
	}
	roles := cli.Roles{Version: "1.2.3"}
	if os.Getenv("TEST_NO_ROLES") == "" {
		roles.NodeUp = func(_ context.Context, f cli.NodeFlags) error { return startFake("", f) }
		roles.NodeJoin = func(_ context.Context, ticket string, f cli.NodeFlags) error { return startFake(ticket, f) }
		roles.Doctor = doctorFake
		roles.SDK = func() (string, error) { return os.Getenv("TEST_SDK"), nil }
		roles.Dev = cli.DevRoles{
			Up: func(_ context.Context, f cli.DevFlags, progress cli.Progress) error {
				progress(fmt.Sprintf("%+v", f))
				return nil
			},
			Down: func(_ context.Context, f cli.DevFlags, progress cli.Progress) error {
				progress("removed 3 nodes")
				return nil
			},
			Env: func(_ context.Context, f cli.DevFlags) ([]string, error) {
				if f.Node > 3 {
					return nil, fault.New(fault.NotFound, fmt.Sprintf("no node %d, there are 3", f.Node), "")
				}
				return []string{fmt.Sprintf("GATEWAY_HOST=10.77.0.%d", f.Node), "GATEWAY_PORT=1993", "BEAM_TOKEN=it's"}, nil
			},
			Status: func(_ context.Context, f cli.DevFlags) (cli.DevStatus, error) {
				switch f.Dir {
				case "/none":
					return cli.DevStatus{}, fault.New(fault.NotFound, "no dev mesh is up", "start one: 'beam dev up'")
				case "/half":
					return cli.DevStatus{Name: "beamdev", Dir: "/half", Nodes: []cli.DevNode{}}, nil
				}
				return cli.DevStatus{Name: "beamdev", Dir: "/x", Ready: true, Nodes: []cli.DevNode{
					{Number: 1, Name: "node1", Up: true, Addr: "10.77.0.11", GRPC: "10.77.0.11:1993", HTTP: "10.77.0.11:1994", PID: 42, Log: "/x/n1.log"},
					{Number: 2, Name: "node2", Addr: "10.77.0.12", GRPC: "10.77.0.12:1993", HTTP: "10.77.0.12:1994", GPUs: "H100:2", Log: "/x/n2.log"}}}, nil
			},
		}
	}
	os.Exit(cli.New(roles).Run(context.Background(), os.Args[1:], env))
}

// startFake is a node that starts, tells so and ends.
func startFake(ticket string, f cli.NodeFlags) error {
	if ticket == "used" {
		return fault.New(fault.Expired, "the ticket was already used", "get a new one with `beam node invite` on box1")
	}
	started := f.Started
	f.Started = nil
	note, err := json.Marshal(f)
	if err != nil {
		return err
	}
	s := cli.NodeStarted{ID: "12D3Koo1", Name: "box1", MeshID: "m1", Members: 1, Ticket: "beam1ticket", Token: os.Getenv("TEST_NODE_TOKEN"),
		GRPC: f.GRPC, HTTP: f.HTTP, Worker: true}
	if os.Getenv("TEST_FLAGS") != "" {
		s.Notes = []string{string(note)}
	}
	if ticket != "" {
		s.Members, s.Ticket = 3, ""
		f.Progress("fetching the base image: 50 %")
	}
	return started(s)
}

func doctorFake(_ context.Context, _ cli.NodeFlags, report func(cli.Check)) error {
	report(cli.Check{Name: "kernel", State: cli.CheckOK, Detail: "6.1"})
	report(cli.Check{Name: "udp", State: cli.CheckWarn, Detail: "receive buffer 208 KiB", Fix: "sysctl -w net.core.rmem_max=7500000"})
	if os.Getenv("TEST_DOCTOR_FAILS") != "" {
		report(cli.Check{Name: "fuse", State: cli.CheckFail, Detail: "no /dev/fuse", Fix: "modprobe fuse"})
	}
	if os.Getenv("TEST_DOCTOR_BREAKS") != "" {
		return errors.New("cannot read /proc")
	}
	return nil
}

// TestScripts runs each testdata/*.txtar against a node of its own whose data
// is fixed (fake_test.go).
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			host, port, stop, err := serveFake()
			if err != nil {
				return err
			}
			e.Defer(stop)
			e.Setenv("HOME", e.WorkDir+"/home")
			if err := os.Mkdir(e.WorkDir+"/home", 0o700); err != nil {
				return err
			}
			e.Setenv("GATEWAY_HOST", host)
			e.Setenv("GATEWAY_PORT", port)
			e.Setenv("PORT", port)
			e.Setenv("BEAM_TOKEN", tokenGood)
			e.Setenv("LANG", "C.UTF-8")
			e.Setenv("GORACE", "atexit_sleep_ms=0") // else each command waits a second
			program, err := exec.LookPath("beam")   // put there by testscript.Main
			e.Setenv("BEAM", program)
			return err
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code":    code,
			"plain":   plain,
			"painted": painted,
		},
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

// plain fails when what was last printed holds an escape sequence, painted
// when it holds none.
func plain(ts *testscript.TestScript, neg bool, args []string) {
	if strings.Contains(ts.ReadFile("stdout")+ts.ReadFile("stderr"), "\x1b") {
		ts.Fatalf("escape sequences in the output")
	}
}

func painted(ts *testscript.TestScript, neg bool, args []string) {
	if !strings.Contains(ts.ReadFile("stdout")+ts.ReadFile("stderr"), "\x1b[") {
		ts.Fatalf("no colours in the output")
	}
}

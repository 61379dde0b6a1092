// Command beam is the whole of BeamMesh in one program: the command line, the
// node, and the small helper roles that a node starts itself as.
//
// Only this package handles signals, and only this package joins the command
// line to the node (roles.go).
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/beammesh/beammesh/cli"
	"github.com/beammesh/beammesh/cli/interrupt"
	"github.com/beammesh/beammesh/proto/fault"
)

func main() {
	// A helper role (shim, init, …) is chosen by the first argument and never
	// sees the command line or our signal handling.
	if run, ok := helperRole(os.Args); ok {
		os.Exit(run())
	}
	os.Exit(command())
}

// command runs one command. The first SIGINT or SIGTERM asks it to end in
// order (a node drains); a second one ends the process at once.
func command() int {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	ctx, stop := interrupt.Context(context.Background(), signals, func() {
		fmt.Fprintln(os.Stderr, "interrupted twice: ended at once")
		os.Exit(fault.Cancelled.ExitStatus())
	})
	defer stop()
	return cli.New(roles()).Run(ctx, os.Args[1:], cli.System())
}

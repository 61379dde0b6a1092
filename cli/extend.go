package cli

import (
	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli/output"
)

// What commands of other packages (Roles.Sim) get of the App. They are valid
// while a command runs.

// Env is the process around the command.
func (a *App) Env() Env { return a.env }

// Version is the version of this program.
func (a *App) Version() string { return a.roles.Version }

// Printer writes data to stdout in the format asked for.
func (a *App) Printer() (*output.Printer, error) { return a.printer() }

// Progress writes one line about what goes on to stderr, unless programs read.
func (a *App) Progress(format string, args ...any) { a.progress(format, args...) }

// Style is how to paint on stderr.
func (a *App) Style() output.Style { return a.style(a.env.StderrTTY) }

// Usage makes the error of a wrong command line.
func Usage(cmd *cobra.Command, message string) error { return usage(cmd, message) }

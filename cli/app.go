package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/cli/client"
	"github.com/beammesh/beammesh/cli/output"
	"github.com/beammesh/beammesh/proto/fault"
)

// Env is the process around a command.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Environ        []string // KEY=VALUE
	Now            func() time.Time
	// Terminals: colours and bars need StdoutTTY, questions need both others.
	StdinTTY, StdoutTTY, StderrTTY bool
	// Exec replaces the process; it returns only with an error.
	Exec func(path string, args, environ []string) error
}

// System is the real process.
func System() Env {
	tty := func(f *os.File) bool {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		return err == nil
	}
	return Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Environ: os.Environ(), Now: time.Now,
		StdinTTY: tty(os.Stdin), StdoutTTY: tty(os.Stdout), StderrTTY: tty(os.Stderr),
		Exec: unix.Exec,
	}
}

// Getenv gives the last value of a variable, as exec does.
func (e Env) Getenv(key string) string {
	for i := len(e.Environ) - 1; i >= 0; i-- {
		if k, v, ok := strings.Cut(e.Environ[i], "="); ok && k == key {
			return v
		}
	}
	return ""
}

// App is the command line. It is used for one Run at a time.
type App struct {
	roles Roles
	env   Env
	flags globalFlags
	conn  *client.Client
}

// globalFlags are those of every command.
type globalFlags struct {
	context, host, port, token string
	output                     string
	json                       bool
	yes                        bool
}

// New makes the command line.
func New(roles Roles) *App { return &App{roles: roles} }

// errSilent ends with status 1 after the command has printed all there is to say.
var errSilent = errors.New("")

// Run runs one command and gives the process's exit status.
func (a *App) Run(ctx context.Context, args []string, env Env) int {
	a.env = env
	a.flags = globalFlags{}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	err := root.ExecuteContext(ctx)
	if a.conn != nil {
		a.conn.Close()
		a.conn = nil
	}
	if err == nil {
		return 0
	}
	if errors.Is(err, errSilent) {
		return 1
	}
	f := a.explainError(ctx, err)
	a.printError(f)
	return f.Code.ExitStatus()
}

// explainError gives err as a fault: those of the flag parser become usage errors.
func (a *App) explainError(ctx context.Context, err error) *fault.Error {
	var f *fault.Error
	if errors.As(err, &f) {
		return f
	}
	if ctx.Err() != nil {
		return fault.New(fault.Cancelled, "interrupted", "")
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fault.From(err)
	}
	return fault.Wrap(fault.Internal, err, "unexpected", "")
}

// printError writes the two lines that every failure ends with, or one JSON
// object when the output is for programs.
func (a *App) printError(f *fault.Error) {
	format, err := a.format()
	if err == nil && format == output.FormatJSON {
		var body struct {
			Error struct {
				Code    fault.Code `json:"code"`
				Message string     `json:"message"`
				Hint    string     `json:"hint,omitempty"`
				Exit    int        `json:"exit_status"`
			} `json:"error"`
		}
		body.Error.Code, body.Error.Message, body.Error.Hint, body.Error.Exit = f.Code, f.Error(), f.Hint, f.Code.ExitStatus()
		e := json.NewEncoder(a.env.Stderr)
		e.SetEscapeHTML(false)
		_ = e.Encode(body)
		return
	}
	s := a.style(a.env.StderrTTY)
	fmt.Fprintf(a.env.Stderr, "%s %s\n", s.Red("error:"), lines(f.Error()))
	if f.Hint != "" {
		fmt.Fprintf(a.env.Stderr, "%s %s\n", s.Cyan("hint:"), lines(f.Hint))
	}
}

// lines cleans text that may have come from another machine, keeping its line
// breaks (the last lines of a failed pip, say).
func lines(s string) string {
	parts := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i := range parts {
		parts[i] = output.Clean(parts[i])
	}
	return strings.Join(parts, "\n")
}

// usage makes the error of a wrong command line.
func usage(cmd *cobra.Command, message string) error {
	return fault.New(fault.Invalid, message, fmt.Sprintf("see `%s --help`", cmd.CommandPath()))
}

// progress writes one line about what goes on to stderr, not to programs.
func (a *App) progress(format string, args ...any) {
	if f, err := a.format(); err == nil && f.Machine() {
		return
	}
	fmt.Fprintf(a.env.Stderr, format+"\n", args...)
}

func (a *App) format() (output.Format, error) {
	if a.flags.json {
		return output.FormatJSON, nil
	}
	if a.flags.output == "" {
		return output.FormatTable, nil
	}
	return output.ParseFormat(a.flags.output)
}

// style is how to paint on a stream that is, or is not, a terminal.
func (a *App) style(tty bool) output.Style {
	s := output.Style{ASCII: true}
	for _, k := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := a.env.Getenv(k); v != "" {
			l := strings.ToLower(v)
			s.ASCII = !strings.Contains(l, "utf-8") && !strings.Contains(l, "utf8")
			break
		}
	}
	s.Color = tty && a.env.Getenv("NO_COLOR") == "" && a.env.Getenv("TERM") != "dumb"
	return s
}

// printer writes data to stdout in the format asked for.
func (a *App) printer() (*output.Printer, error) {
	f, err := a.format()
	if err != nil {
		return nil, err
	}
	return &output.Printer{Out: a.env.Stdout, Format: f, Style: a.style(a.env.StdoutTTY)}, nil
}

// source is where settings come from on this command line.
func (a *App) source() client.Source {
	return client.Source{
		Context: a.flags.context, Host: a.flags.host, Port: a.flags.port, Token: a.flags.token,
		Getenv: a.env.Getenv, ConfigPath: a.configPath(),
	}
}

func (a *App) configPath() string {
	if p := a.env.Getenv("CONFIG_PATH"); p != "" {
		return p
	}
	home := a.env.Getenv("HOME")
	if home == "" {
		return ""
	}
	return client.ConfigPath(home)
}

// connect gives the connection to the node that all of a command's calls use.
func (a *App) connect() (*client.Client, error) {
	if a.conn != nil {
		return a.conn, nil
	}
	s, err := client.Resolve(a.source())
	if err != nil {
		return nil, err
	}
	a.conn = client.New(s)
	return a.conn, nil
}

// confirm asks before something that cannot be undone. Without a terminal it
// refuses and names the flag instead of asking.
func (a *App) confirm(question string) error {
	if a.flags.yes {
		return nil
	}
	if !a.env.StdinTTY || !a.env.StderrTTY {
		return fault.New(fault.Invalid, "not done without a yes: "+question, "add --yes")
	}
	fmt.Fprintf(a.env.Stderr, "%s [y/N] ", question)
	var answer string
	if _, err := fmt.Fscanln(a.env.Stdin, &answer); err != nil {
		answer = ""
	}
	if a := strings.ToLower(answer); a != "y" && a != "yes" {
		return fault.New(fault.Cancelled, "not confirmed, nothing was changed", "")
	}
	return nil
}

package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli/client"
	"github.com/beammesh/beammesh/cli/output"
	"github.com/beammesh/beammesh/cli/python"
	"github.com/beammesh/beammesh/proto/fault"
)

const runLong = `Run a decorated function of a Python file on the mesh and print its result.

Arguments after the function are given to it: NAME=VALUE by name, others by
position. Each is read as JSON when it is JSON, else as text; what begins with
a dash goes after --, or is given with --arg:

  beam run app.py:add 1 2
  beam run app.py:add -- -1 2
  beam run app.py:greet name=Ada times=3

The program runs with the python3 of the active virtual environment, else of
PATH; its output and the steps of the task appear on stderr, the result on
stdout. The first Ctrl-C cancels the task.`

// runOptions are the flags of run and submit.
type runOptions struct {
	python string
	args   []string
	detach bool
}

func (o *runOptions) add(c *cobra.Command) {
	c.Flags().StringVar(&o.python, "python", "", "interpreter (default: BEAM_PYTHON, the virtual environment's, python3)")
	c.Flags().StringArrayVar(&o.args, "arg", nil, "an argument of the function; may be repeated")
	c.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fault.New(fault.Invalid, flagError(err), "arguments of the function that begin with a dash go after --")
	})
}

func (a *App) runCommand() *cobra.Command {
	var o runOptions
	c := &cobra.Command{
		Use: "run FILE:FUNCTION [ARGUMENT…]", Short: "Run a function on the mesh and print its result", Long: runLong,
		RunE: func(cmd *cobra.Command, args []string) error { return a.execPython(cmd, o, args) },
	}
	o.add(c)
	c.Flags().BoolVar(&o.detach, "detach", false, "same as `beam submit`")
	return c
}

func (a *App) submitCommand() *cobra.Command {
	o := runOptions{detach: true}
	c := &cobra.Command{
		Use: "submit FILE:FUNCTION [ARGUMENT…]", Short: "Start a function on the mesh and print the task's id",
		Long: `Start a function on the mesh, print the task's id and end. The task goes on
without this program: follow it with ` + "`beam logs -f TASK`" + `, stop it with
` + "`beam task stop TASK`" + `. Arguments are given as with ` + "`beam run`" + `.`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.execPython(cmd, o, args) },
	}
	o.add(c)
	return c
}

// dotted is the name of a function, or of one inside a class.
var dotted = regexp.MustCompile(`^[\p{L}_][\p{L}\p{N}_]*(\.[\p{L}_][\p{L}\p{N}_]*)*$`)

// checkHandler looks at FILE:FUNCTION before an interpreter is started, so
// that typing errors are told at once.
func checkHandler(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usage(cmd, "want FILE:FUNCTION, such as app.py:main")
	}
	file, fn, ok := cutLast(args[0], ":")
	if !ok || file == "" || fn == "" {
		hint := "such as app.py:main"
		if strings.HasSuffix(args[0], ".py") {
			hint = "say which function of the file: " + args[0] + ":NAME"
		}
		return fault.New(fault.Invalid, fmt.Sprintf("%q is not FILE:FUNCTION", args[0]), hint)
	}
	if !dotted.MatchString(fn) {
		return fault.New(fault.Invalid, fmt.Sprintf("%q is no name of a function", fn), "such as app.py:main")
	}
	if !strings.HasSuffix(file, ".py") && !strings.Contains(file, "/") {
		return nil // a module's name; Python knows where those are
	}
	st, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, fmt.Sprintf("no file %s", file), "paths count from the current folder")
	case err != nil:
		return fault.Wrap(fault.Invalid, err, "read "+file, "")
	case st.IsDir():
		return fault.New(fault.Invalid, file+" is a folder", "such as "+strings.TrimSuffix(file, "/")+"/app.py:"+fn)
	}
	return nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// execPython becomes `python3 -m beam.run`, which imports the user's file and
// calls the function. The interpreter replaces this process, so that Ctrl-C,
// the terminal and the exit status are its own.
func (a *App) execPython(cmd *cobra.Command, o runOptions, args []string) error {
	if err := checkHandler(cmd, args); err != nil {
		return err
	}
	if len(o.args) > 0 && len(args) > 1 {
		return usage(cmd, "give the function's arguments either with --arg or after its name, not both")
	}
	format, err := a.format()
	if err != nil {
		return err
	}
	settings, err := client.Resolve(a.source())
	if err != nil {
		return err
	}
	if settings.Token == "" {
		return fault.New(fault.Unauthorized, "no API token",
			"`beam node up` saves one on this machine; else set BEAM_TOKEN, or `beam config create`")
	}
	py, err := python.Find(a.env.Getenv, cmp.Or(o.python, a.env.Getenv("BEAM_PYTHON")))
	if err != nil {
		return err
	}
	sdk, err := py.SDK(cmd.Context(), a.env.Environ, a.env.Getenv, a.roles.SDK)
	if err != nil {
		return err
	}
	environ := python.Prepend(setEnv(a.env.Environ, settings.Env()...), sdk)
	argv := []string{py.Path, "-m", "beam.run"}
	if o.detach {
		argv = append(argv, "--detach")
	}
	if format == output.FormatJSON {
		argv = append(argv, "--json")
	}
	for _, v := range append(o.args, args[1:]...) {
		argv = append(argv, "--arg="+v)
	}
	argv = append(argv, args[0])
	if err := a.env.Exec(py.Path, argv, environ); err != nil {
		return fault.Wrap(fault.Failed, err, "start "+py.Path, "")
	}
	return nil
}

// setEnv gives environ with the variables replaced.
func setEnv(environ []string, kvs ...string) []string {
	set := map[string]bool{}
	for _, kv := range kvs {
		k, _, _ := strings.Cut(kv, "=")
		set[k] = true
	}
	out := make([]string, 0, len(environ)+len(kvs))
	for _, kv := range environ {
		if k, _, _ := strings.Cut(kv, "="); !set[k] {
			out = append(out, kv)
		}
	}
	return append(out, kvs...)
}

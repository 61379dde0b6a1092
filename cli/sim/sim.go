package sim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli"
	"github.com/beammesh/beammesh/cli/output"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/scenario"
)

const long = `Try schedulers on simulated machines: the code that decides in a simulation is
the code that decides in a node. Runs depend on their seed alone.

  beam sim list                             experiments, policies, parameters
  beam sim run EXPERIMENT --policy POLICY   one run, its numbers
  beam sim sweep SCENARIO                   policies x seeds x parameters, on all cores
  beam sim report RESULTS -o page.html      tables and curves, to look at
  beam sim compare RESULTS POLICY POLICY    which is better, and how sure that is
  beam sim replay --from DIR --remove NODE  a recorded load again, with a change

A SCENARIO is a bundled name, a file that ends in .sim, or an experiment. Traces
are read from --traces or BEAM_TRACES. Written for researchers:
docs/simulations.md.`

// tool is what the commands share.
type tool struct {
	app         *cli.App
	experiments []simulations.Experiment
}

// Command makes `sim` for the given experiments, as cli.Roles.Sim wants it.
func Command(experiments []simulations.Experiment) func(*cli.App) *cobra.Command {
	return func(app *cli.App) *cobra.Command {
		t := &tool{app: app, experiments: experiments}
		c := &cobra.Command{Use: "sim", Short: "Simulate schedulers and compare policies", Long: long}
		c.AddCommand(t.listCommand(), t.runCommand(), t.sweepCommand(), t.reportCommand(), t.compareCommand(), t.replayCommand())
		return c
	}
}

// choice are the flags that say what to run.
type choice struct {
	policies []string
	seeds    []string
	set      []string
	traces   string
}

// find gives the scenario that name and the flags stand for.
func (t *tool) find(name string, c choice) (*scenario.Scenario, error) {
	s, err := scenario.Find(name, t.experiments)
	if err != nil {
		return nil, err
	}
	if len(c.policies) > 0 {
		if err := s.SetPolicies(words(c.policies)); err != nil {
			return nil, err
		}
	}
	if len(c.seeds) > 0 {
		if err := s.SetSeeds(words(c.seeds)); err != nil {
			return nil, err
		}
	}
	for _, kv := range c.set {
		key, value, ok := strings.Cut(kv, "=")
		if !ok || value == "" {
			return nil, fault.New(fault.Invalid, fmt.Sprintf("--set %s has no value", kv), "--set NAME=VALUE, or NAME=V1,V2,V3 to sweep")
		}
		if err := s.SetValues(key, strings.Split(value, ",")); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// begin is what run and sweep need before they start.
func (t *tool) begin(name string, c choice) (p *output.Printer, s *scenario.Scenario, traces string, err error) {
	if p, err = t.app.Printer(); err != nil {
		return nil, nil, "", err
	}
	if s, err = t.find(name, c); err != nil {
		return nil, nil, "", err
	}
	traces, err = t.tracesDir(c.traces)
	return p, s, traces, err
}

// words splits the values of a flag, which may be given several times.
func words(values []string) []string {
	var out []string
	for _, v := range values {
		out = append(out, strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == ' ' })...)
	}
	return out
}

// tracesDir is the folder of the traces; it has to be there when it is named.
func (t *tool) tracesDir(flag string) (string, error) {
	dir, from := flag, "--traces"
	if dir == "" {
		dir, from = t.app.Env().Getenv("BEAM_TRACES"), "BEAM_TRACES"
	}
	if dir == "" {
		return "", nil
	}
	if _, err := os.ReadDir(dir); err != nil {
		return "", fault.New(fault.NotFound, fmt.Sprintf("the folder of traces that %s names cannot be read: %v", from, reason(err)), "name the folder that has openb/, azure/ and so on")
	}
	return dir, nil
}

// reason is an error of a file without the operation, which people cannot use.
func reason(err error) string {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Path + ": " + p.Err.Error()
	}
	return err.Error()
}

// version is that of this program, or its commit where nobody gave it one.
func (t *tool) version() string {
	v := t.app.Version()
	if v != "" && v != "dev" {
		return v
	}
	commit, changed := "", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				commit = s.Value[:min(12, len(s.Value))]
			case "vcs.modified":
				if s.Value == "true" {
					changed = "-dirty"
				}
			}
		}
	}
	if commit == "" {
		return "dev"
	}
	return commit + changed
}

// failure gives an experiment's error a code: what a policy broke is a failed
// program, everything else is about what was asked for.
func failure(ctx context.Context, err error, again string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if broken := (*simulations.BrokenError)(nil); errors.As(err, &broken) {
		return fault.New(fault.Failed, broken.Error(), "the same seed leads to the same event: "+again)
	}
	if f := (*fault.Error)(nil); errors.As(err, &f) {
		return err
	}
	if strings.HasPrefix(err.Error(), "panic: ") {
		return fault.New(fault.Failed, err.Error(), "the same seed leads to the same place: "+again)
	}
	return fault.New(fault.Invalid, err.Error(), "")
}

// complete offers scenarios and experiments.
func (t *tool) complete(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := scenario.Examples()
	for _, e := range t.experiments {
		names = append(names, e.Name())
	}
	return names, cobra.ShellCompDirectiveDefault
}

// base is a file's name without folder and ending.
func base(path string) string {
	b := filepath.Base(path)
	return strings.TrimSuffix(b, filepath.Ext(b))
}

package sim

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli"
	"github.com/beammesh/beammesh/cli/output"
	"github.com/beammesh/beammesh/simulations/report"
	"github.com/beammesh/beammesh/simulations/results"
	"github.com/beammesh/beammesh/simulations/scenario"
	"github.com/beammesh/beammesh/simulations/sweep"
)

const runLong = `Do one run and print its numbers. Of a scenario that has several runs it is the
first, unless --policy, --seed and --set choose another. With --json it prints
the line that a sweep would store, curves included.`

func (t *tool) runCommand() *cobra.Command {
	var c choice
	cmd := &cobra.Command{
		Use: "run SCENARIO|EXPERIMENT", Short: "Do one run and print its numbers", Long: runLong,
		Example: "  beam sim run queue --policy two-choices --seed 7 --set load=0.9", ValidArgsFunction: t.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return cli.Usage(cmd, fmt.Sprintf("want one scenario or experiment, got %d arguments", len(args)))
			}
			return t.run(cmd, args[0], c)
		},
	}
	c.add(cmd)
	return cmd
}

// add adds the flags of a choice.
func (c *choice) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&c.policies, "policy", nil, "`policy` instead of the scenario's; may be repeated; all = all there are")
	f.StringArrayVar(&c.seeds, "seed", nil, "`seeds` instead of the scenario's: 7, or 42..51; may be repeated")
	f.StringArrayVar(&c.set, "set", nil, "`NAME=VALUE` of a parameter, or NAME=V1,V2 to sweep; may be repeated")
	f.StringVar(&c.traces, "traces", "", "`folder` of the traces (default BEAM_TRACES)")
}

func (t *tool) run(cmd *cobra.Command, name string, c choice) error {
	ctx := cmd.Context()
	p, s, traces, err := t.begin(name, c)
	if err != nil {
		return err
	}
	run := s.Runs()[0]
	if n := s.Count(); n > 1 {
		t.app.Progress("the first of %d runs; `beam sim sweep %s` does them all", n, name)
	}
	x := &sweep.Executor{Experiment: s.Experiment, Traces: traces, Version: t.version()}
	rec, err := x.Identify(run)
	if err != nil {
		return err
	}
	bar := t.newBar(p)
	began := time.Now()
	entry, err := x.Execute(ctx, run, rec, func(done, total int64) {
		if total > 0 {
			share := float64(done) / float64(total)
			bar.draw(share, fmt.Sprintf("%d of %d", done, total), left(time.Since(began), share))
		}
	})
	bar.clear()
	if err != nil {
		return failure(ctx, err, "`"+report.Rerun(rec, s.Experiment)+"`")
	}
	if p.Format == output.FormatJSON {
		line, err := rec.Line()
		if err != nil {
			return err
		}
		_, err = p.Out.Write(line)
		return err
	}
	if p.Format == output.FormatYAML {
		return p.Value(rec)
	}
	_, err = fmt.Fprint(p.Out, runPage(p, s, rec, &run))
	if err == nil {
		text := fmt.Sprintf("took %s", output.Duration(entry.Wall))
		if entry.EventsPerSecond > 0 {
			text += fmt.Sprintf(", %s events a second", results.Number(entry.EventsPerSecond))
		}
		t.app.Progress("%s", text)
	}
	return err
}

// runPage is a run for people.
func runPage(p *output.Printer, s *scenario.Scenario, rec *results.Record, run *scenario.Run) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s  seed %d", p.Style.Bold(rec.Experiment), p.Style.Bold(rec.Policy), rec.Seed)
	values := run.Settings(s.Experiment).Values
	for _, param := range s.Experiment.Params() {
		if v, ok := values[param.Name]; ok {
			fmt.Fprintf(&b, "  %s=%s", param.Name, v)
		}
	}
	b.WriteByte('\n')
	t := output.Table{Columns: []output.Column{{Title: "Metric"}, {Title: "Value", Right: true}, {Title: "Unit"}}}
	for _, m := range rec.Metrics {
		t.Rows = append(t.Rows, []string{m.Name, results.Number(m.Value), unit(m.Unit)})
	}
	b.WriteString(p.Grid(t, "  "))
	return b.String()
}

func unit(u string) string {
	if u == "" {
		return " "
	}
	return u
}

// left guesses how long the rest takes.
func left(elapsed time.Duration, share float64) time.Duration {
	return sweep.State{Elapsed: elapsed, Share: share}.Left()
}

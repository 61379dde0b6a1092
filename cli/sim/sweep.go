package sim

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli"
	"github.com/beammesh/beammesh/cli/output"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/simulations/report"
	"github.com/beammesh/beammesh/simulations/results"
	"github.com/beammesh/beammesh/simulations/scenario"
	"github.com/beammesh/beammesh/simulations/sweep"
)

const sweepLong = `Do all runs of a scenario and keep every result in a file, a line of JSON each.

The same command goes on where an interrupted one stopped: each result is on disk
before the next run begins. A run that fails is kept with its reason, the others
go on, and the exit status is 1; the next sweep tries it again. A finished file
has the same bytes for any number of --jobs. Beside it, FILE.log says how long
runs took, on which version of this program.`

func (t *tool) sweepCommand() *cobra.Command {
	var c choice
	var file string
	var jobs int
	cmd := &cobra.Command{
		Use: "sweep SCENARIO", Short: "Do all runs of a scenario, on all cores", Long: sweepLong,
		Example:           "  beam sim sweep mine.sim --jobs 8\n  beam sim sweep queue --policy all --seed 1..10 --set load=0.7,0.8,0.9",
		ValidArgsFunction: t.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return cli.Usage(cmd, fmt.Sprintf("want one scenario, got %d arguments", len(args)))
			}
			if jobs < 1 || jobs > 4096 {
				return cli.Usage(cmd, "--jobs has to be between 1 and 4096")
			}
			return t.sweep(cmd, args[0], c, file, jobs)
		},
	}
	c.add(cmd)
	cmd.Flags().StringVar(&file, "results", "", "`file` of the results (default: the scenario's name with .jsonl, here)")
	cmd.Flags().IntVar(&jobs, "jobs", runtime.GOMAXPROCS(0), "runs at a time")
	return cmd
}

// sweepRecord is the end of a sweep for programs.
type sweepRecord struct {
	Results string        `json:"results"`
	Runs    int           `json:"runs"`
	Before  int           `json:"done_before"`
	Done    int           `json:"done"`
	Failed  int           `json:"failed"`
	Groups  []groupRecord `json:"groups"`
}

func (t *tool) sweep(cmd *cobra.Command, name string, c choice, file string, jobs int) error {
	ctx := cmd.Context()
	p, s, traces, err := t.begin(name, c)
	if err != nil {
		return err
	}
	if file == "" {
		file = s.Name + ".jsonl"
	}
	w := &watcher{tool: t, scenario: s, file: file, bar: t.newBar(p)}
	state, err := sweep.Run(ctx, s, file, sweep.Options{Jobs: jobs, Traces: traces, Version: t.version(), Progress: w.step})
	w.bar.clear()
	if ctx.Err() != nil {
		return fault.New(fault.Cancelled, fmt.Sprintf("interrupted, %d of %s done and kept in %s", state.Before+state.Done, plural(state.Total, "run"), file),
			"the same command goes on from there")
	}
	if err != nil {
		return err
	}
	f, err := results.Read(file)
	if err != nil {
		return err
	}
	groups := results.Summarize(f.Records)
	if p.Format.Machine() {
		err = p.Value(sweepRecord{Results: file, Runs: state.Total, Before: state.Before, Done: state.Done, Failed: state.Failed, Groups: groupRecords(groups)})
	} else {
		_, err = fmt.Fprint(p.Out, summaryPage(p, groups))
		t.app.Progress("%s in %s; to look at: `beam sim report %s -o %s.html`", plural(len(f.Records), "result"), file, file, base(file))
	}
	if err != nil {
		return err
	}
	if state.Failed > 0 {
		return fault.New(fault.Failed, fmt.Sprintf("%d of %s failed", state.Failed, plural(state.Done, "run")), w.hint())
	}
	return nil
}

// maxFailures is how many failed runs are told while a sweep goes on; the rest
// is counted, and is in the report.
const maxFailures = 10

// watcher tells a person how a sweep goes.
type watcher struct {
	tool     *tool
	scenario *scenario.Scenario
	file     string
	bar      *bar
	steps    steps
	began    bool
	failed   int
	rerun    string // the first failed run
}

func (w *watcher) step(s sweep.State) {
	say := func(format string, args ...any) {
		w.bar.clear()
		w.tool.app.Progress(format, args...)
	}
	todo := s.Total - s.Before
	if !w.began {
		w.began = true
		if s.Torn {
			say("%s ended in half a line: that run is done again", w.file)
		}
		switch {
		case todo == 0:
			say("all %d runs are in %s already", s.Total, w.file)
		case s.Before > 0:
			say("%d runs are in %s already, %d to go", s.Before, w.file, todo)
		default:
			say("%s", plural(todo, "run"))
		}
	}
	if r := s.Ended; r != nil && r.Failed != nil {
		w.failed++
		if w.rerun == "" {
			w.rerun = report.Rerun(r, w.scenario.Experiment)
		}
		if w.failed <= maxFailures {
			say("%s", failedLine(r))
		}
	}
	if todo == 0 {
		return
	}
	rate := float64(s.Done) / s.Elapsed.Seconds()
	w.bar.draw(s.Share, fmt.Sprintf("%d of %d runs  %.3g/s", s.Done, todo, rate), s.Left())
	if s.Ended != nil && w.bar.out == nil && w.steps.next(s.Done, todo) {
		say("%d of %d runs", s.Done, todo)
	}
}

// failedLine is one run that broke: "failed: fgd, seed 42, event 7 at 1.5s: …".
func failedLine(r *results.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "failed: %s, seed %d", r.Policy, r.Seed)
	if r.Failed.Event > 0 {
		fmt.Fprintf(&b, ", event %d at %s", r.Failed.Event, r.Failed.At)
	}
	return output.Clean(b.String() + ": " + r.Failed.What)
}

func (w *watcher) hint() string { return "run the first of them alone: `" + w.rerun + "`" }

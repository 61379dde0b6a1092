package sim

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/simulations/report"
	"github.com/beammesh/beammesh/simulations/results"
	"github.com/beammesh/beammesh/simulations/scenario"
)

const reportLong = `Show results: mean ± standard deviation over seeds, the best policy marked.

Without -o the tables go to stdout. With -o the ending decides:
  page.html     tables, curves and how to run it again, in one file
  runs.csv      a row for each run
  curves.csv    with --curves: a row for each point of each curve`

func (t *tool) reportCommand() *cobra.Command {
	var file string
	var metrics []string
	var curves bool
	cmd := &cobra.Command{
		Use: "report RESULTS…", Short: "Show results as tables, as a page with plots, or as CSV", Long: reportLong,
		Example: "  beam sim report fill.jsonl -o fill.html\n  beam sim report lists.jsonl --metric unallocated_at_100",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cli.Usage(cmd, "want at least one file of results")
			}
			ext := filepath.Ext(file)
			if file != "" && ext != ".html" && ext != ".csv" {
				return cli.Usage(cmd, fmt.Sprintf("-o %s: here -o is a file that ends in .html or .csv; --json prints data", file))
			}
			if curves && ext != ".csv" {
				return cli.Usage(cmd, "--curves goes with -o FILE.csv")
			}
			return t.report(args, file, words(metrics), curves)
		},
	}
	// Here -o is a file; it hides the -o of all commands, --json stays.
	cmd.Flags().StringVarP(&file, "output", "o", "", "`file` to write: .html or .csv")
	metricFlag(cmd, &metrics)
	cmd.Flags().BoolVar(&curves, "curves", false, "write the points of the curves as CSV")
	return cmd
}

func metricFlag(cmd *cobra.Command, metrics *[]string) {
	cmd.Flags().StringArrayVar(metrics, "metric", nil, "show this `metric` only; may be repeated")
}

// only keeps the named metrics of each record; none named = all.
func only(records []results.Record, metrics []string) error {
	if len(metrics) == 0 {
		return nil
	}
	var have []string
	for i := range records {
		for _, m := range records[i].Metrics {
			if !slices.Contains(have, m.Name) {
				have = append(have, m.Name)
			}
		}
		records[i].Metrics = slices.DeleteFunc(records[i].Metrics, func(m results.Metric) bool { return !slices.Contains(metrics, m.Name) })
	}
	for _, m := range metrics {
		if !slices.Contains(have, m) {
			return fault.New(fault.NotFound, fmt.Sprintf("the results have no metric %q", m), scenario.Suggest(m, have))
		}
	}
	return nil
}

func (t *tool) report(paths []string, file string, metrics []string, curves bool) error {
	p, err := t.app.Printer()
	if err != nil {
		return err
	}
	if slices.Contains(paths, file) {
		return fault.New(fault.Invalid, fmt.Sprintf("-o %s would write over the results", file), "name another file")
	}
	page := report.Page{Experiments: t.experiments}
	for _, path := range paths {
		f, err := results.Read(path)
		if err != nil {
			return err
		}
		if f.Torn {
			page.Torn = append(page.Torn, filepath.Base(path))
			t.app.Progress("%s ends in half a line, which is left out: its sweep was killed, or goes on", path)
		}
		page.Records = append(page.Records, f.Records...)
		page.Log = append(page.Log, f.Log...)
		page.Versions = append(page.Versions, f.Versions()...)
	}
	slices.Sort(page.Versions)
	page.Versions = slices.Compact(page.Versions)
	if len(page.Records) == 0 {
		return fault.New(fault.NotFound, "there are no results in "+strings.Join(paths, ", "), "the same sweep goes on where it stopped")
	}
	if err := only(page.Records, metrics); err != nil {
		return err
	}
	if file == "" {
		groups := results.Summarize(page.Records)
		if p.Format.Machine() {
			return p.Value(map[string]any{"groups": groupRecords(groups)})
		}
		_, err := fmt.Fprint(p.Out, summaryPage(p, groups))
		return err
	}
	err = writeFile(file, func(w io.Writer) error {
		switch {
		case curves:
			return results.WriteCurvesCSV(w, page.Records)
		case filepath.Ext(file) == ".csv":
			return results.WriteCSV(w, page.Records)
		}
		return report.Write(w, page)
	})
	if err != nil {
		return err
	}
	if p.Format.Machine() {
		return p.Value(map[string]any{"file": file, "runs": len(page.Records)})
	}
	t.app.Progress("%s: %s", file, plural(len(page.Records), "run"))
	return nil
}

// writeFile writes a file whole or not at all.
func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fault.New(fault.Invalid, "cannot write "+path+": "+reason(err), "")
	}
	w := bufio.NewWriter(f)
	err = errors.Join(write(w), w.Flush(), f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}

// groupRecord is a group of runs for programs.
type groupRecord struct {
	Experiment string            `json:"experiment"`
	Params     map[string]string `json:"params"`
	Trace      string            `json:"trace,omitempty"`
	Policies   []policyRecord    `json:"policies"`
}

type policyRecord struct {
	Policy  string       `json:"policy"`
	Seeds   []uint64     `json:"seeds"`
	Failed  int          `json:"failed"`
	Metrics []statRecord `json:"metrics"`
}

type statRecord struct {
	Name string  `json:"name"`
	Unit string  `json:"unit,omitempty"`
	N    int     `json:"n"`
	Mean float64 `json:"mean"`
	SD   float64 `json:"sd"`
	Best bool    `json:"best"`
}

func groupRecords(groups []results.Group) []groupRecord {
	out := make([]groupRecord, 0, len(groups))
	for _, g := range groups {
		r := groupRecord{Experiment: g.Experiment, Params: g.Params, Trace: g.Trace}
		for _, p := range g.Policies {
			x := policyRecord{Policy: p.Name, Seeds: []uint64{}, Failed: len(p.Failed), Metrics: []statRecord{}}
			for _, rec := range p.Records {
				x.Seeds = append(x.Seeds, rec.Seed)
			}
			for _, m := range p.Metrics {
				x.Metrics = append(x.Metrics, statRecord{Name: m.Name, Unit: m.Unit, N: len(m.Values), Mean: m.Mean, SD: m.SD, Best: m.Best})
			}
			r.Policies = append(r.Policies, x)
		}
		out = append(out, r)
	}
	return out
}

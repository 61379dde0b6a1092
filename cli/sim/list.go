package sim

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli"
	"github.com/beammesh/beammesh/cli/output"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/scenario"
)

// experimentRecord is an experiment for programs.
type experimentRecord struct {
	Name     string        `json:"name"`
	Doc      string        `json:"doc"`
	Policies []string      `json:"policies"`
	Params   []paramRecord `json:"params"`
}

type paramRecord struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"`
	Default string `json:"default"`
	Doc     string `json:"doc"`
}

type scenarioRecord struct {
	Name       string `json:"name"`
	Doc        string `json:"doc"`
	Experiment string `json:"experiment"`
	Runs       int    `json:"runs"`
}

func (t *tool) listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list [EXPERIMENT]", Short: "List experiments with their policies and parameters, and bundled scenarios",
		ValidArgsFunction: t.complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return cli.Usage(cmd, fmt.Sprintf("want one experiment at most, got %d arguments", len(args)))
			}
			return t.list(args)
		},
	}
}

func (t *tool) list(args []string) error {
	p, err := t.app.Printer()
	if err != nil {
		return err
	}
	shown, err := t.chosen(args)
	if err != nil {
		return err
	}
	var scenarios []scenarioRecord
	for _, name := range scenario.Examples() {
		s, err := scenario.Find(name, t.experiments)
		if err != nil {
			return err
		}
		if len(args) == 0 || s.Experiment.Name() == args[0] {
			scenarios = append(scenarios, scenarioRecord{Name: name, Doc: s.Doc, Experiment: s.Experiment.Name(), Runs: s.Count()})
		}
	}
	switch {
	case p.Format.Machine():
		return p.Value(map[string]any{"experiments": shown, "scenarios": scenarios})
	case p.Format == output.FormatName:
		names := make([]string, 0, len(shown)+len(scenarios))
		for _, e := range shown {
			names = append(names, e.Name)
		}
		for _, s := range scenarios {
			names = append(names, s.Name)
		}
		_, err := fmt.Fprintln(p.Out, strings.Join(names, "\n"))
		return err
	}
	_, err = fmt.Fprint(p.Out, page(p, shown, scenarios))
	return err
}

func (t *tool) chosen(args []string) ([]experimentRecord, error) {
	var out []experimentRecord
	var names []string
	for _, e := range t.experiments {
		names = append(names, e.Name())
		if len(args) == 0 || args[0] == e.Name() {
			out = append(out, experimentOf(e))
		}
	}
	if len(args) == 1 && out == nil {
		return nil, fault.New(fault.NotFound, fmt.Sprintf("no experiment %q", args[0]), scenario.Suggest(args[0], names))
	}
	return out, nil
}

func experimentOf(e simulations.Experiment) experimentRecord {
	r := experimentRecord{Name: e.Name(), Doc: e.Doc(), Policies: e.Policies(), Params: []paramRecord{}}
	for _, p := range e.Params() {
		r.Params = append(r.Params, paramRecord{Name: p.Name, Kind: string(p.Kind), Default: p.Default, Doc: p.Doc})
	}
	return r
}

// page is the list for people.
func page(p *output.Printer, experiments []experimentRecord, scenarios []scenarioRecord) string {
	var b strings.Builder
	for i, e := range experiments {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s  %s\n", p.Style.Bold(e.Name), e.Doc)
		fmt.Fprintf(&b, "  policies: %s\n", strings.Join(e.Policies, ", "))
		t := output.Table{Columns: []output.Column{{Title: "Parameter"}, {Title: "Kind"}, {Title: "Default", Right: true}, {Title: "What"}}}
		for _, x := range e.Params {
			t.Rows = append(t.Rows, []string{x.Name, x.Kind, x.Default, x.Doc})
		}
		b.WriteString(p.Grid(t, "  "))
	}
	if len(scenarios) > 0 {
		t := output.Table{Columns: []output.Column{{Title: "Scenario"}, {Title: "Experiment"}, {Title: "Runs", Right: true}, {Title: "What"}}}
		for _, s := range scenarios {
			t.Rows = append(t.Rows, []string{s.Name, s.Experiment, fmt.Sprint(s.Runs), s.Doc})
		}
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(p.Grid(t, ""))
	}
	return b.String()
}

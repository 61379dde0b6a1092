package sim

import (
	"fmt"
	"math"
	"strings"

	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli"
	"github.com/beammesh/beammesh/cli/output"
	"github.com/beammesh/beammesh/simulations/compare"
	"github.com/beammesh/beammesh/simulations/results"
)

const compareLong = `Say for each metric whether B is better or worse than A, with the 95 % confidence
interval of the difference of their means.

A and B are two files of results, or two policies of one file. Runs with the
same parameters are compared; a policy or a parameter that has one value in A
and another one in B is what the comparison is about. Where both have the same
seeds, runs are paired by seed, which needs far fewer of them.`

func (t *tool) compareCommand() *cobra.Command {
	var metrics []string
	cmd := &cobra.Command{
		Use: "compare A B | RESULTS POLICY POLICY", Short: "Say whether one is better, with confidence intervals", Long: compareLong,
		Example: "  beam sim compare fill.jsonl bestfit fgd\n  beam sim compare before.jsonl after.jsonl",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 && len(args) != 3 {
				return cli.Usage(cmd, fmt.Sprintf("want two files of results, or one and two policies, got %d arguments", len(args)))
			}
			return t.compare(args, words(metrics))
		},
	}
	metricFlag(cmd, &metrics)
	return cmd
}

func (t *tool) compare(args, metrics []string) error {
	p, err := t.app.Printer()
	if err != nil {
		return err
	}
	read := func(path string) (*results.File, error) {
		f, err := results.Read(path)
		if err == nil {
			err = only(f.Records, metrics)
		}
		return f, err
	}
	a, err := read(args[0])
	if err != nil {
		return err
	}
	var c *compare.Comparison
	if len(args) == 3 {
		c, err = compare.Policies(a.Records, args[1], args[2])
	} else {
		var b *results.File
		if b, err = read(args[1]); err != nil {
			return err
		}
		c, err = compare.Sets(a.Records, b.Records)
	}
	if err != nil {
		return err
	}
	if len(args) == 2 {
		c.A, c.B = strings.TrimSpace(args[0]+" "+c.A), strings.TrimSpace(args[1]+" "+c.B)
	}
	if p.Format.Machine() {
		return p.Value(comparisonOf(c))
	}
	_, err = fmt.Fprint(p.Out, comparisonPage(p, c))
	return err
}

// comparison is the same for programs.
type comparison struct {
	A     string   `json:"a"`
	B     string   `json:"b"`
	Level float64  `json:"confidence"`
	Rows  []row    `json:"rows"`
	Alone []string `json:"only_in_one"`
}

type row struct {
	Group      string   `json:"group,omitempty"`
	Metric     string   `json:"metric"`
	Unit       string   `json:"unit,omitempty"`
	MeanA      float64  `json:"mean_a"`
	MeanB      float64  `json:"mean_b"`
	RunsA      int      `json:"runs_a"`
	RunsB      int      `json:"runs_b"`
	Difference float64  `json:"difference"`
	Low        *float64 `json:"low"` // null with one seed
	High       *float64 `json:"high"`
	Paired     bool     `json:"paired"`
	Verdict    string   `json:"verdict"`
}

func comparisonOf(c *compare.Comparison) comparison {
	out := comparison{A: c.A, B: c.B, Level: compare.Level, Rows: []row{}, Alone: append([]string{}, c.Alone...)}
	for _, r := range c.Rows {
		x := row{Group: r.Group, Metric: r.Metric, Unit: r.Unit, MeanA: r.A.Mean, MeanB: r.B.Mean, RunsA: len(r.A.Values), RunsB: len(r.B.Values),
			Difference: r.Difference, Paired: r.Paired, Verdict: string(r.Verdict)}
		if !math.IsNaN(r.Low) {
			x.Low, x.High = &r.Low, &r.High
		}
		out.Rows = append(out.Rows, x)
	}
	return out
}

// manyRows is from how many rows on a reader is told about chance.
const manyRows = 20

func comparisonPage(p *output.Printer, c *compare.Comparison) string {
	var b strings.Builder
	fmt.Fprintf(&b, "A  %s\nB  %s\n", p.Style.Bold(c.A), p.Style.Bold(c.B))
	paired, unpaired := 0, 0
	for i := 0; i < len(c.Rows); {
		j := i
		for j < len(c.Rows) && c.Rows[j].Group == c.Rows[i].Group {
			j++
		}
		b.WriteByte('\n')
		if c.Rows[i].Group != "" {
			fmt.Fprintf(&b, "%s\n", p.Style.Bold(c.Rows[i].Group))
		}
		t := output.Table{Columns: []output.Column{{Title: "Metric"}, {Title: "Unit"}, {Title: "A", Right: true}, {Title: "B", Right: true},
			{Title: "B - A", Right: true}, {Title: "95 % from", Right: true}, {Title: "to", Right: true}, {Title: "%", Right: true}, {Title: "B is", Paint: paintVerdict}}}
		for _, r := range c.Rows[i:j] {
			low, high, percent := "-", "-", "-"
			if !math.IsNaN(r.Low) {
				low, high = signed(r.Low), signed(r.High)
			}
			if v := r.Percent(); !math.IsNaN(v) {
				percent = fmt.Sprintf("%+.1f", v)
			}
			if r.Paired {
				paired++
			} else {
				unpaired++
			}
			t.Rows = append(t.Rows, []string{r.Metric, unit(r.Unit), results.Number(r.A.Mean), results.Number(r.B.Mean), signed(r.Difference), low, high, percent, string(r.Verdict)})
		}
		b.WriteString(p.Grid(t, "  "))
		i = j
	}
	b.WriteByte('\n')
	how := fmt.Sprintf("%d seeds in A, %d in B", len(c.Rows[0].A.Values), len(c.Rows[0].B.Values))
	switch {
	case unpaired == 0:
		how += ", paired by seed"
	case paired == 0:
		how += ", not paired"
	default:
		how += ", paired by seed where they are the same"
	}
	fmt.Fprintln(&b, p.Style.Dim(how))
	if len(c.Rows) >= manyRows {
		fmt.Fprintln(&b, p.Style.Dim(fmt.Sprintf("of %d rows about %.0f look different by chance alone", len(c.Rows), math.Ceil(float64(len(c.Rows))*(1-compare.Level)))))
	}
	if len(c.Alone) > 0 {
		fmt.Fprintln(&b, p.Style.Yellow(fmt.Sprintf("only in one of the two: %s", strings.Join(c.Alone, "; "))))
	}
	return b.String()
}

func signed(v float64) string {
	if v > 0 {
		return "+" + results.Number(v)
	}
	return results.Number(v)
}

func paintVerdict(s output.Style, text string) string {
	switch compare.Verdict(text) {
	case compare.Better:
		return s.Green(text)
	case compare.Worse:
		return s.Red(text)
	case compare.Differs:
		return s.Yellow(text)
	case compare.NoneSeen, compare.TooFew:
	}
	return s.Dim(text)
}

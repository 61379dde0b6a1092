package cli

import (
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli/output"
	beammeshv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
)

// barWidth is the room for the time axis of phases, in characters.
const barWidth = 32

func (a *App) explainCommand() *cobra.Command {
	var changes []string
	c := &cobra.Command{
		Use:   "explain TASK",
		Short: "Say why a task ran where it ran, and why others refused",
		Long: `Say why a task ran where it ran, and why others refused.

With --if it also answers what would happen now if the task had asked for
something else: cpu=2, memory=8GiB, disk=20GiB, gpu=any, gpu=none, zone=lab.
Nothing is placed by asking.`,
		Args:              exactly(1, "one task id"),
		ValidArgsFunction: a.completeTasks,
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.printer()
			if err != nil {
				return err
			}
			conn, err := a.connect()
			if err != nil {
				return err
			}
			ctx, cancel := a.callContext(cmd.Context())
			defer cancel()
			res, err := conn.Node.Explain(ctx, connect.NewRequest(&beammeshv1.ExplainRequest{TaskId: args[0], Changes: changes}))
			if err != nil {
				return conn.Fault(err)
			}
			if p.Format.Machine() {
				return p.Value(explanationOf(res.Msg))
			}
			_, err = fmt.Fprint(a.env.Stdout, explanation(p, res.Msg, a.env.Now()))
			return err
		},
	}
	c.Flags().StringArrayVar(&changes, "if", nil, "what if it had asked for this: gpu=any, memory=8GiB, cpu=2; may be given again")
	return c
}

type explainRecord struct {
	Task     taskRecord      `json:"task"`
	Warm     bool            `json:"warm"`
	Phases   []phaseRecord   `json:"phases"`
	Attempts []attemptRecord `json:"attempts"`
	Notes    []string        `json:"notes,omitempty"`
	WhatIf   *whatIfRecord   `json:"what_if,omitempty"`
}

type whatIfRecord struct {
	Demand     string            `json:"demand"`
	Verdict    string            `json:"verdict"`
	Candidates []candidateRecord `json:"candidates"`
	Notes      []string          `json:"notes,omitempty"`
}

type phaseRecord struct {
	Name     string `json:"name"`
	StartMs  int64  `json:"start_ms"`
	LengthMs int64  `json:"duration_ms"`
	Detail   string `json:"detail,omitempty"`
}

type attemptRecord struct {
	Attempt    uint32            `json:"attempt"`
	Node       string            `json:"node"`
	NodeID     string            `json:"node_id"`
	How        string            `json:"how"`
	Rounds     uint32            `json:"rounds"`
	Candidates []candidateRecord `json:"candidates"`
	End        string            `json:"end,omitempty"`
	Notes      []string          `json:"notes,omitempty"`
}

type candidateRecord struct {
	Node    string   `json:"node"`
	NodeID  string   `json:"node_id"`
	Verdict string   `json:"verdict"`
	Score   int64    `json:"score"`
	Reasons []string `json:"reasons,omitempty"`
	Terms   []string `json:"terms,omitempty"`
	Source  string   `json:"source,omitempty"`
}

func explanationOf(m *beammeshv1.ExplainResponse) explainRecord {
	r := explainRecord{
		Task: taskOf(m.GetTask()), Phases: []phaseRecord{}, Attempts: []attemptRecord{},
		Warm: m.GetTask().GetOutcome().GetWarm(), Notes: m.GetTask().GetOutcome().GetNotes(),
	}
	for _, ph := range m.GetTask().GetOutcome().GetPhases() {
		r.Phases = append(r.Phases, phaseRecord{ph.GetName(), ph.GetStartMs(), ph.GetDurationMs(), ph.GetDetail()})
	}
	for _, at := range m.GetAttempts() {
		x := attemptRecord{
			Attempt: at.GetAttempt(), Node: at.GetNodeName(), NodeID: at.GetNodeId(), How: at.GetHow(),
			Rounds: at.GetRounds(), Candidates: candidatesOf(at.GetCandidates()), End: at.GetEnd(), Notes: at.GetNotes(),
		}
		r.Attempts = append(r.Attempts, x)
	}
	if w := m.GetWhatIf(); w != nil {
		r.WhatIf = &whatIfRecord{w.GetDemand(), w.GetVerdict(), candidatesOf(w.GetCandidates()), w.GetNotes()}
	}
	return r
}

func candidatesOf(cs []*beammeshv1.Candidate) []candidateRecord {
	out := []candidateRecord{}
	for _, c := range cs {
		out = append(out, candidateRecord{
			Node: c.GetNodeName(), NodeID: c.GetNodeId(), Verdict: c.GetVerdict(), Score: c.GetScore(),
			Reasons: c.GetReasons(), Terms: c.GetTerms(), Source: c.GetSource(),
		})
	}
	return out
}

// explanation is the page for people.
func explanation(p *output.Printer, m *beammeshv1.ExplainResponse, now time.Time) string {
	r := explanationOf(m)
	st := p.Style
	var b strings.Builder

	head := fmt.Sprintf("%s  %s  %s", st.Bold(output.Clean(r.Task.Name)), r.Task.ID, st.Status(r.Task.Status))
	if r.Task.Node != "" {
		head += "  on " + st.Bold(output.Clean(r.Task.Node))
	}
	if t := took(r.Task, now); t != "-" {
		head += "  " + t
	}
	if r.Warm {
		head += "  (warm container)"
	}
	fmt.Fprintln(&b, head)
	if r.Task.Owner != "" {
		fmt.Fprintf(&b, "%s\n", st.Dim("answered for by "+output.Clean(r.Task.Owner)))
	}
	if r.Task.Waiting != "" {
		fmt.Fprintf(&b, "%s %s\n", st.Yellow("waiting:"), output.Clean(r.Task.Waiting))
	}
	if e := r.Task.Error; e != nil {
		fmt.Fprintf(&b, "%s %s\n", st.Red("ended with:"), lines(e.Message))
		if e.Hint != "" {
			fmt.Fprintf(&b, "%s %s\n", st.Cyan("hint:"), lines(e.Hint))
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "%s %s\n", st.Yellow("note:"), output.Clean(n))
	}

	if len(r.Phases) > 0 {
		fmt.Fprintf(&b, "\n%s\n", st.Bold("Phases"))
		spans := make([]output.Span, 0, len(r.Phases))
		for _, ph := range r.Phases {
			spans = append(spans, output.Span{Label: ph.Name, Start: millis(ph.StartMs), Length: millis(ph.LengthMs), Detail: ph.Detail})
		}
		b.WriteString(p.Waterfall(spans, barWidth, "  "))
	}
	for _, at := range r.Attempts {
		writeAttempt(&b, p, at)
	}
	if w := r.WhatIf; w != nil {
		fmt.Fprintf(&b, "\n%s  %s\n", st.Bold("What if"), output.Clean(w.Demand))
		fmt.Fprintf(&b, "  %s\n", output.Clean(w.Verdict))
		writeCandidates(&b, p, w.Candidates)
		for _, n := range w.Notes {
			fmt.Fprintf(&b, "  %s %s\n", st.Yellow("note:"), output.Clean(n))
		}
	}
	return b.String()
}

func writeAttempt(b *strings.Builder, p *output.Printer, at attemptRecord) {
	st := p.Style
	title := fmt.Sprintf("Attempt %d", at.Attempt)
	if at.Node != "" {
		title += ": " + output.Clean(at.Node)
	}
	b.WriteString("\n" + st.Bold(title))
	var how []string
	if at.How != "" {
		how = append(how, output.Clean(at.How))
	}
	if at.Rounds > 1 {
		how = append(how, fmt.Sprintf("%d rounds", at.Rounds))
	}
	if len(how) > 0 {
		b.WriteString("  " + strings.Join(how, ", "))
	}
	b.WriteByte('\n')
	writeCandidates(b, p, at.Candidates)
	for _, n := range at.Notes {
		fmt.Fprintf(b, "  %s %s\n", st.Yellow("note:"), output.Clean(n))
	}
	if at.End != "" {
		fmt.Fprintf(b, "  %s %s\n", st.Yellow("ended:"), output.Clean(at.End))
	}
}

func writeCandidates(b *strings.Builder, p *output.Printer, cs []candidateRecord) {
	if len(cs) == 0 {
		return
	}
	t := output.Table{Columns: []output.Column{
		{Title: "Node"}, {Title: "Verdict", Paint: output.PaintStatus}, {Title: "Score", Right: true}, {Title: "Why"},
		{Title: "Known from", Wide: true},
	}}
	for _, c := range cs {
		why := strings.Join(append(append([]string{}, c.Reasons...), c.Terms...), ", ")
		score := ""
		if c.Score != 0 || len(c.Terms) > 0 {
			score = fmt.Sprint(c.Score)
		}
		t.Rows = append(t.Rows, []string{c.Node, c.Verdict, score, why, c.Source})
	}
	b.WriteString(p.Grid(t, "  "))
}

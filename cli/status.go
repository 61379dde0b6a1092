package cli

import (
	"fmt"
	"sort"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli/output"
	beammeshv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
)

type statusRecord struct {
	Node        nodeRecord       `json:"node"`
	MeshID      string           `json:"mesh_id"`
	Members     uint32           `json:"members"`
	Connected   uint32           `json:"connected"`
	LedgerVoter bool             `json:"ledger_voter"`
	Ledger      string           `json:"ledger"`
	Tasks       uint32           `json:"tasks_open"`
	Containers  uint32           `json:"containers"`
	Images      string           `json:"images,omitempty"`
	Troubles    []troubleRecord  `json:"troubles"`
	Counters    map[string]int64 `json:"counters"`
}

type troubleRecord struct {
	Code     string `json:"code"`
	Severity string `json:"severity"`
	Text     string `json:"text"`
	Hint     string `json:"hint,omitempty"`
}

func (a *App) nodeStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show how a node is doing and what troubles it", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
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
			res, err := conn.Node.Status(ctx, connect.NewRequest(&beammeshv1.StatusRequest{}))
			if err != nil {
				return conn.Fault(err)
			}
			m := res.Msg
			r := statusRecord{
				Node: nodeOf(m.GetNode()), MeshID: m.GetMeshId(), Members: m.GetMembers(), Connected: m.GetConnected(),
				LedgerVoter: m.GetLedgerVoter(), Ledger: m.GetLedgerState(), Tasks: m.GetTasksOpen(), Containers: m.GetContainers(), Images: m.GetImages(),
				Troubles: []troubleRecord{}, Counters: m.GetCounters(),
			}
			if r.Counters == nil {
				r.Counters = map[string]int64{}
			}
			for _, t := range m.GetTroubles() {
				r.Troubles = append(r.Troubles, troubleRecord{t.GetCode(), t.GetSeverity(), t.GetText(), t.GetHint()})
			}
			switch {
			case p.Format.Machine():
				return p.Value(r)
			case p.Format == output.FormatName:
				_, err = fmt.Fprintln(a.env.Stdout, r.Node.Name)
			default:
				_, err = fmt.Fprint(a.env.Stdout, statusPage(p, r))
			}
			return err
		},
	}
}

const shareWidth = 20

// statusPage is the page for people; -o wide adds the counters.
func statusPage(p *output.Printer, r statusRecord) string {
	var b strings.Builder
	st := p.Style
	n := r.Node
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "  %-11s %s\n", label, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(&b, "%s  %s", st.Bold(output.Clean(n.Name)), st.Status(n.State))
	if n.Reason != "" {
		fmt.Fprintf(&b, " (%s)", output.Clean(n.Reason))
	}
	b.WriteByte('\n')
	line("id", "%s", output.Clean(n.ID))
	line("version", "%s", output.Clean(n.Version))
	line("mesh", "%s, %s, %d connected", output.Clean(r.MeshID), output.Count(int(r.Members), "member"), r.Connected)
	line("ledger", "%s", output.Clean(r.Ledger))
	line("work", "%s, %s", output.Count(int(r.Tasks), "open task"), output.Count(int(r.Containers), "container"))
	if n.Worker {
		used := n.CPU - n.CPUFree
		line("cpu", "%s  %s of %s cores in use", p.Share(used, n.CPU, shareWidth), output.Millis(used), output.Millis(n.CPU))
		used = n.Memory - n.MemoryFree
		line("memory", "%s  %s of %s in use", p.Share(used, n.Memory, shareWidth), output.Bytes(used), output.Bytes(n.Memory))
		if r.Images != "" {
			line("images", "%s", output.Clean(r.Images))
		}
	} else {
		line("worker", "no: it answers clients but runs no containers")
	}
	if len(n.GPUs) > 0 {
		line("gpus", "%s", output.Clean(gpuText(n.GPUs)))
	}
	for _, addr := range n.Addrs {
		line("address", "%s", output.Clean(addr))
	}
	for _, t := range r.Troubles {
		word := st.Yellow("warning:")
		if t.Severity == "error" {
			word = st.Red("error:")
		}
		fmt.Fprintf(&b, "%s %s (%s)\n", word, output.Clean(t.Text), output.Clean(t.Code))
		if t.Hint != "" {
			fmt.Fprintf(&b, "  %s %s\n", st.Cyan("hint:"), output.Clean(t.Hint))
		}
	}
	if p.Format == output.FormatWide && len(r.Counters) > 0 {
		names := make([]string, 0, len(r.Counters))
		for name := range r.Counters {
			names = append(names, name)
		}
		sort.Strings(names)
		t := output.Table{Columns: []output.Column{{Title: "Counter"}, {Title: "Value", Right: true}}}
		for _, name := range names {
			t.Rows = append(t.Rows, []string{name, fmt.Sprint(r.Counters[name])})
		}
		b.WriteString(p.Grid(t, "  "))
	}
	return b.String()
}

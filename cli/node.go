package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli/client"
	"github.com/beammesh/beammesh/cli/output"
	beammeshv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
)

func (a *App) nodeCommand() *cobra.Command {
	c := &cobra.Command{Use: "node", Aliases: []string{"nodes"}, Short: "Make a mesh, join one, look after its machines"}
	c.AddCommand(a.nodeUpCommand(), a.nodeJoinCommand(), a.nodeInviteCommand(), a.nodeStatusCommand(), a.nodeListCommand(),
		a.nodeDrainCommand(), a.nodeLeaveCommand(), a.nodeDoctorCommand())
	return c
}

// missing is the answer of a build without a role.
func missing(command string) error {
	return fault.New(fault.Unsupported, "`"+command+"` is not part of this build", "build with `make build` and use bin/beam")
}

func (a *App) nodeUpCommand() *cobra.Command {
	var raw rawNodeFlags
	c := &cobra.Command{
		Use: "up", Short: "Run a node; the first start makes a mesh of one and prints a ticket", Args: noArgs,
		Long: `Run a node until Ctrl-C or SIGTERM, which drain it first.

The first start in a data folder makes a mesh of one; later starts come back as
the same member. Containers need root: without it the node answers clients and
passes their tasks on to others.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			flags, err := raw.check(cmd, a.env.StderrTTY)
			if err != nil {
				return err
			}
			if a.roles.NodeUp == nil {
				return missing(cmd.CommandPath())
			}
			flags.Started = func(s NodeStarted) error { return a.started(raw.readyFD, s) }
			flags.Progress = func(line string) { a.progress("  %s", output.Clean(line)) }
			return a.roles.NodeUp(cmd.Context(), flags)
		},
	}
	raw.add(c)
	return c
}

func (a *App) nodeJoinCommand() *cobra.Command {
	var raw rawNodeFlags
	c := &cobra.Command{
		Use: "join TICKET", Short: "Run a node as a new member of the ticket's mesh",
		Long: `Run a node as a new member of the ticket's mesh, until Ctrl-C or SIGTERM.

A ticket comes from ` + "`beam node up` or `beam node invite`" + ` on a member, works once and
expires. After joining, ` + "`beam node up`" + ` in the same data folder comes back as the
same member.`,
		Args: exactly(1, "one ticket"),
		RunE: func(cmd *cobra.Command, args []string) error {
			flags, err := raw.check(cmd, a.env.StderrTTY)
			if err != nil {
				return err
			}
			if a.roles.NodeJoin == nil {
				return missing(cmd.CommandPath())
			}
			flags.Started = func(s NodeStarted) error { return a.started(raw.readyFD, s) }
			flags.Progress = func(line string) { a.progress("  %s", output.Clean(line)) }
			return a.roles.NodeJoin(cmd.Context(), strings.TrimSpace(args[0]), flags)
		},
	}
	raw.add(c)
	return c
}

func (a *App) nodeInviteCommand() *cobra.Command {
	var ttl time.Duration
	var tier string
	c := &cobra.Command{
		Use: "invite", Short: "Print a ticket with which one more machine can join", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl < time.Second {
				return usage(cmd, "--ttl has to be at least 1s")
			}
			if tier != "own" && tier != "invited" {
				return usage(cmd, fmt.Sprintf("--tier: %q is neither own nor invited", tier))
			}
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
			res, err := conn.Node.Invite(ctx, connect.NewRequest(&beammeshv1.InviteRequest{TtlSeconds: int64(ttl / time.Second), Tier: tier}))
			if err != nil {
				return conn.Fault(err)
			}
			expires := moment(res.Msg.GetExpires())
			if p.Format.Machine() {
				return p.Value(struct {
					Ticket  string     `json:"ticket"`
					Tier    string     `json:"tier"`
					Expires *time.Time `json:"expires_at,omitempty"`
				}{res.Msg.GetTicket(), tier, expires})
			}
			if expires != nil {
				a.progress("for one machine, until %s; there: sudo beam node join TICKET", expires.Format("2006-01-02 15:04 MST"))
			}
			_, err = fmt.Fprintln(a.env.Stdout, res.Msg.GetTicket())
			return err
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "validity")
	c.Flags().StringVar(&tier, "tier", "own", "own: a machine of yours; invited: someone else's")
	_ = c.RegisterFlagCompletionFunc("tier", cobra.FixedCompletions([]string{"own", "invited"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (a *App) nodeListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the nodes of the mesh", Args: noArgs,
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
			res, err := conn.Node.ListNodes(ctx, connect.NewRequest(&beammeshv1.ListNodesRequest{}))
			if err != nil {
				return conn.Fault(err)
			}
			t := output.Table{
				Columns: []output.Column{
					{Title: ""}, {Title: "Name"}, {Title: "State", Paint: output.PaintStatus}, {Title: "Path"}, {Title: "RTT", Right: true},
					{Title: "CPU free", Right: true}, {Title: "Memory free", Right: true}, {Title: "GPUs"},
					{Title: "Version", Wide: true}, {Title: "Tier", Wide: true}, {Title: "ID", Wide: true}, {Title: "Address", Wide: true},
					{Title: "Reason"},
				},
				Empty: "no nodes",
			}
			records := []nodeRecord{}
			for _, n := range res.Msg.GetNodes() {
				r := nodeOf(n)
				records = append(records, r)
				t.Names = append(t.Names, r.Name)
				t.Rows = append(t.Rows, nodeRow(r))
			}
			t.Value = records
			return p.Table(t)
		},
	}
}

func nodeRow(r nodeRecord) []string {
	mark, rtt, cpu, mem, addr := " ", "", "", "", ""
	if r.Self {
		mark = "*"
	}
	if !r.Self && r.RTTms > 0 {
		rtt = fmt.Sprintf("%.1f ms", r.RTTms)
	}
	if r.Worker {
		cpu = output.Millis(r.CPUFree) + "/" + output.Millis(r.CPU)
		mem = output.Bytes(r.MemoryFree) + "/" + output.Bytes(r.Memory)
	}
	if len(r.Addrs) > 0 {
		addr = r.Addrs[0]
	}
	return []string{mark, r.Name, r.State, r.Path, rtt, cpu, mem, gpuText(r.GPUs), r.Version, r.Tier, r.ID, addr, r.Reason}
}

// gpuText counts devices by model: "H100 1/2 free (simulated)".
func gpuText(gpus []gpuRecord) string {
	type count struct{ free, all int }
	counts := map[string]*count{}
	var order []string
	for _, g := range gpus {
		name := g.Model
		if g.Simulated {
			name += " (simulated)"
		}
		c := counts[name]
		if c == nil {
			c = &count{}
			counts[name] = c
			order = append(order, name)
		}
		c.all++
		if g.Free {
			c.free++
		}
	}
	var parts []string
	for _, name := range order {
		c := counts[name]
		model, simulated, _ := strings.Cut(name, " ")
		s := fmt.Sprintf("%s %d/%d free", model, c.free, c.all)
		if simulated != "" {
			s += " " + simulated
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, ", ")
}

func (a *App) nodeDrainCommand() *cobra.Command {
	var undo bool
	var timeout time.Duration
	c := &cobra.Command{
		Use: "drain", Short: "Take no new work and wait until what runs has ended", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout < time.Second {
				return usage(cmd, "--timeout has to be at least 1s")
			}
			conn, err := a.connect()
			if err != nil {
				return err
			}
			st, err := conn.Node.Drain(cmd.Context(), connect.NewRequest(&beammeshv1.DrainRequest{
				Drain: !undo, TimeoutSeconds: int64(timeout / time.Second),
			}))
			if err != nil {
				return conn.Fault(err)
			}
			return a.followDrain(cmd.Context(), st, conn.Fault, false)
		},
	}
	c.Flags().BoolVar(&undo, "undo", false, "take work again")
	c.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "then stop what still runs")
	return c
}

func (a *App) nodeLeaveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "leave", Short: "Drain this node, forget its membership and end it", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, err := a.connect()
			if err != nil {
				return err
			}
			if err := a.confirm("the node at " + conn.Settings().Address() + " will leave the mesh for good. Go on?"); err != nil {
				return err
			}
			st, err := conn.Node.Leave(cmd.Context(), connect.NewRequest(&beammeshv1.LeaveRequest{}))
			if err != nil {
				return conn.Fault(err)
			}
			if err := a.followDrain(cmd.Context(), st, conn.Fault, true); err != nil {
				return err
			}
			return a.forgetNode(conn.Settings())
		},
	}
}

// forgetNode removes the contexts of a node that left: their tokens open
// nothing there any more.
func (a *App) forgetNode(s client.Settings) error {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	names := cfg.DeleteNode(s.Host, s.Port)
	if len(names) == 0 {
		return nil
	}
	if err := cfg.Save(); err != nil {
		return err
	}
	a.progress("removed from %s: context %s", cfg.Path(), strings.Join(names, ", "))
	return nil
}

// followDrain shows the steps of a drain. leaving tells that the node exits
// afterwards, so that an end of the stream after its last event is success.
func (a *App) followDrain(ctx context.Context, st *connect.ServerStreamForClient[beammeshv1.DrainEvent], fail func(error) error, leaving bool) error {
	defer st.Close()
	p, err := a.printer()
	if err != nil {
		return err
	}
	done := false
	for st.Receive() {
		m := st.Msg()
		done = done || m.GetDone()
		if p.Format == output.FormatJSON {
			if err := p.Line(struct {
				Text    string `json:"text"`
				Running uint32 `json:"running"`
				Done    bool   `json:"done"`
			}{m.GetText(), m.GetRunning(), m.GetDone()}); err != nil {
				return err
			}
			continue
		}
		a.progress("%s", output.Clean(m.GetText()))
	}
	switch {
	case ctx.Err() != nil:
		return fault.New(fault.Cancelled, "detached: the node goes on draining", "`beam node drain --undo` takes it back")
	case done:
		return nil
	case st.Err() != nil:
		return fail(st.Err())
	case leaving:
		return fault.New(fault.Internal, "the node ended without saying that it left", "`beam node ls` on another node shows whether it is gone")
	}
	return fault.New(fault.Internal, "the node stopped reporting before it was drained", "`beam node status` shows its state")
}

func (a *App) nodeDoctorCommand() *cobra.Command {
	var raw rawNodeFlags
	c := &cobra.Command{
		Use: "doctor", Short: "Try everything a node needs of this machine", Args: noArgs,
		Long: `Try everything a node needs of this machine: containers, namespaces, cgroups,
FUSE, UDP, DNS, the way out past foreign firewalls, the clock, the disk. Each
failed check comes with what mends it. The exit status is 1 when one failed.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			flags, err := raw.check(cmd, a.env.StderrTTY)
			if err != nil {
				return err
			}
			if a.roles.Doctor == nil {
				return missing(cmd.CommandPath())
			}
			return a.doctor(cmd.Context(), flags)
		},
	}
	raw.add(c)
	return c
}

// checkNameWidth is the column of check names; checks are printed one by one,
// so the width cannot depend on names to come.
const checkNameWidth = 22

func (a *App) doctor(ctx context.Context, flags NodeFlags) error {
	p, err := a.printer()
	if err != nil {
		return err
	}
	checks := []Check{}
	failed := 0
	err = a.roles.Doctor(ctx, flags, func(c Check) {
		checks = append(checks, c)
		if c.State == CheckFail {
			failed++
		}
		if p.Format.Machine() || p.Format == output.FormatName {
			return
		}
		pad := strings.Repeat(" ", max(0, 4-len(c.State)))
		fmt.Fprintf(a.env.Stdout, "%s %-*s %s\n", p.Style.Status(string(c.State))+pad, checkNameWidth, output.Clean(c.Name), output.Clean(c.Detail))
		if c.Fix != "" && c.State != CheckOK {
			fmt.Fprintf(a.env.Stdout, "     %-*s %s %s\n", checkNameWidth, "", p.Style.Cyan("fix:"), lines(c.Fix))
		}
	})
	switch {
	case p.Format.Machine():
		if perr := p.Value(checks); perr != nil {
			return perr
		}
	case p.Format == output.FormatName:
		for _, c := range checks {
			if c.State == CheckFail {
				fmt.Fprintln(a.env.Stdout, c.Name)
			}
		}
	}
	if err != nil {
		return err
	}
	if failed > 0 {
		a.progress("%d of %d checks failed", failed, len(checks))
		return errSilent
	}
	a.progress("all %d checks passed", len(checks))
	return nil
}

package cli

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli/output"
	"github.com/beammesh/beammesh/proto/fault"
)

// maxDevNodes bounds `dev up`: more nodes than this do not fit one machine.
const maxDevNodes = 32

func (a *App) devCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "dev", Short: "Run a mesh of several nodes on this machine, to try things",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return cmd.Help()
			case strings.ContainsAny(args[0], ":.") || strings.Contains(args[0], "/"):
				// In Beam's own command line `dev` takes a handler.
				return later("beam dev "+args[0], "interactive development", "run it once: `beam run "+args[0]+"`")
			}
			return unknownCommand(cmd, args[0])
		},
	}
	c.AddCommand(a.devUpCommand(), a.devDownCommand(), a.devEnvCommand(), a.devStatusCommand())
	return c
}

func (a *App) devUpCommand() *cobra.Command {
	var f DevFlags
	c := &cobra.Command{
		Use: "up", Short: "Start a mesh of several nodes, each in its own network namespace", Args: noArgs,
		Example: "  sudo beam dev up --nodes 3 --gpus H100:2,RTX4090:1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.Nodes < 1 || f.Nodes > maxDevNodes {
				return usage(cmd, fmt.Sprintf("--nodes has to be between 1 and %d", maxDevNodes))
			}
			if _, err := parseGPUs(f.GPUs); err != nil {
				return usage(cmd, "--gpus: "+err.Error())
			}
			if !(f.CPUOvercommit >= 1 && f.CPUOvercommit <= maxCPUOvercommit) {
				return usage(cmd, fmt.Sprintf("--cpu-overcommit has to be between 1 and %d", maxCPUOvercommit))
			}
			if a.roles.Dev.Up == nil {
				return missing(cmd.CommandPath())
			}
			return a.roles.Dev.Up(cmd.Context(), f, a.devProgress)
		},
	}
	c.Flags().IntVar(&f.Nodes, "nodes", 3, "number of nodes")
	c.Flags().StringVar(&f.GPUs, "gpus", "", "simulated GPUs, one entry for each node from the second on: H100:2,RTX4090:1")
	c.Flags().Float64Var(&f.CPUOvercommit, "cpu-overcommit", 4, "offer this many times the cores")
	c.Flags().StringVar(&f.Throttle, "throttle", "", "give nodes a share of their cores only: 3=0.2")
	c.Flags().StringArrayVar(&f.NodeArgs, "node-arg", nil, "added to every node's command line; may be repeated")
	devDir(c, &f)
	return c
}

func (a *App) devDownCommand() *cobra.Command {
	var f DevFlags
	c := &cobra.Command{
		Use: "down", Short: "Stop that mesh and remove everything it made", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.roles.Dev.Down == nil {
				return missing(cmd.CommandPath())
			}
			return a.roles.Dev.Down(cmd.Context(), f, a.devProgress)
		},
	}
	devDir(c, &f)
	return c
}

func (a *App) devEnvCommand() *cobra.Command {
	var f DevFlags
	c := &cobra.Command{
		Use: "env", Short: "Print how clients reach that mesh", Args: noArgs,
		Long: `Print how clients reach that mesh: GATEWAY_HOST, GATEWAY_PORT, API_HOST,
API_PORT and BEAM_TOKEN, as lines for a shell.`,
		Example: "  eval \"$(beam dev env)\"",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.Node < 1 {
				return usage(cmd, "--node counts from 1")
			}
			if a.roles.Dev.Env == nil {
				return missing(cmd.CommandPath())
			}
			p, err := a.printer()
			if err != nil {
				return err
			}
			env, err := a.roles.Dev.Env(cmd.Context(), f)
			if err != nil {
				return err
			}
			if p.Format.Machine() {
				m := map[string]string{}
				for _, kv := range env {
					k, v, _ := strings.Cut(kv, "=")
					m[k] = v
				}
				return p.Value(m)
			}
			for _, kv := range env {
				if _, err := fmt.Fprintln(a.env.Stdout, "export "+shellLine(kv)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().IntVar(&f.Node, "node", 1, "the node to talk to")
	devDir(c, &f)
	return c
}

func (a *App) devStatusCommand() *cobra.Command {
	var f DevFlags
	c := &cobra.Command{
		Use: "status", Short: "List the nodes of that mesh: which run, and where they answer", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.roles.Dev.Status == nil {
				return missing(cmd.CommandPath())
			}
			p, err := a.printer()
			if err != nil {
				return err
			}
			m, err := a.roles.Dev.Status(cmd.Context(), f)
			if err != nil {
				return err
			}
			t := output.Table{
				Columns: []output.Column{{Title: "Node"}, {Title: "Name"}, {Title: "State", Paint: output.PaintStatus}, {Title: "gRPC"},
					{Title: "HTTP"}, {Title: "GPUs"}, {Title: "PID", Wide: true, Right: true}, {Title: "Log", Wide: true}},
				Value: m,
			}
			down := 0
			for _, n := range m.Nodes {
				state, pid := "ready", fmt.Sprint(n.PID)
				if !n.Up {
					state, pid = "down", "-"
					down++
				}
				t.Names = append(t.Names, n.Name)
				t.Rows = append(t.Rows, []string{fmt.Sprint(n.Number), n.Name, state, n.GRPC, n.HTTP, cmp.Or(n.GPUs, "-"), pid, n.Log})
			}
			switch {
			case !m.Ready:
				t.Footer = "the mesh did not come up: `beam dev down`, then `beam dev up`"
			case down > 0:
				t.Footer = fmt.Sprintf("%s of %d down; `beam dev down`, then `beam dev up` makes the mesh anew", output.Count(down, "node"), len(m.Nodes))
			}
			return p.Table(t)
		},
	}
	devDir(c, &f)
	return c
}

func devDir(c *cobra.Command, f *DevFlags) {
	c.Flags().StringVar(&f.Dir, "dir", "", "folder of the mesh's state (default /var/lib/beammesh-dev)")
	c.Flags().StringVar(&f.Name, "name", "", "name of bridge and namespaces (default beamdev)")
}

func (a *App) devProgress(line string) { a.progress("%s", output.Clean(line)) }

// later is the answer to a Beam command that is not served yet: what it waits
// for, and what works today.
func later(command, with, today string) error {
	return fault.New(fault.Unsupported, fmt.Sprintf("`%s` comes with %s, which this version does not have yet", command, with), "today: "+today)
}

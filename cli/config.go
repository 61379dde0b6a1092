package cli

import (
	"fmt"
	"strconv"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli/client"
	"github.com/beammesh/beammesh/cli/output"
	"github.com/beammesh/beammesh/proto/client/gatewaypb"
	"github.com/beammesh/beammesh/proto/fault"
)

func (a *App) configCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "config", Short: "Manage the contexts of ~/.beam/config.ini",
		Long: `Manage the contexts of ~/.beam/config.ini.

A context is a node to ask and a token for it. The Python SDK and stock
clients read the context "default" of the same file; select copies another one
there.`,
	}
	c.AddCommand(a.configListCommand(), a.configCreateCommand(), a.configSelectCommand(), a.configDeleteCommand(), a.configExportCommand())
	return c
}

func (a *App) loadConfig() (*client.Config, error) {
	path := a.configPath()
	if path == "" {
		return nil, fault.New(fault.Invalid, "HOME is not set, so there is no place for a configuration", "set HOME")
	}
	return client.LoadConfig(path)
}

type contextRecord struct {
	Name     string `json:"name"`
	Selected bool   `json:"selected"`
	Host     string `json:"gateway_host"`
	Port     int    `json:"gateway_port"`
	Token    string `json:"token,omitempty"`
}

func (a *App) configListCommand() *cobra.Command {
	var show bool
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List contexts", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			p, err := a.printer()
			if err != nil {
				return err
			}
			cfg, err := a.loadConfig()
			if err != nil {
				return err
			}
			t := output.Table{
				Columns: []output.Column{{Title: ""}, {Title: "Name"}, {Title: "Host"}, {Title: "Port"}, {Title: "Token"}},
				Empty:   "no contexts in " + cfg.Path(),
			}
			records := []contextRecord{}
			selected := cfg.Selected()
			for _, x := range cfg.Contexts() {
				r := contextRecord{Name: x.Name, Selected: x.Name == selected, Host: x.Host, Port: x.Port}
				token := mask(x.Token)
				if show {
					r.Token, token = x.Token, x.Token
				}
				mark := " "
				if r.Selected {
					mark = "*"
				}
				records = append(records, r)
				t.Names = append(t.Names, r.Name)
				t.Rows = append(t.Rows, []string{mark, r.Name, r.Host, strconv.Itoa(r.Port), token})
			}
			t.Value = records
			return p.Table(t)
		},
	}
	c.Flags().BoolVar(&show, "show-token", false, "print tokens")
	return c
}

// mask shows enough of a token to tell two apart.
func mask(token string) string {
	const keep = 4
	switch {
	case token == "":
		return ""
	case len(token) <= 3*keep:
		return "…"
	}
	return "…" + token[len(token)-keep:]
}

func (a *App) configCreateCommand() *cobra.Command {
	var replace bool
	c := &cobra.Command{
		Use: "create NAME", Aliases: []string{"add"}, Short: "Add a context from --gateway-host, --gateway-port and --token",
		Long: `Add a context.

Host, port and token are those of the flags, else of GATEWAY_HOST, GATEWAY_PORT
and BEAM_TOKEN. The first context also becomes the default.`,
		Example: "  beam config create lab --gateway-host box1 --token v4.public.…",
		Args:    exactly(1, "one name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.loadConfig()
			if err != nil {
				return err
			}
			if _, ok := cfg.Context(args[0]); ok && !replace {
				return fault.New(fault.Conflict, fmt.Sprintf("context %q exists", args[0]), "add --replace to change it")
			}
			src := a.source()
			src.ConfigPath = "" // a new context takes nothing from the present one
			s, err := client.Resolve(src)
			if err != nil {
				return err
			}
			if s.Token == "" {
				return usage(cmd, "no token: use --token or BEAM_TOKEN")
			}
			x := client.Context{Name: args[0], Host: s.Host, Port: s.Port, Token: s.Token}
			first := len(cfg.Contexts()) == 0
			if err := cfg.Put(x); err != nil {
				return err
			}
			if first {
				if err := cfg.Select(x.Name); err != nil {
					return err
				}
			}
			if err := cfg.Save(); err != nil {
				return err
			}
			a.progress("saved context %s in %s", x.Name, cfg.Path())
			if !first {
				a.progress("use it with `beam -c %s …`, or for everything with `beam config select %s`", x.Name, x.Name)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&replace, "replace", false, "change a context that exists")
	return c
}

func (a *App) configSelectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "select NAME", Aliases: []string{"use-context"}, Short: "Make a context the default",
		Args: exactly(1, "one name"), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			cfg, err := a.loadConfig()
			if err != nil {
				return err
			}
			if err := cfg.Select(args[0]); err != nil {
				return err
			}
			if err := cfg.Save(); err != nil {
				return err
			}
			a.progress("selected %s", args[0])
			return nil
		},
	}
}

func (a *App) configDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Remove a context",
		Args: exactly(1, "one name"), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			cfg, err := a.loadConfig()
			if err != nil {
				return err
			}
			if _, ok := cfg.Context(args[0]); !ok {
				return fault.New(fault.NotFound, fmt.Sprintf("no context %q", args[0]), "`beam config list` shows what there is")
			}
			if err := a.confirm(fmt.Sprintf("delete context %s and its token?", args[0])); err != nil {
				return err
			}
			cfg.Delete(args[0])
			if err := cfg.Save(); err != nil {
				return err
			}
			a.progress("deleted %s", args[0])
			return nil
		},
	}
}

type exportRecord struct {
	WorkspaceID string `json:"workspace_id"`
	GRPCHost    string `json:"gateway_host"`
	GRPCPort    int32  `json:"gateway_port"`
	GRPCTLS     bool   `json:"gateway_tls"`
	HTTPHost    string `json:"api_host"`
	HTTPPort    int32  `json:"api_port"`
	HTTPTLS     bool   `json:"api_tls"`
	Token       string `json:"token,omitempty"`
}

func (a *App) configExportCommand() *cobra.Command {
	var show bool
	c := &cobra.Command{
		Use: "export", Short: "Print how other programs reach this workspace", Args: noArgs,
		Long: `Print how other programs reach this workspace, as the node tells it: as lines
for a shell (eval "$(beam config export --show-token)"), or with -o json.`,
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
			res, err := conn.Gateway.ExportWorkspaceConfig(ctx, connect.NewRequest(&gatewaypb.ExportWorkspaceConfigRequest{}))
			if err != nil {
				return conn.Fault(err)
			}
			m := res.Msg
			r := exportRecord{
				WorkspaceID: m.GetWorkspaceId(), GRPCHost: m.GetGatewayGrpcHost(), GRPCPort: m.GetGatewayGrpcPort(), GRPCTLS: m.GetGatewayGrpcTls(),
				HTTPHost: m.GetGatewayHttpHost(), HTTPPort: m.GetGatewayHttpPort(), HTTPTLS: m.GetGatewayHttpTls(),
			}
			if show {
				r.Token = conn.Settings().Token
			}
			if p.Format.Machine() {
				return p.Value(r)
			}
			s := client.Settings{Host: r.GRPCHost, Port: int(r.GRPCPort), APIHost: r.HTTPHost, APIPort: int(r.HTTPPort), Token: r.Token}
			for _, line := range s.Env() {
				if line == "BEAM_TOKEN=" {
					continue
				}
				if _, err := fmt.Fprintln(a.env.Stdout, "export "+shellLine(line)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&show, "show-token", false, "include the token")
	return c
}

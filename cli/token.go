package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli/output"
	beammeshv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/client/gatewaypb"
)

// scopes are the rights that a token can have; the node decides what each allows.
var scopes = []string{"admin", "run", "read"}

func (a *App) tokenCommand() *cobra.Command {
	c := &cobra.Command{Use: "token", Aliases: []string{"tokens"}, Short: "Manage API tokens"}
	c.AddCommand(a.tokenListCommand(), a.tokenCreateCommand(), a.tokenToggleCommand(), a.tokenDeleteCommand())
	return c
}

func (a *App) tokenListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List issued tokens", Args: noArgs,
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
			res, err := conn.Gateway.ListTokens(ctx, connect.NewRequest(&gatewaypb.ListTokensRequest{}))
			if err != nil {
				return conn.Fault(err)
			}
			if err := refused(res.Msg.GetOk(), res.Msg.GetErrMsg(), "list tokens"); err != nil {
				return err
			}
			t := output.Table{
				Columns: []output.Column{
					{Title: "ID"}, {Title: "Type"}, {Title: "State", Paint: output.PaintStatus}, {Title: "Age"},
					{Title: "Reusable", Wide: true},
				},
				Empty: "no tokens",
			}
			records := []tokenRecord{}
			now := a.env.Now()
			for _, x := range res.Msg.GetTokens() {
				r := tokenOf(x)
				r.Token = "" // shown once, when it is made
				records = append(records, r)
				t.Names = append(t.Names, r.ID)
				t.Rows = append(t.Rows, []string{r.ID, r.Type, activeWord(r.Active), output.Ago(now, at(r.Created)), yesNo(r.Reusable)})
			}
			t.Value = records
			return p.Table(t)
		},
	}
}

func activeWord(on bool) string {
	if on {
		return "active"
	}
	return "inactive"
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func (a *App) tokenCreateCommand() *cobra.Command {
	var want []string
	var ttl time.Duration
	var kind string
	c := &cobra.Command{
		Use: "create", Short: "Make a token and print it; it is shown only this once", Args: noArgs,
		Example: "  beam token create                             # all rights, 10 years\n  beam token create --scope run,read --ttl 720h",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, s := range want {
				if !slices.Contains(scopes, s) {
					return usage(cmd, fmt.Sprintf("no scope %q: one of %s", s, strings.Join(scopes, ", ")))
				}
			}
			if ttl < 0 || ttl != ttl.Truncate(time.Second) {
				return usage(cmd, "--ttl has to be whole seconds, such as 24h")
			}
			if kind != "" && (len(want) > 0 || ttl > 0) {
				return usage(cmd, "--token-type goes without --scope and --ttl")
			}
			return a.createToken(cmd, want, ttl, kind)
		},
	}
	c.Flags().StringSliceVar(&want, "scope", nil, "rights: "+strings.Join(scopes, ", ")+" (default: all)")
	c.Flags().DurationVar(&ttl, "ttl", 0, "validity (default 10 years)")
	c.Flags().StringVar(&kind, "token-type", "", "stock token type, such as workspace")
	_ = c.RegisterFlagCompletionFunc("scope", cobra.FixedCompletions(scopes, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (a *App) createToken(cmd *cobra.Command, want []string, ttl time.Duration, kind string) error {
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
	made := struct {
		ID     string   `json:"id"`
		Token  string   `json:"token"`
		Scopes []string `json:"scopes,omitempty"`
	}{Scopes: want}
	if len(want) > 0 || ttl > 0 {
		if len(want) == 0 {
			want = scopes
		}
		res, err := conn.Node.CreateScopedToken(ctx, connect.NewRequest(&beammeshv1.CreateScopedTokenRequest{
			Scopes: want, TtlSeconds: int64(ttl / time.Second),
		}))
		if err != nil {
			return conn.Fault(err)
		}
		made.ID, made.Token, made.Scopes = res.Msg.GetTokenId(), res.Msg.GetToken(), want
	} else {
		res, err := conn.Gateway.CreateToken(ctx, connect.NewRequest(&gatewaypb.CreateTokenRequest{TokenType: kind}))
		if err != nil {
			return conn.Fault(err)
		}
		if err := refused(res.Msg.GetOk(), res.Msg.GetErrMsg(), "create token"); err != nil {
			return err
		}
		made.ID, made.Token = res.Msg.GetToken().GetTokenId(), res.Msg.GetToken().GetKey()
	}
	if p.Format.Machine() {
		return p.Value(made)
	}
	if p.Format == output.FormatName {
		_, err = fmt.Fprintln(a.env.Stdout, made.ID)
		return err
	}
	a.progress("token %s; it is valid at every node and shown only now:", made.ID)
	_, err = fmt.Fprintln(a.env.Stdout, made.Token)
	return err
}

func (a *App) tokenToggleCommand() *cobra.Command {
	return &cobra.Command{
		Use: "toggle ID", Short: "Switch a token off, or on again", Args: exactly(1, "one token id"),
		ValidArgsFunction: a.completeTokens,
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
			res, err := conn.Gateway.ToggleToken(ctx, connect.NewRequest(&gatewaypb.ToggleTokenRequest{TokenId: args[0]}))
			if err != nil {
				return conn.Fault(err)
			}
			if err := refused(res.Msg.GetOk(), res.Msg.GetErrMsg(), "toggle token "+args[0]); err != nil {
				return err
			}
			r := tokenOf(res.Msg.GetToken())
			r.Token = ""
			if p.Format.Machine() {
				return p.Value(r)
			}
			a.progress("token %s is %s", args[0], activeWord(r.Active))
			return nil
		},
	}
}

func (a *App) tokenDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete ID…", Aliases: []string{"rm", "revoke"}, Short: "Revoke tokens for good", Args: atLeastOne("at least one token id"),
		ValidArgsFunction: a.completeTokens,
		RunE: func(cmd *cobra.Command, ids []string) error {
			p, err := a.printer()
			if err != nil {
				return err
			}
			if err := a.confirm("revoke " + strings.Join(ids, ", ") + "?"); err != nil {
				return err
			}
			conn, err := a.connect()
			if err != nil {
				return err
			}
			return a.each(p, ids, "revoked", func(id string) error {
				ctx, cancel := a.callContext(cmd.Context())
				defer cancel()
				res, err := conn.Gateway.DeleteToken(ctx, connect.NewRequest(&gatewaypb.DeleteTokenRequest{TokenId: id}))
				if err != nil {
					return conn.Fault(err)
				}
				return refused(res.Msg.GetOk(), res.Msg.GetErrMsg(), "delete token "+id)
			})
		},
	}
}

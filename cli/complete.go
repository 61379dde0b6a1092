package cli

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	beammeshv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/client/gatewaypb"
)

// completeTimeout bounds what a person waits after pressing Tab; no answer
// means no suggestions.
const completeTimeout = time.Second

// maxCompletions bounds how many names are offered.
const maxCompletions = 50

func (a *App) completing(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	return context.WithTimeout(ctx, completeTimeout)
}

func (a *App) completeTasks(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	const only = cobra.ShellCompDirectiveNoFileComp
	conn, err := a.connect()
	if err != nil {
		return nil, only
	}
	ctx, cancel := a.completing(cmd)
	defer cancel()
	res, err := conn.Node.ListTasks(ctx, connect.NewRequest(&beammeshv1.ListTasksRequest{Limit: maxCompletions}))
	if err != nil {
		return nil, only
	}
	var out []string
	for _, t := range res.Msg.GetTasks() {
		out = append(out, t.GetId()+"\t"+t.GetStatus()+" "+t.GetStubName())
	}
	return out, only
}

func (a *App) completeContainers(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	const only = cobra.ShellCompDirectiveNoFileComp
	conn, err := a.connect()
	if err != nil {
		return nil, only
	}
	ctx, cancel := a.completing(cmd)
	defer cancel()
	res, err := conn.Gateway.ListContainers(ctx, connect.NewRequest(&gatewaypb.ListContainersRequest{}))
	if err != nil {
		return nil, only
	}
	var out []string
	for _, c := range res.Msg.GetContainers() {
		out = append(out, c.GetContainerId()+"\t"+c.GetStatus())
	}
	return out[:min(len(out), maxCompletions)], only
}

func (a *App) completeTokens(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	const only = cobra.ShellCompDirectiveNoFileComp
	conn, err := a.connect()
	if err != nil {
		return nil, only
	}
	ctx, cancel := a.completing(cmd)
	defer cancel()
	res, err := conn.Gateway.ListTokens(ctx, connect.NewRequest(&gatewaypb.ListTokensRequest{}))
	if err != nil {
		return nil, only
	}
	var out []string
	for _, t := range res.Msg.GetTokens() {
		out = append(out, t.GetTokenId()+"\t"+t.GetTokenType())
	}
	return out[:min(len(out), maxCompletions)], only
}

func (a *App) completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	const only = cobra.ShellCompDirectiveNoFileComp
	cfg, err := a.loadConfig()
	if err != nil {
		return nil, only
	}
	var out []string
	for _, x := range cfg.Contexts() {
		out = append(out, x.Name+"\t"+x.Host)
	}
	return out, only
}

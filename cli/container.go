package cli

import (
	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli/output"
	"github.com/beammesh/beammesh/proto/client/gatewaypb"
)

func (a *App) containerCommand() *cobra.Command {
	c := &cobra.Command{Use: "container", Aliases: []string{"containers"}, Short: "List and stop containers"}
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List running containers", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listContainers(cmd) },
	}
	stop := &cobra.Command{
		Use: "stop CONTAINER…", Short: "Stop containers; their tasks are tried again if they may be",
		Args: atLeastOne("at least one container id"), ValidArgsFunction: a.completeContainers,
		RunE: func(cmd *cobra.Command, ids []string) error {
			p, err := a.printer()
			if err != nil {
				return err
			}
			conn, err := a.connect()
			if err != nil {
				return err
			}
			return a.each(p, ids, "stopped", func(id string) error {
				ctx, cancel := a.callContext(cmd.Context())
				defer cancel()
				res, err := conn.Gateway.StopContainer(ctx, connect.NewRequest(&gatewaypb.StopContainerRequest{ContainerId: id}))
				if err != nil {
					return conn.Fault(err)
				}
				return refused(res.Msg.GetOk(), res.Msg.GetErrorMsg(), "stop container "+id)
			})
		},
	}
	c.AddCommand(list, stop)
	return c
}

func (a *App) listContainers(cmd *cobra.Command) error {
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
	res, err := conn.Gateway.ListContainers(ctx, connect.NewRequest(&gatewaypb.ListContainersRequest{}))
	if err != nil {
		return conn.Fault(err)
	}
	if err := refused(res.Msg.GetOk(), res.Msg.GetErrorMsg(), "list containers"); err != nil {
		return err
	}
	records := []containerRecord{}
	t := output.Table{
		Columns: []output.Column{
			{Title: "ID"}, {Title: "Status", Paint: output.PaintStatus}, {Title: "Stub ID"}, {Title: "Deployment ID"},
			{Title: "Scheduled At"}, {Title: "Uptime"}, {Title: "Node", Wide: true}, {Title: "Workspace", Wide: true},
		},
		Empty: "no containers",
	}
	now := a.env.Now()
	for _, c := range res.Msg.GetContainers() {
		r := containerOf(c)
		records = append(records, r)
		t.Names = append(t.Names, r.ID)
		scheduled := ""
		if r.Scheduled != nil {
			scheduled = r.Scheduled.Format("2006-01-02 15:04:05")
		}
		t.Rows = append(t.Rows, []string{r.ID, r.Status, r.StubID, r.DeploymentID, scheduled,
			output.Ago(now, at(r.Started)), r.NodeID, r.WorkspaceID})
	}
	t.Value = records
	t.Footer = output.Count(len(records), "item")
	return p.Table(t)
}

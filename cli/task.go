package cli

import (
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli/output"
	beammeshv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/client/gatewaypb"
	"github.com/beammesh/beammesh/proto/fault"
)

// maxTaskList is the most tasks one list asks for; it equals the API's bound.
const maxTaskList = 1000

func (a *App) taskCommand() *cobra.Command {
	c := &cobra.Command{Use: "task", Aliases: []string{"tasks"}, Short: "List and stop tasks"}
	c.AddCommand(a.taskListCommand(), a.taskStopCommand())
	return c
}

func (a *App) taskListCommand() *cobra.Command {
	var limit uint32
	var status string
	var filters []string
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List tasks of the whole mesh, newest first", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit == 0 || limit > maxTaskList {
				return usage(cmd, fmt.Sprintf("--limit has to be between 1 and %d", maxTaskList))
			}
			for _, f := range filters {
				key, value, ok := strings.Cut(f, "=")
				if !ok || key != "status" {
					return usage(cmd, fmt.Sprintf("--filter %s: only status=VALUE is known", f))
				}
				status = value
			}
			return a.listTasks(cmd, limit, strings.ToUpper(status))
		},
	}
	c.Flags().Uint32Var(&limit, "limit", 100, "most tasks to show")
	c.Flags().StringVar(&status, "status", "", "only tasks in this state")
	c.Flags().StringArrayVar(&filters, "filter", nil, "status=VALUE")
	_ = c.RegisterFlagCompletionFunc("status", cobra.FixedCompletions(
		[]string{"PENDING", "RUNNING", "COMPLETE", "ERROR", "CANCELLED", "TIMEOUT", "RETRY"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (a *App) listTasks(cmd *cobra.Command, limit uint32, status string) error {
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
	res, err := conn.Node.ListTasks(ctx, connect.NewRequest(&beammeshv1.ListTasksRequest{Limit: limit, Status: status}))
	if err != nil {
		return conn.Fault(err)
	}
	records := []taskRecord{}
	t := output.Table{
		Columns: []output.Column{
			{Title: "ID"}, {Title: "Status", Paint: output.PaintStatus}, {Title: "Name"}, {Title: "Node"},
			{Title: "Age"}, {Title: "Took"}, {Title: "Attempt", Wide: true, Right: true}, {Title: "Owner", Wide: true},
			{Title: "Container", Wide: true}, {Title: "Waiting for"},
		},
		Empty: "no tasks",
	}
	now := a.env.Now()
	for _, info := range res.Msg.GetTasks() {
		r := taskOf(info)
		records = append(records, r)
		t.Names = append(t.Names, r.ID)
		t.Rows = append(t.Rows, []string{
			r.ID, r.Status, r.Name, r.Node, output.Ago(now, at(r.Created)), took(r, now),
			fmt.Sprint(r.Attempt), r.Owner, r.Container, r.Waiting,
		})
	}
	t.Value = records
	if err := p.Table(t); err != nil {
		return err
	}
	if m := res.Msg.GetMissingNodes(); len(m) > 0 {
		fmt.Fprintf(a.env.Stderr, "warning: no answer from %s: tasks they own are not shown\n", output.Clean(strings.Join(m, ", ")))
	}
	return nil
}

// took is how long the task ran, up to now when it still does.
func took(r taskRecord, now time.Time) string {
	if r.Started == nil {
		return "-"
	}
	end := now
	if r.Ended != nil {
		end = *r.Ended
	}
	return output.Duration(max(0, end.Sub(*r.Started)))
}

func (a *App) taskStopCommand() *cobra.Command {
	return &cobra.Command{
		Use: "stop TASK…", Short: "Cancel tasks", Args: atLeastOne("at least one task id"),
		ValidArgsFunction: a.completeTasks,
		RunE: func(cmd *cobra.Command, ids []string) error {
			p, err := a.printer()
			if err != nil {
				return err
			}
			conn, err := a.connect()
			if err != nil {
				return err
			}
			// One call each, so that a wrong id does not hide what became of the others.
			return a.each(p, ids, "stopped", func(id string) error {
				ctx, cancel := a.callContext(cmd.Context())
				defer cancel()
				res, err := conn.Gateway.StopTasks(ctx, connect.NewRequest(&gatewaypb.StopTasksRequest{TaskIds: []string{id}}))
				if err != nil {
					return conn.Fault(err)
				}
				return refused(res.Msg.GetOk(), res.Msg.GetErrMsg(), "stop task "+id)
			})
		},
	}
}

// refused makes an error of an answer whose ok is false.
func refused(ok bool, message, what string) error {
	if ok {
		return nil
	}
	if message == "" {
		message = "refused by the node"
	}
	return fault.New(fault.Failed, what+": "+message, "")
}

// each does one thing to every name, prints the names that worked, and fails
// with the first error after all were tried.
func (a *App) each(p *output.Printer, names []string, done string, do func(name string) error) error {
	var first error
	worked := []string{}
	for _, n := range names {
		if err := do(n); err != nil {
			if first == nil {
				first = err
			} else {
				fmt.Fprintf(a.env.Stderr, "%s %s\n", a.style(a.env.StderrTTY).Red("error:"), lines(fault.From(err).Error()))
			}
			continue
		}
		worked = append(worked, n)
	}
	if p.Format.Machine() {
		if err := p.Value(map[string][]string{done: worked}); err != nil {
			return err
		}
		return first
	}
	for _, n := range worked {
		if _, err := fmt.Fprintln(p.Out, n); err != nil {
			return err
		}
	}
	if len(worked) > 0 {
		a.progress("%s %d", done, len(worked))
	}
	return first
}

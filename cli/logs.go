package cli

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli/output"
	beammeshv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
)

func (a *App) logsCommand() *cobra.Command {
	var req beammeshv1.TaskLogsRequest
	var deployment, stub string
	c := &cobra.Command{
		Use:   "logs [TASK]",
		Short: "Print what a task or container wrote",
		Long: `Print what a task or container wrote to stdout and stderr.

Without --follow it prints what there is and ends. With it, it goes on until
the task ends; Ctrl-C only detaches, the task goes on.`,
		ValidArgsFunction: a.completeTasks,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) > 1:
				return usage(cmd, "want one task")
			case len(args) == 1 && req.TaskId != "":
				return usage(cmd, "give the task once, as an argument or with --task-id")
			case len(args) == 1:
				req.TaskId = args[0]
			}
			if deployment != "" || stub != "" {
				return fault.New(fault.Unsupported, "logs of a deployment come with deployments",
					"until then ask for a task or container: `beam task list`, `beam logs TASK`")
			}
			if (req.TaskId == "") == (req.ContainerId == "") {
				return usage(cmd, "say which one: TASK, --task-id or --container-id")
			}
			return a.printLogs(cmd.Context(), &req)
		},
	}
	f := c.Flags()
	f.StringVar(&req.TaskId, "task-id", "", "task")
	f.StringVar(&req.ContainerId, "container-id", "", "container")
	f.StringVar(&deployment, "deployment-id", "", "deployment")
	f.StringVar(&stub, "stub-id", "", "stub")
	f.BoolVarP(&req.Follow, "follow", "f", false, "go on until the task ends")
	f.Uint32VarP(&req.TailLines, "tail", "n", 0, "only the last lines (0 = all that is kept)")
	_ = c.RegisterFlagCompletionFunc("task-id", a.completeTasks)
	_ = c.RegisterFlagCompletionFunc("container-id", a.completeContainers)
	return c
}

// logRecord is one piece of output with -o json, one object a line.
type logRecord struct {
	TaskID string `json:"task_id"`
	Stream string `json:"stream"`
	Data   string `json:"data"`
}

func (a *App) printLogs(ctx context.Context, req *beammeshv1.TaskLogsRequest) error {
	p, err := a.printer()
	if err != nil {
		return err
	}
	if p.Format == output.FormatYAML || p.Format == output.FormatName {
		return fault.New(fault.Invalid, "logs are printed as text or as lines of JSON", "use -o json")
	}
	conn, err := a.connect()
	if err != nil {
		return err
	}
	st, err := conn.Node.TaskLogs(ctx, connect.NewRequest(req))
	if err != nil {
		return conn.Fault(err)
	}
	defer st.Close()
	for st.Receive() {
		l := st.Msg()
		stream := "stdout"
		if l.GetFd() == 2 {
			stream = "stderr"
		}
		switch {
		case p.Format == output.FormatJSON:
			err = p.Line(logRecord{l.GetTaskId(), stream, string(l.GetData())})
		case stream == "stderr":
			_, err = fmt.Fprint(a.env.Stdout, p.Style.Red(string(l.GetData())))
		default:
			_, err = a.env.Stdout.Write(l.GetData()) // the user's own output, as it is
		}
		if err != nil {
			return err
		}
	}
	if ctx.Err() != nil && req.GetFollow() {
		what := "task " + req.GetTaskId() + " goes on; stop it with `beam task stop " + req.GetTaskId() + "`"
		if req.GetTaskId() == "" {
			what = "container " + req.GetContainerId() + " goes on; stop it with `beam container stop " + req.GetContainerId() + "`"
		}
		return fault.New(fault.Cancelled, "detached", what)
	}
	if err := st.Err(); err != nil && !errors.Is(err, context.Canceled) {
		return conn.Fault(err)
	}
	return nil
}

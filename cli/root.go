package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli/output"
	"github.com/beammesh/beammesh/proto/fault"
)

const rootLong = `beam runs plain Python functions in containers on the best machine of a mesh.

  beam node up                 make a mesh of this machine, print a ticket
  beam node join TICKET        add this machine to a mesh
  beam run app.py:fn           run a function, see its output, get its result

Any node answers for the whole mesh. Which one is asked: --gateway-host and
--gateway-port, --context, GATEWAY_HOST and GATEWAY_PORT, ~/.beam/config.ini,
else the node on this machine.`

// The groups of commands in help.
const (
	groupWork = "work"
	groupMesh = "mesh"
	groupMore = "more"
)

func (a *App) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "beam",
		Short:         "Run Python functions on a mesh of your own machines",
		Long:          rootLong,
		SilenceErrors: true, // printError does it
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			_, err := a.format()
			return err
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
	}
	root.AddGroup(
		&cobra.Group{ID: groupWork, Title: "Work:"},
		&cobra.Group{ID: groupMesh, Title: "Machines:"},
		&cobra.Group{ID: groupMore, Title: "More:"})
	p := root.PersistentFlags()
	p.StringVarP(&a.flags.context, "context", "c", "", "context of ~/.beam/config.ini to use")
	p.StringVar(&a.flags.host, "gateway-host", "", "node to ask")
	p.StringVar(&a.flags.port, "gateway-port", "", "its gRPC and Connect port (default 1993)")
	p.StringVar(&a.flags.token, "token", "", "API token")
	p.StringVarP(&a.flags.output, "output", "o", "", strings.Join(output.Formats(), "|"))
	p.StringVar(&a.flags.output, "format", "", "same as --output")
	p.BoolVar(&a.flags.json, "json", false, "same as --output json")
	p.BoolVarP(&a.flags.yes, "yes", "y", false, "do not ask before what cannot be undone")
	p.Lookup("format").Hidden = true
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(output.Formats(), cobra.ShellCompDirectiveNoFileComp))
	_ = root.RegisterFlagCompletionFunc("context", a.completeContexts)

	in := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	in(groupWork, a.runCommand(), a.submitCommand(), a.taskCommand(), a.containerCommand(), a.logsCommand(), a.explainCommand())
	in(groupMesh, a.nodeCommand(), a.devCommand())
	if a.roles.Sim != nil {
		in(groupMore, a.roles.Sim(a))
	}
	in(groupMore, a.configCommand(), a.tokenCommand(), a.versionCommand())
	root.AddCommand(a.laterCommands()...)
	root.SetHelpCommandGroupID(groupMore)
	root.SetCompletionCommandGroupID(groupMore)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(cmd, flagError(err))
	})
	groupsRefuseUnknown(root)
	return root
}

// flagError rewords pflag's messages into our form.
func flagError(err error) string {
	s := err.Error()
	s = strings.Replace(s, "invalid argument ", "", 1)
	if i := strings.Index(s, " flag: "); i >= 0 { // "x" for "-n, --tail" flag: strconv.ParseUint: parsing "x": invalid syntax
		value, name, ok := strings.Cut(s[:i], " for ")
		if ok {
			return fmt.Sprintf("%s is no value for %s", value, strings.Trim(name, `"`))
		}
	}
	return s
}

// groupsRefuseUnknown makes `beam task lst` an error with a suggestion, where
// cobra would print help and succeed.
func groupsRefuseUnknown(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		if c.HasSubCommands() && c.RunE == nil {
			c.Args = cobra.ArbitraryArgs
			c.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) > 0 {
					return unknownCommand(cmd, args[0])
				}
				return cmd.Help()
			}
		}
		groupsRefuseUnknown(c)
	}
}

func unknownCommand(cmd *cobra.Command, name string) error {
	hint := fmt.Sprintf("`%s --help` lists the commands", cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		hint = fmt.Sprintf("did you mean `%s %s`?", cmd.CommandPath(), near[0])
	}
	return fault.New(fault.Invalid, fmt.Sprintf("no command `%s %s`", cmd.CommandPath(), name), hint)
}

// exactly gives an argument check whose error names what is wanted.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usage(cmd, fmt.Sprintf("want %s, got %d arguments", what, len(args)))
		}
		return nil
	}
}

func atLeastOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usage(cmd, "want "+what)
		}
		return nil
	}
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage(cmd, fmt.Sprintf("takes no arguments, got %q", args[0]))
	}
	return nil
}

func (a *App) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this program", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			p, err := a.printer()
			if err != nil {
				return err
			}
			v := a.roles.Version
			if v == "" {
				v = "unknown"
			}
			if p.Format.Machine() {
				return p.Value(map[string]string{"version": v})
			}
			_, err = fmt.Fprintln(a.env.Stdout, v)
			return err
		},
	}
}

package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

// laterCommands are the commands of Beam's own command line that this version
// does not serve: they explain instead of being unknown.
func (a *App) laterCommands() []*cobra.Command {
	const (
		deploys = "endpoints and deployments"
		pods    = "pods and shells"
		volumes = "volumes"
		fn      = "call the function from Python, or `beam run app.py:fn`"
		nodes   = "`beam node ls`, `beam node invite`, `beam node join TICKET`"
	)
	table := []struct{ name, with, today string }{
		{"deploy", deploys, fn},
		{"serve", deploys, fn},
		{"deployment", deploys, fn},
		{"shell", pods, "`beam logs -f TASK` shows a task's output while it runs"},
		{"ls", volumes, "files that a function needs can lie next to its code: they travel with it"},
		{"cp", volumes, "files that a function needs can lie next to its code: they travel with it"},
		{"rm", volumes, "`beam container stop` and `beam task stop` end what runs"},
		{"mv", volumes, "files that a function needs can lie next to its code: they travel with it"},
		{"volume", volumes, "files that a function needs can lie next to its code: they travel with it"},
		{"secret", "secrets", "pass values as arguments of the function"},
		{"machine", "rented machines", nodes},
		{"pool", "pools of machines", nodes},
		{"worker", "managing workers from afar", "on the machine itself: `beam node status`, `beam node drain`"},
		{"disk", "durable disks", "return results from the function"},
		{"db", "databases", "return results from the function"},
		{"quickstart", "project templates", "a first program is in examples/square.py"},
		{"example", "project templates", "a first program is in examples/square.py"},
		{"login", "accounts", "`beam node up` saves a token for this machine; for others `beam token create`, `beam config create`"},
		{"configure", "accounts", "`beam config create NAME --gateway-host HOST --token TOKEN`"},
	}
	var out []*cobra.Command
	for _, e := range table {
		out = append(out, &cobra.Command{
			Use: e.name, Hidden: true, DisableFlagParsing: true,
			Short: "Comes with " + e.with,
			RunE: func(cmd *cobra.Command, args []string) error {
				name := cmd.CommandPath()
				if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
					name += " " + args[0]
				}
				return later(name, e.with, e.today)
			},
		})
	}
	return out
}

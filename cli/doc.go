// Package cli is the command line of beam. It talks to a node only through the
// node's API (package client); what needs the node's own code (starting a
// node, doctor, a mesh of nodes on this machine) is injected as Roles, so that
// this package can be built and tested without it.
//
//	os.Exit(cli.New(roles).Run(ctx, os.Args[1:], cli.System()))
//
// Rules that tests hold: stdout is data and nothing else; stderr is progress,
// `error:` and `hint:`; exit statuses are those of package fault; nothing asks
// a question unless both stdin and stderr are a terminal; every list takes
// -o table|wide|json|yaml|name.
package cli

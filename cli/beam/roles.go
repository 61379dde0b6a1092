package main

import (
	"github.com/beammesh/beammesh/cli"
)

// version is set by the linker: -X main.version=….
var version = "dev"

// roles joins the command line to the parts of the program it does not import.
func roles() cli.Roles {
	return cli.Roles{Version: version}
}

// helperRole gives the function of a helper process that the arguments name,
// if they name one.
func helperRole(args []string) (run func() int, ok bool) {
	return nil, false
}

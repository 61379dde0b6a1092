// Command shim is containerd-shim-runc-v2: it keeps one container's runc, its
// exit status and its standard streams while the node restarts. It is a
// program of its own, and not a role of beam, because it is started twice per
// container and stays for the container's life: it should link little.
package main

import (
	"context"

	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task/plugin"
	"github.com/containerd/containerd/v2/pkg/shim"
)

func main() {
	// Its log would end up on the node's standard error, where on cgroup v1 an
	// exiting shim writes the same line thousands of times. What matters it
	// says in its answers.
	shim.RunShim(context.Background(), manager.NewShimManager("io.containerd.runc.v2"), func(c *shim.Config) { c.NoSetupLogger = true })
}

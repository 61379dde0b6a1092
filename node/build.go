package node

import (
	"context"
	"os"

	"github.com/beammesh/beammesh/node/service/image"
	"github.com/beammesh/beammesh/proto/fault"
)

// bootstrap makes a base image's files in dir, unless they are there.
func (n *Node) bootstrap(ctx context.Context, suite, dir string, say func(string)) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	return fault.New(fault.Unsupported, "not yet", "")
}

// runSteps runs an image's steps, each in a container on top of the layers
// before it, and gives the new layers.
func (n *Node) runSteps(ctx context.Context, workspace string, roots []string, s image.Spec, say func(string)) ([]string, error) {
	return nil, fault.New(fault.Unsupported, "not yet", "")
}

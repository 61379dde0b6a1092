package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/userns"
)

// Changes calls f with a folder that holds what the running container has
// changed in its root filesystem: overlay's upper layer, where a character
// device 0:0 means a removed path and the attribute trusted.overlay.opaque a
// replaced folder, with owners as seen inside (a mark of removal has none). The folder is gone when f
// returns. Processes that write meanwhile are the caller's business.
func (e *Engine) Changes(ctx context.Context, id string, f func(ctx context.Context, dir string) error) error {
	ctx, leave, err := e.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	e.mu.Lock()
	c := e.containers[id]
	e.mu.Unlock()
	if c == nil {
		return fmt.Errorf("container %s: %w", id, runtime.ErrNotFound)
	}
	rev, err := userns.Reverse(c.slot.pair.First, idsPerContainer)
	if err != nil {
		return fmt.Errorf("changes of container %s: %w", id, err)
	}
	defer rev.Close()
	// Not below the container's folder, which may go at any time.
	dir, err := os.MkdirTemp(e.cfg.State, "changes-")
	if err != nil {
		return fmt.Errorf("changes of container %s: %w", id, err)
	}
	if err = rev.Bind(filepath.Join(c.slot.disk, "upper"), dir, false); err == nil {
		err = f(ctx, dir)
		err = errors.Join(err, unmount(dir))
	}
	if err = errors.Join(err, os.Remove(dir)); err != nil {
		return fmt.Errorf("changes of container %s: %w", id, err)
	}
	return nil
}

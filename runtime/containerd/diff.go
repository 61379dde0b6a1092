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

var _ runtime.Differ = (*Engine)(nil)

// Diff implements runtime.Differ. The writable layer's files belong to the
// container's ids on the host; a mount that takes the shift back shows them as
// the container sees them. The folder is gone when fn returns. Processes that
// write meanwhile are the caller's business.
func (e *Engine) Diff(ctx context.Context, id string, fn func(dir string) error) error {
	_, leave, err := e.enter(ctx)
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
	back, err := userns.Unmapped(c.slot.pair.First, idsPerContainer)
	if err != nil {
		return fmt.Errorf("show what container %s wrote: %w", id, err)
	}
	defer back.Close()
	// Not below the container's folder, which may go at any time.
	dir, err := os.MkdirTemp(e.cfg.State, "diff-")
	if err != nil {
		return fmt.Errorf("show what container %s wrote: %w", id, err)
	}
	if err = back.Bind(filepath.Join(c.slot.disk, "upper"), dir, false); err == nil {
		err = fn(dir)
		err = errors.Join(err, unmount(dir))
	}
	if err = errors.Join(err, os.Remove(dir)); err != nil {
		return fmt.Errorf("show what container %s wrote: %w", id, err)
	}
	return nil
}

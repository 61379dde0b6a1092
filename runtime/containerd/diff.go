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
// the container sees them.
func (e *Engine) Diff(_ context.Context, id string, fn func(dir string) error) (err error) {
	e.mu.Lock()
	c := e.containers[id]
	e.mu.Unlock()
	if c == nil {
		return fmt.Errorf("container %s: %w", id, runtime.ErrNotFound)
	}
	back, err := userns.Unmapped(c.slot.pair.First, c.slot.pair.Count)
	if err != nil {
		return fmt.Errorf("show what %s wrote: %w", id, err)
	}
	defer back.Close()
	dir := filepath.Join(c.dir, "diff")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("show what %s wrote: %w", id, err)
	}
	if err := back.Bind(filepath.Join(c.slot.disk, "upper"), dir, false); err != nil {
		return errors.Join(fmt.Errorf("show what %s wrote: %w", id, err), os.Remove(dir))
	}
	defer func() { err = errors.Join(err, unmount(dir), os.Remove(dir)) }()
	return fn(dir)
}

package containerd

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// collect removes layers, least recently used first, until the rest fits the
// budget. A layer that is pinned, or that others lie on, stays.
func (s *layerStore) collect(ctx context.Context) error {
	infos, children, err := s.walk(ctx)
	if err != nil {
		return err
	}
	var total int64
	size := map[string]int64{}
	for name, i := range infos {
		if i.Kind != snapshots.KindCommitted {
			continue
		}
		u, err := s.sn.Usage(ctx, name)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("measure layer %s: %w", name, err)
		}
		size[name] = u.Size
		total += u.Size
	}
	for total > s.budget {
		name := s.oldest(size, children)
		if name == "" {
			return nil
		}
		// The snapshotter refuses if a layer was put on top since walk.
		err := s.sn.Remove(ctx, name)
		s.left(name)
		if errdefs.IsFailedPrecondition(err) {
			delete(size, name)
			continue
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove layer %s: %w", name, err)
		}
		s.log.Debug("dropped unused layer", "layer", name, "bytes", size[name])
		total -= size[name]
		delete(size, name)
		p := infos[name].Parent
		children[p] = without(children[p], name)
	}
	return nil
}

// oldest is the free layer that was used the longest ago, "" if there is none.
// What it returns is marked as leaving: a caller of ensure waits for left.
func (s *layerStore) oldest(size map[string]int64, children map[string][]string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	best := ""
	for name := range size {
		if s.pins[name] == 0 && s.leaving[name] == nil && len(children[name]) == 0 && (best == "" || s.used[name].Before(s.used[best])) {
			best = name
		}
	}
	if best != "" {
		delete(s.lower, best)
		delete(s.used, best)
		s.leaving[best] = make(chan struct{})
	}
	return best
}

func (s *layerStore) left(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.leaving[name])
	delete(s.leaving, name)
}

func without(l []string, s string) []string {
	var out []string
	for _, x := range l {
		if x != s {
			out = append(out, x)
		}
	}
	return out
}

package blocks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/beammesh/beammesh/content"
)

var (
	_ content.Committer = (*Store)(nil)
	_ content.User      = (*Store)(nil)
)

const (
	maxOwner = 100 // bytes of a pin's owner, so that its file name fits
	// useStep is how stale the recorded time of last use may be: one file
	// update per tree and minute is enough for an order by age.
	useStep = time.Minute
)

// rootSet is the list of complete trees, in memory as on disk.
type rootSet struct {
	mu   sync.Mutex
	used map[cid.Cid]time.Time           // listed trees, last use
	pins map[cid.Cid]map[string]struct{} // owners
	uses map[cid.Cid]int                 // of this process
}

func (r *rootSet) init() {
	r.used = map[cid.Cid]time.Time{}
	r.pins = map[cid.Cid]map[string]struct{}{}
	r.uses = map[cid.Cid]int{}
}

// keptLocked is true when c must not be collected.
func (r *rootSet) keptLocked(c cid.Cid) bool { return len(r.pins[c]) > 0 || r.uses[c] > 0 }

func (s *Store) loadRoots() error {
	r := &s.roots
	list, err := os.ReadDir(filepath.Join(s.dir, "roots"))
	if err != nil {
		return err
	}
	for _, e := range list {
		c, err := cid.Decode(e.Name())
		if err != nil {
			continue
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		r.used[c] = st.ModTime()
	}
	list, err = os.ReadDir(filepath.Join(s.dir, "pins"))
	if err != nil {
		return err
	}
	for _, e := range list {
		text, owner, _ := strings.Cut(e.Name(), "~")
		c, err := cid.Decode(text)
		if err != nil {
			continue
		}
		o, err := encoding.DecodeString(owner)
		if err != nil {
			continue
		}
		r.pin(c, string(o))
	}
	return nil
}

func (r *rootSet) pin(c cid.Cid, owner string) {
	if r.pins[c] == nil {
		r.pins[c] = map[string]struct{}{}
	}
	r.pins[c][owner] = struct{}{}
}

// Commit is Sync, then root is listed as a complete tree, used now.
func (s *Store) Commit(ctx context.Context, root content.Root) error {
	if ok, err := s.Has(ctx, root); err != nil {
		return fmt.Errorf("commit: %w", err)
	} else if !ok {
		return fmt.Errorf("commit: %w", absent(root))
	}
	if err := s.Sync(ctx); err != nil {
		return err
	}
	r := &s.roots
	r.mu.Lock()
	defer r.mu.Unlock()
	_, listed := r.used[root]
	if err := s.touchLocked(root, true); err != nil {
		return fmt.Errorf("commit %s: %w", root, err)
	}
	if listed {
		return nil
	}
	if err := syncDir(filepath.Join(s.dir, "roots")); err != nil {
		return fmt.Errorf("commit %s: %w", root, err)
	}
	return nil
}

// touchLocked records a use of root; with add it lists a new one.
func (s *Store) touchLocked(root cid.Cid, add bool) error {
	r := &s.roots
	now, last := time.Now(), r.used[root]
	if last.IsZero() && !add {
		return nil
	}
	if now.Sub(last) < useStep {
		r.used[root] = now
		return nil
	}
	name := filepath.Join(s.dir, "roots", root.String())
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return diskError(err)
	}
	f.Close()
	if err := os.Chtimes(name, now, now); err != nil {
		return err
	}
	r.used[root] = now
	return nil
}

// Pin keeps root until Unpin with the same owner, over restarts. The tree may
// still be incomplete. An owner has 1 to 100 bytes.
func (s *Store) Pin(ctx context.Context, root content.Root, owner string) error {
	if owner == "" || len(owner) > maxOwner {
		return fmt.Errorf("pin %s: owner of %d bytes, want 1 to %d", root, len(owner), maxOwner)
	}
	r := &s.roots
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.pins[root][owner]; ok {
		return nil
	}
	f, err := os.OpenFile(s.pinPath(root, owner), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("pin %s: %w", root, diskError(err))
	}
	f.Close()
	if err := syncDir(filepath.Join(s.dir, "pins")); err != nil {
		return fmt.Errorf("pin %s: %w", root, err)
	}
	r.pin(root, owner)
	return nil
}

// Unpin ends a Pin. It is no error when there is none.
func (s *Store) Unpin(ctx context.Context, root content.Root, owner string) error {
	r := &s.roots
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.pins[root][owner]; !ok {
		return nil
	}
	if err := os.Remove(s.pinPath(root, owner)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin %s: %w", root, err)
	}
	if err := syncDir(filepath.Join(s.dir, "pins")); err != nil {
		return fmt.Errorf("unpin %s: %w", root, err)
	}
	delete(r.pins[root], owner)
	if len(r.pins[root]) == 0 {
		delete(r.pins, root)
	}
	return nil
}

func (s *Store) pinPath(root cid.Cid, owner string) string {
	return filepath.Join(s.dir, "pins", root.String()+"~"+encoding.EncodeToString([]byte(owner)))
}

// Pinned lists the owners of each pinned root, in order.
func (s *Store) Pinned() map[content.Root][]string {
	r := &s.roots
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[content.Root][]string, len(r.pins))
	for c, owners := range r.pins {
		for o := range owners {
			out[c] = append(out[c], o)
		}
		slices.Sort(out[c])
	}
	return out
}

// Use keeps root until release is called or the process ends, and counts as
// its latest use.
func (s *Store) Use(root content.Root) (release func()) {
	r := &s.roots
	r.mu.Lock()
	defer r.mu.Unlock()
	r.uses[root]++
	if err := s.touchLocked(root, false); err != nil {
		s.log.Warn("record the use of a tree", "digest", root.String(), "err", err)
	}
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.uses[root]--; r.uses[root] == 0 {
			delete(r.uses, root)
		}
	})
}

// Listed tells whether root is on the list of complete trees.
func (s *Store) Listed(root content.Root) bool {
	r := &s.roots
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.used[root]
	return ok
}

// Roots lists the complete trees, most recently used first.
func (s *Store) Roots() []content.Root {
	r := &s.roots
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.listLocked()
}

func (r *rootSet) listLocked() []cid.Cid {
	list := make([]cid.Cid, 0, len(r.used))
	for c := range r.used {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b cid.Cid) int {
		if n := r.used[b].Compare(r.used[a]); n != 0 {
			return n
		}
		return strings.Compare(a.KeyString(), b.KeyString())
	})
	return list
}

// Forget takes root off the list of trees; its blocks go with the next GC
// unless another tree holds them. Pins stay.
func (s *Store) Forget(ctx context.Context, root content.Root) error {
	r := &s.roots
	r.mu.Lock()
	defer r.mu.Unlock()
	return s.forgetLocked(root)
}

func (s *Store) forgetLocked(root cid.Cid) error {
	err := os.Remove(filepath.Join(s.dir, "roots", root.String()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget %s: %w", root, err)
	}
	delete(s.roots.used, root)
	return nil
}

package blocks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/beammesh/beammesh/content"
)

// Links calls emit with every block of a tree; tree.Blocks is one. It gives
// content.ErrNotFound when a part of the manifest is not here.
type Links func(ctx context.Context, store content.Blocks, root content.Root, emit func(d content.Digest, size int64) error) error

// GCStats tells what a collection did.
type GCStats struct {
	KeptBytes, FreedBytes   int64
	KeptBlocks, FreedBlocks int64
	DroppedRoots            []content.Root
}

// GC drops the least recently used trees that are neither pinned nor in use
// until the rest is within budgetBytes, and every block that no tree holds
// (older than Options.OrphanAge, so that a broken-off fetch can go on). Blocks
// touched during a Hold stay. One collection runs at a time; reads and writes
// go on meanwhile. It needs about 50 bytes of memory per block kept.
func (s *Store) GC(ctx context.Context, budgetBytes int64, links Links) (GCStats, error) {
	s.gcMu.Lock()
	defer s.gcMu.Unlock()
	defer s.live.collect()()

	g := collection{s: s, links: links, live: map[key]struct{}{}, dead: map[key]struct{}{}}
	if err := g.mark(ctx, budgetBytes); err != nil {
		return g.st, fmt.Errorf("collect blocks: %w", err)
	}
	if err := g.sweep(ctx); err != nil {
		return g.st, fmt.Errorf("collect blocks: %w", err)
	}
	return g.st, nil
}

// quiet is the store as the collector's own reads see it: they do not count as
// a touch.
type quiet struct{ *Store }

func (q quiet) GetSize(_ context.Context, c cid.Cid) (int, error) {
	p, err := placeOf(c)
	if err != nil {
		return -1, err
	}
	st, err := os.Stat(q.path(p)) // the cache is only filled with the stripe held
	if errors.Is(err, os.ErrNotExist) {
		return -1, absent(c)
	}
	if err != nil {
		return -1, err
	}
	return int(st.Size()), nil
}

func (q quiet) Has(ctx context.Context, c cid.Cid) (bool, error) {
	_, err := q.GetSize(ctx, c)
	if errors.Is(err, content.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

type collection struct {
	s     *Store
	links Links
	live  map[key]struct{}
	dead  map[key]struct{} // of trees dropped now: goes whatever its age, unless live
	bytes int64            // of live
	st    GCStats
}

// mark fills live: what is pinned or in use first, then the other trees by
// last use, until the first that is above the budget.
func (g *collection) mark(ctx context.Context, budget int64) error {
	r := &g.s.roots
	r.mu.Lock()
	var kept []cid.Cid
	for c := range r.pins {
		kept = append(kept, c)
	}
	for c := range r.uses {
		kept = append(kept, c)
	}
	list := r.listLocked()
	r.mu.Unlock()

	for _, c := range kept {
		if err := g.keep(ctx, c); err != nil {
			return err
		}
	}
	full := false
	for _, c := range list {
		more, size, err := g.links1(ctx, c)
		switch {
		case errors.Is(err, content.ErrNotFound):
			// It is not complete any more: of no use to anyone.
			g.s.log.Warn("drop an incomplete tree", "digest", c.String(), "err", err)
		case err != nil:
			return err
		case !full && g.bytes+size <= budget:
			g.add(more, size)
			continue
		default:
			full = full || size > 0
			if size == 0 {
				continue // all of it is held by others
			}
		}
		dropped, err := g.drop(c)
		if err != nil {
			return err
		}
		if !dropped { // pinned or used since we looked
			g.add(more, size)
			continue
		}
		for d := range more {
			g.dead[d] = struct{}{}
		}
	}
	return nil
}

// links1 lists the blocks of c that are not live yet. With an error it gives
// what was found before.
func (g *collection) links1(ctx context.Context, c cid.Cid) (more map[key]struct{}, size int64, err error) {
	more = map[key]struct{}{}
	err = g.links(ctx, quiet{g.s}, c, func(d content.Digest, n int64) error {
		if _, ok := g.live[d]; ok {
			return nil
		}
		if _, ok := more[d]; !ok {
			more[d] = struct{}{}
			size += n
		}
		return nil
	})
	return more, size, err
}

func (g *collection) add(more map[key]struct{}, size int64) {
	for d := range more {
		g.live[d] = struct{}{}
	}
	g.bytes += size
}

// keep marks all that is here of c.
func (g *collection) keep(ctx context.Context, c cid.Cid) error {
	more, size, err := g.links1(ctx, c)
	if err != nil && !errors.Is(err, content.ErrNotFound) {
		return err
	}
	g.add(more, size)
	return nil
}

func (g *collection) drop(c cid.Cid) (bool, error) {
	r := &g.s.roots
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keptLocked(c) {
		return false, nil
	}
	if err := g.s.forgetLocked(c); err != nil {
		return false, err
	}
	g.st.DroppedRoots = append(g.st.DroppedRoots, c)
	return true, nil
}

func (g *collection) sweep(ctx context.Context) error {
	s := g.s
	young := time.Now().Add(-s.o.OrphanAge)
	return s.each(ctx, func(p place, _ multihash.Multihash) error {
		st, err := os.Stat(s.path(p))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		_, live := g.live[p.key]
		_, dead := g.dead[p.key]
		// A young block of no tree may belong to a fetch that broke off.
		if live || (!dead && s.o.OrphanAge > 0 && st.ModTime().After(young)) {
			g.st.KeptBlocks, g.st.KeptBytes = g.st.KeptBlocks+1, g.st.KeptBytes+st.Size()
			return nil
		}
		mu := &s.stripe[p.stripe]
		mu.Lock()
		defer mu.Unlock()
		if s.live.has(p.key) {
			g.st.KeptBlocks, g.st.KeptBytes = g.st.KeptBlocks+1, g.st.KeptBytes+st.Size()
			return nil
		}
		if err := s.removeLocked(p); err != nil {
			return err
		}
		g.st.FreedBlocks, g.st.FreedBytes = g.st.FreedBlocks+1, g.st.FreedBytes+st.Size()
		return nil
	})
}

// ScrubStats tells what a scrub found.
type ScrubStats struct {
	Blocks, Bytes int64
	Damaged       int64 // removed
}

// Scrub reads every block and removes those that do not match their hash.
func (s *Store) Scrub(ctx context.Context) (ScrubStats, error) {
	var st ScrubStats
	var buf []byte
	before := s.damaged.Load()
	err := s.each(ctx, func(_ place, h multihash.Multihash) error {
		c := cid.NewCidV1(cid.Raw, h)
		data, err := s.read(ctx, c, buf, true)
		if errors.Is(err, content.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		buf = data
		st.Blocks, st.Bytes = st.Blocks+1, st.Bytes+int64(len(data))
		return nil
	})
	st.Damaged = s.damaged.Load() - before
	if err != nil {
		return st, fmt.Errorf("scrub blocks: %w", err)
	}
	return st, nil
}

// Usage counts the blocks on disk and their bytes, by reading the folders.
func (s *Store) Usage(ctx context.Context) (blocks, bytes int64, err error) {
	err = s.each(ctx, func(p place, _ multihash.Multihash) error {
		st, err := os.Stat(s.path(p))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil {
			blocks, bytes = blocks+1, bytes+st.Size()
		}
		return err
	})
	return blocks, bytes, err
}

package blocks

import (
	"context"
	"errors"
	"log/slog"

	"github.com/beammesh/beammesh/content"
)

// Options of a Store. Zero fields take the defaults.
type Options struct {
	FloorBytes   int64 // Put gives content.ErrDiskFull when less would be free; default 1 GiB, <0 none
	CacheEntries int   // digests remembered as present; default 262,144 (about 16 MiB)
	VerifyPuts   bool  // hash every block on Put (for writers that are not trusted)
	TrustDisk    bool  // do not hash blocks when they are read
	Log          *slog.Logger
}

// Store keeps blocks as files.
type Store struct{}

// Open opens or makes the store in dir.
func Open(dir string, o Options) (*Store, error) { return nil, errors.ErrUnsupported }

// Links calls emit with every block of a tree; tree.Blocks is one.
type Links func(ctx context.Context, store content.Blocks, root content.Root, emit func(d content.Digest, size int64) error) error

// Sync makes every block put so far durable.
func (s *Store) Sync(ctx context.Context) error { return nil }

// Commit is Sync, then root is listed as a complete tree, used now.
func (s *Store) Commit(ctx context.Context, root content.Root) error { return nil }

// Pin keeps root until Unpin with the same owner, over restarts.
func (s *Store) Pin(ctx context.Context, root content.Root, owner string) error { return nil }

// Unpin ends a Pin. It is no error when there is none.
func (s *Store) Unpin(ctx context.Context, root content.Root, owner string) error { return nil }

// Pinned lists the owners of each pinned root.
func (s *Store) Pinned() map[content.Root][]string { return nil }

// Use keeps root until release is called or the process ends.
func (s *Store) Use(root content.Root) (release func()) { return func() {} }

// Hold keeps the collector away from all blocks put or asked for until release.
func (s *Store) Hold() (release func()) { return func() {} }

// GCStats tells what a collection did.
type GCStats struct {
	KeptBytes, FreedBytes   int64
	KeptBlocks, FreedBlocks int64
	DroppedRoots            []content.Root
}

// GC drops the least recently used trees that are neither pinned nor in use
// until the rest is within budgetBytes, and every block that no tree holds.
func (s *Store) GC(ctx context.Context, budgetBytes int64, links Links) (GCStats, error) {
	return GCStats{}, nil
}

// ScrubStats tells what a scrub found.
type ScrubStats struct {
	Blocks, Bytes int64
	Corrupt       int64 // removed
}

// Scrub reads every block, removes those that do not match their hash.
func (s *Store) Scrub(ctx context.Context) (ScrubStats, error) { return ScrubStats{}, nil }

// Close ends the use of the directory.
func (s *Store) Close() error { return nil }

package tree

import (
	"context"
	"errors"
	"io"

	"github.com/beammesh/beammesh/content"
)

var errLater = errors.ErrUnsupported

// ImportOptions says how a directory is read.
type ImportOptions struct {
	// ContentOnly drops what differs between machines for equal content (for
	// code trees): mtime 0, owner 0, mode 0644/0755, no xattrs.
	ContentOnly bool
	// IDs translates owners on disk to owners in the tree; nil keeps them. For
	// a layer written through an idmapped mount. An error stops the import.
	IDs func(uid, gid uint32) (uint32, uint32, error)
	// Skip leaves a path (and what is below it) out. May be nil.
	Skip func(path string, dir bool) bool
	// RefuseSpecial makes sockets, pipes and devices an error instead of a Note.
	RefuseSpecial bool
	MaxBytes      int64 // of all files; 0 = no limit
	MaxEntries    int   // 0 = the package's MaxEntries
	Workers       int   // 0 = one per core, at most 8
	Progress      content.Progress
}

// ImportDir puts the tree below dir into store and commits its root. Equal
// trees give equal roots. The directory should not change meanwhile; a file
// that grows or shrinks is taken as it was read.
func ImportDir(ctx context.Context, store content.Blocks, dir string, o ImportOptions) (Info, error) {
	return Info{}, errLater
}

// ZipLimits bounds an archive. Zero fields take the defaults.
type ZipLimits struct {
	MaxArchive int64 // bytes of the archive; default 1 GiB
	MaxBytes   int64 // bytes unpacked; default 4 GiB
	MaxFile    int64 // bytes of one file; default 2 GiB
	MaxEntries int   // default 100,000
	MaxRatio   int64 // unpacked/packed above the first 64 MiB; default 200
}

// ImportZip puts a code archive into store as a content-only tree (see
// ImportOptions.ContentOnly) and commits its root. Absolute names, "..", links
// out of the tree, duplicates and archives above the limits are refused with
// a *fault.Error that wraps content.ErrUnsafe, ErrLimit or ErrMalformed.
func ImportZip(ctx context.Context, store content.Blocks, r io.ReaderAt, size int64, limits ZipLimits) (Info, error) {
	return Info{}, errLater
}

// CheckoutOptions says how a tree is written.
type CheckoutOptions struct {
	// Prefix is the folder below dir that the tree lands in ("" or "mnt/code");
	// it is made when missing (0755, root) and may not pass through a symlink.
	Prefix string
	// KeepOwner leaves files to the calling user instead of setting UID, GID.
	// Needed without root.
	KeepOwner bool
	// IDs translates owners in the tree to owners on disk; nil keeps them.
	IDs      func(uid, gid uint32) (uint32, uint32, error)
	Workers  int // 0 = one per core, at most 8
	Progress content.Progress
}

// Checkout writes the tree into dir, which may be empty or a mounted overlay
// on top of lower layers: whiteouts remove the path, opaque directories are
// emptied first, other paths replace what is there. It never follows a link.
//
// When it fails, dir holds complete files only, but not all of them: the
// caller removes it. An error that is content.ErrNotFound names a block to
// fetch again.
func Checkout(ctx context.Context, store content.Blocks, root content.Root, dir string, o CheckoutOptions) error {
	return errLater
}

// Stat reads the root block only.
func Stat(ctx context.Context, store content.Blocks, root content.Root) (Info, error) {
	return Info{}, errLater
}

// Lack is what a store lacks of a tree.
type Lack struct {
	Blocks   int64
	Bytes    int64 // exact once Manifest is false; a lower bound before
	Manifest bool  // the root or a segment is missing: the rest is unknown
}

// Complete is true when nothing is missing.
func (l Lack) Complete() bool { return l.Blocks == 0 }

// Missing tells what store lacks of the tree.
func Missing(ctx context.Context, store content.Blocks, root content.Root) (Lack, error) {
	return Lack{}, errLater
}

// Walk calls fn with every entry in order. The Entry and its slices are only
// valid during the call. An error of fn ends the walk and is returned.
func Walk(ctx context.Context, store content.Blocks, root content.Root, fn func(*Entry) error) error {
	return errLater
}

// Blocks calls fn with the digest and size of every block of the tree: the
// root, then each segment followed by its chunks. Equal chunks come each time.
func Blocks(ctx context.Context, store content.Blocks, root content.Root, fn func(d content.Digest, size int64) error) error {
	return errLater
}

// ReadFile gives a file of the tree of at most limit bytes.
func ReadFile(ctx context.Context, store content.Blocks, root content.Root, path string, limit int64) ([]byte, error) {
	return nil, errLater
}

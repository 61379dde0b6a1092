// Package tree turns directories and archives into content-addressed trees and
// writes such trees back.
//
//	info, err := tree.ImportDir(ctx, store, "/some/dir", tree.ImportOptions{ContentOnly: true})
//	...
//	err = tree.Checkout(ctx, store, info.Root, "/target", tree.CheckoutOptions{Prefix: "mnt/code"})
//
// A tree is a list of entries in depth-first order, cut into segment blocks
// under one root block (format.go has the layout). Files are cut on file
// boundaries: one chunk up to 256 KiB, chunks of 256 KiB above. Image layers
// made from an overlay's upper directory keep whiteouts and opaque directories.
//
// Nothing in here trusts a manifest: paths, order, parents, sizes and counts
// are checked while it is decoded, and Checkout never follows a symbolic link.
//
// All functions are safe for concurrent use.
package tree

import (
	"github.com/beammesh/beammesh/content"
)

// Limits of a tree. They bound what a decoder takes from a peer.
const (
	MaxEntries  = 2_000_000 // entries in a tree
	MaxPath     = 4096      // bytes of a path
	MaxName     = 255       // bytes of one name
	MaxChunks   = 8_000_000 // chunks in a tree: 2 TiB of large files
	MaxXattrs   = 32 << 10  // bytes of names and values on one entry
	maxSegments = 16_384    // segment blocks under a root block
)

// Kind is what an entry is.
type Kind uint8

// The kinds; the values are on the wire.
const (
	File     Kind = 1
	Dir      Kind = 2
	Symlink  Kind = 3 // Target is the link's text
	Hardlink Kind = 4 // Target is the path of a File earlier in the tree
	Whiteout Kind = 5 // the path is removed from the layers below
)

// Entry is one path of a tree.
type Entry struct {
	Path   string // "" for the top directory, else "a/b": clean, relative
	Kind   Kind
	Opaque bool   // Dir: nothing of the layers below shows through
	Mode   uint32 // permission, setuid, setgid and sticky bits (07777)
	UID    uint32
	GID    uint32
	MTime  int64 // seconds since 1970
	Size   int64 // File: bytes
	Target string
	Xattrs []Xattr          // sorted by name
	Chunks []content.Digest // File: in order
}

// Xattr is an extended attribute that is kept.
type Xattr struct {
	Name  string
	Value []byte
}

// Note tells of something that an import left out.
type Note struct {
	Path   string
	Reason string
}

// Info describes a tree.
type Info struct {
	Root          content.Root
	Bytes         int64 // of all files
	Files         int64
	Entries       int64
	Chunks        int64
	ManifestBytes int64  // root block and segments
	Notes         []Note // of an import only, at most 100
}

// ChunkBytes is the length of chunk i of a file of this size.
func ChunkBytes(size int64, i int) int64 {
	return min(size-int64(i)*content.ChunkSize, content.ChunkSize)
}

// chunkCount is the number of chunks of a file of this size.
func chunkCount(size int64) int64 {
	return (size + content.ChunkSize - 1) / content.ChunkSize
}

// Package content is the contract for content-addressed data: blocks, trees of
// files cut into blocks, and their exchange between nodes.
//
// A Root names a manifest block: a tree of files (a code tree, an image layer).
// Everything below a Root is immutable and verified by hash (BLAKE3, CIDv1) when
// it arrives and when it is read from disk.
//
// This package knows no network: an Opener, given by the node, opens byte
// streams to named peers.
package content

import (
	"context"
	"errors"
	"io"

	"github.com/ipfs/go-cid"
)

// Root is the CID of a tree's manifest.
type Root = cid.Cid

// Errors that a caller branches on.
var (
	ErrNotFound = errors.New("content not found")
	ErrCorrupt  = errors.New("content does not match its hash")
	ErrUnsafe   = errors.New("path or link leaves its tree")
	ErrLimit    = errors.New("tree is above its limit")
	ErrDiskFull = errors.New("disk is below the admission floor")
)

// BlockProtocol is the mesh protocol name of the block stream.
const BlockProtocol = "blocks/1"

// Opener opens a byte stream to a peer for BlockProtocol.
type Opener interface {
	OpenBlocks(ctx context.Context, peer string) (io.ReadWriteCloser, error)
}

// Progress is called as a fetch or import goes on; bytes only grow. It must
// return quickly and may be called from several goroutines.
type Progress func(doneBytes, totalBytes int64)

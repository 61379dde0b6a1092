// Package content is the contract for content-addressed data: blocks, trees of
// files cut into blocks, and their exchange between nodes.
//
// A Root names a manifest block: a tree of files (a code tree, an image layer).
// Everything below a Root is immutable and verified by hash (BLAKE3, CIDv1) when
// it arrives and when it is read from disk.
//
//   - content/blocks keeps blocks as plain files,
//   - content/tree turns a directory or a zip into a Root and writes it back,
//   - content/exchange moves the blocks of a Root between nodes.
//
// This package knows no network: an Opener, given by the node, opens byte
// streams to named peers.
package content

import (
	"context"
	"errors"
	"fmt"
	"io"

	blockfmt "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"github.com/zeebo/blake3"
)

// Root is the CID of a tree's manifest.
type Root = cid.Cid

// Errors that a caller branches on.
var (
	ErrNotFound  = errors.New("content not found")
	ErrCorrupt   = errors.New("content does not match its hash")
	ErrUnsafe    = errors.New("path or link leaves its tree")
	ErrLimit     = errors.New("tree is above its limit")
	ErrDiskFull  = errors.New("disk is below the admission floor")
	ErrMalformed = errors.New("manifest is malformed")
)

const (
	// ChunkSize cuts files: one chunk up to this size, chunks of exactly this
	// size (the last one shorter) above it.
	ChunkSize = 256 << 10
	// MaxBlock is the largest block that we make, store or accept from a peer.
	MaxBlock = 1 << 20
)

// BlockProtocol is the mesh protocol name of the block stream.
const BlockProtocol = "blocks/1"

// Opener opens a byte stream to a peer for BlockProtocol. Close of the stream
// unblocks its Read and Write (it is an abort, not only the end of writing) and
// may be called twice. An Opener returns soon after ctx ends.
type Opener interface {
	OpenBlocks(ctx context.Context, peer string) (io.ReadWriteCloser, error)
}

// Progress is called as a fetch, import or checkout goes on. It must return
// quickly and may be called from several goroutines at once: the largest
// doneBytes seen is the state.
type Progress func(doneBytes, totalBytes int64)

// Blocks is the part of boxo's Blockstore that trees and the exchange need.
// Get and GetSize of a block that is absent (or was found damaged, and then
// removed) give an error that is ErrNotFound. Put does not keep the block's
// bytes after it returned: the caller may use the buffer again. All methods are
// safe for concurrent use.
type Blocks interface {
	Has(context.Context, cid.Cid) (bool, error)
	Get(context.Context, cid.Cid) (blockfmt.Block, error)
	GetSize(context.Context, cid.Cid) (int, error)
	Put(context.Context, blockfmt.Block) error
}

// Optional abilities of a Blocks, found by assertion.
type (
	// Reader reads a block into buf[:0], growing it when it is too small.
	Reader interface {
		ReadBlock(ctx context.Context, c cid.Cid, buf []byte) ([]byte, error)
	}
	// Committer makes all blocks put so far durable and then lists root as a
	// complete tree of the store.
	Committer interface {
		Commit(ctx context.Context, root Root) error
	}
	// Holder keeps the garbage collector away from every block put or asked
	// for until release is called. Release may be called twice.
	Holder interface {
		Hold() (release func())
	}
	// User marks root as in use (not to be collected) until release is called.
	// Release may be called twice.
	User interface {
		Use(root Root) (release func())
	}
)

// Digest is the BLAKE3-256 hash of a block.
type Digest [32]byte

// DigestOf hashes data.
func DigestOf(data []byte) Digest { return blake3.Sum256(data) }

// cidPrefix is CIDv1, raw, BLAKE3, 32 bytes, as it stands before the digest.
const cidPrefix = "\x01\x55\x1e\x20"

// CID is the raw CIDv1 of the block with this digest.
func (d Digest) CID() cid.Cid {
	b := make([]byte, 0, len(cidPrefix)+len(d))
	b = append(append(b, cidPrefix...), d[:]...)
	_, c, err := cid.CidFromBytes(b)
	if err != nil {
		panic(fmt.Sprintf("content: own cid does not parse: %v", err))
	}
	return c
}

// DigestFrom gives the digest inside a CID of ours; ok is false for any other
// kind of CID (another hash, another codec).
func DigestFrom(c cid.Cid) (d Digest, ok bool) {
	s := c.KeyString()
	if len(s) != len(cidPrefix)+len(d) || s[:len(cidPrefix)] != cidPrefix {
		return d, false
	}
	copy(d[:], s[len(cidPrefix):])
	return d, true
}

// NewBlock hashes data and makes a block of it. The block keeps data.
func NewBlock(data []byte) blockfmt.Block {
	b, err := blockfmt.NewBlockWithCid(data, DigestOf(data).CID())
	if err != nil {
		panic(fmt.Sprintf("content: make block: %v", err))
	}
	return b
}

// Verify tells whether data is what c names: nil, or an error that is
// ErrCorrupt (or names a hash that this build does not know).
func Verify(c cid.Cid, data []byte) error {
	p := c.Prefix()
	if p.MhType == multihash.BLAKE3 && p.MhLength == len(Digest{}) {
		want, sum := c.Hash(), DigestOf(data)
		if string(want[len(want)-len(sum):]) != string(sum[:]) {
			return fmt.Errorf("block %s: %w", c, ErrCorrupt)
		}
		return nil
	}
	got, err := p.Sum(data)
	if err != nil {
		return fmt.Errorf("block %s: hash %#x: %w", c, p.MhType, err)
	}
	if string(got.Hash()) != string(c.Hash()) {
		return fmt.Errorf("block %s: %w", c, ErrCorrupt)
	}
	return nil
}

// ParseRoot parses the text of a Root.
func ParseRoot(text string) (Root, error) {
	c, err := cid.Decode(text)
	if err != nil {
		return cid.Undef, fmt.Errorf("root %q: %w", text, err)
	}
	if _, ok := DigestFrom(c); !ok {
		return cid.Undef, fmt.Errorf("root %q: not a raw BLAKE3 CID: %w", text, ErrMalformed)
	}
	return c, nil
}

// Package blockstest has the conformance suite of block stores, a store in
// memory and a wrapper that fails on cue.
//
//	func TestStore(t *testing.T) {
//		blockstest.Run(t, func(t *testing.T) blockstore.Blockstore { ... })
//	}
package blockstest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/ipfs/boxo/blockstore"
	blockfmt "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/beammesh/beammesh/content"
)

var (
	_ blockstore.Blockstore = (*Memory)(nil)
	_ blockstore.Blockstore = (*Faulty)(nil)
	_ content.Blocks        = (*Memory)(nil)
	_ content.Committer     = (*Memory)(nil)
)

// Memory is a block store in memory. The zero value is ready. Safe for
// concurrent use.
type Memory struct {
	mu        sync.Mutex
	blocks    map[string][]byte // by multihash
	committed []content.Root
}

// DeleteBlock removes a block.
func (m *Memory) DeleteBlock(_ context.Context, c cid.Cid) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.blocks, string(c.Hash()))
	return nil
}

// Has tells whether the block is here.
func (m *Memory) Has(_ context.Context, c cid.Cid) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.blocks[string(c.Hash())]
	return ok, nil
}

// Get gives a block.
func (m *Memory) Get(_ context.Context, c cid.Cid) (blockfmt.Block, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blocks[string(c.Hash())]
	if !ok {
		return nil, fmt.Errorf("%w (%w)", content.ErrNotFound, ipld.ErrNotFound{Cid: c})
	}
	return blockfmt.NewBlockWithCid(b, c)
}

// GetSize gives a block's length.
func (m *Memory) GetSize(ctx context.Context, c cid.Cid) (int, error) {
	b, err := m.Get(ctx, c)
	if err != nil {
		return -1, err
	}
	return len(b.RawData()), nil
}

// Put keeps a copy of a block.
func (m *Memory) Put(_ context.Context, b blockfmt.Block) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.blocks == nil {
		m.blocks = map[string][]byte{}
	}
	m.blocks[string(b.Cid().Hash())] = append([]byte(nil), b.RawData()...)
	return nil
}

// PutMany puts several blocks.
func (m *Memory) PutMany(ctx context.Context, bs []blockfmt.Block) error {
	for _, b := range bs {
		if err := m.Put(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// AllKeysChan sends every block's CID.
func (m *Memory) AllKeysChan(ctx context.Context) (<-chan cid.Cid, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ch := make(chan cid.Cid, len(m.blocks))
	for h := range m.blocks {
		ch <- cid.NewCidV1(cid.Raw, []byte(h))
	}
	close(ch)
	return ch, nil
}

// Commit notes root.
func (m *Memory) Commit(_ context.Context, root content.Root) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.committed = append(m.committed, root)
	return nil
}

// Committed lists what was committed, in order.
func (m *Memory) Committed() []content.Root {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]content.Root(nil), m.committed...)
}

// Len is the number of blocks.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.blocks)
}

// ErrFault is the error that Faulty's reads give on cue.
var ErrFault = errors.New("injected fault")

// Faulty wraps a store and fails on cue; the zero cues let everything through.
// Set the cues before use.
type Faulty struct {
	blockstore.Blockstore
	FlipEvery  int64 // every n-th block read comes with one bit changed
	ShortEvery int64 // every n-th block read comes without its last byte
	FailEvery  int64 // every n-th block read gives ErrFault
	FullAfter  int64 // bytes put before Put gives content.ErrDiskFull; 0 = never

	reads, put atomic.Int64
	flips      atomic.Int64
}

// Flips counts the blocks given out damaged, short ones included.
func (f *Faulty) Flips() int64 { return f.flips.Load() }

func every(n, count int64) bool { return n > 0 && count%n == 0 }

// Get gives a block, damaged on cue.
func (f *Faulty) Get(ctx context.Context, c cid.Cid) (blockfmt.Block, error) {
	b, err := f.Blockstore.Get(ctx, c)
	if err != nil {
		return nil, err
	}
	n := f.reads.Add(1)
	data := append([]byte(nil), b.RawData()...)
	switch {
	case every(f.FailEvery, n):
		return nil, fmt.Errorf("get %s: %w: %w", c, ErrFault, io.ErrUnexpectedEOF)
	case len(data) == 0:
	case every(f.FlipEvery, n):
		data[len(data)/2] ^= 0x10
		f.flips.Add(1)
	case every(f.ShortEvery, n):
		data = data[:len(data)-1]
		f.flips.Add(1)
	}
	return blockfmt.NewBlockWithCid(data, c)
}

// Put puts a block until the disk is "full".
func (f *Faulty) Put(ctx context.Context, b blockfmt.Block) error {
	if f.FullAfter > 0 && f.put.Add(int64(len(b.RawData()))) > f.FullAfter {
		return fmt.Errorf("put %s: %w", b.Cid(), content.ErrDiskFull)
	}
	return f.Blockstore.Put(ctx, b)
}

// PutMany puts blocks one by one.
func (f *Faulty) PutMany(ctx context.Context, bs []blockfmt.Block) error {
	for _, b := range bs {
		if err := f.Put(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

package blocks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	blockfmt "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/beammesh/beammesh/content"
)

var (
	_ content.Blocks = (*Store)(nil)
	_ content.Reader = (*Store)(nil)
)

// Has tells whether the block is here. It does not read it: a block that a
// power cut tore is reported until somebody reads it.
func (s *Store) Has(ctx context.Context, c cid.Cid) (bool, error) {
	_, err := s.GetSize(ctx, c)
	if errors.Is(err, content.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// GetSize gives the length of a block.
func (s *Store) GetSize(ctx context.Context, c cid.Cid) (int, error) {
	p, err := placeOf(c)
	if err != nil {
		return -1, err
	}
	mu := &s.stripe[p.stripe]
	mu.Lock()
	defer mu.Unlock()
	s.live.add(p.key)
	n, ok, err := s.sizeLocked(p)
	switch {
	case err != nil:
		return -1, fmt.Errorf("size of block %s: %w", c, err)
	case !ok:
		return -1, absent(c)
	}
	return n, nil
}

// emptyKey is the one block that may be an empty file; any other empty file is
// what a power cut leaves of a block.
var emptyKey = content.DigestOf(nil)

// sizeLocked looks for a block; p's stripe is held.
func (s *Store) sizeLocked(p place) (int, bool, error) {
	if n, ok := s.known.size(p.key); ok {
		return n, true, nil
	}
	st, err := os.Stat(s.path(p))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	if st.Size() == 0 && p.key != emptyKey {
		return 0, false, nil
	}
	s.known.add(p.key, int(st.Size()))
	return int(st.Size()), true, nil
}

// Put writes a block unless it is here. It is durable after Sync or Commit.
func (s *Store) Put(ctx context.Context, b blockfmt.Block) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	c, data := b.Cid(), b.RawData()
	p, err := placeOf(c)
	if err != nil {
		return err
	}
	if len(data) > maxBlockFile {
		return fmt.Errorf("put block %s of %d bytes: %w", c, len(data), content.ErrLimit)
	}
	if s.o.VerifyPuts {
		if err := content.Verify(c, data); err != nil {
			return err
		}
	}
	mu := &s.stripe[p.stripe]
	mu.Lock()
	defer mu.Unlock()
	s.live.add(p.key)
	// A file of another length is a torn block: write it again.
	if n, ok, err := s.sizeLocked(p); err != nil {
		return fmt.Errorf("put block %s: %w", c, err)
	} else if ok && n == len(data) {
		return nil
	}
	if err := s.disk.admit(len(data)); err != nil {
		return fmt.Errorf("put block %s: %w", c, err)
	}
	if err := s.write(p, data); err != nil {
		return fmt.Errorf("put block %s: %w", c, diskError(err))
	}
	s.known.add(p.key, len(data))
	s.dirty.add(p)
	return nil
}

func (s *Store) write(p place, data []byte) error {
	tmp := filepath.Join(s.dir, "tmp", strconv.FormatUint(s.tmpSeq.Add(1), 36))
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		os.Remove(tmp)
		return err
	}
	err := os.Rename(tmp, s.path(p))
	if errors.Is(err, fs.ErrNotExist) { // the first block of its folder
		if err = mkdir(filepath.Join(s.dir, "data", p.shard)); err == nil {
			err = os.Rename(tmp, s.path(p))
		}
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}

// PutMany puts blocks in order; it stops at the first error.
func (s *Store) PutMany(ctx context.Context, bs []blockfmt.Block) error {
	for _, b := range bs {
		if err := s.Put(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// Get reads a block and checks its hash.
func (s *Store) Get(ctx context.Context, c cid.Cid) (blockfmt.Block, error) {
	data, err := s.ReadBlock(ctx, c, nil)
	if err != nil {
		return nil, err
	}
	return blockfmt.NewBlockWithCid(data, c)
}

// View calls fn with the block's bytes, which are valid during the call.
func (s *Store) View(ctx context.Context, c cid.Cid, fn func([]byte) error) error {
	data, err := s.ReadBlock(ctx, c, nil)
	if err != nil {
		return err
	}
	return fn(data)
}

// ReadBlock reads a block into buf[:0], growing it when it is too small, and
// checks its hash. A damaged block is removed and reported as missing.
func (s *Store) ReadBlock(ctx context.Context, c cid.Cid, buf []byte) ([]byte, error) {
	return s.read(ctx, c, buf, !s.o.TrustDisk)
}

func (s *Store) read(ctx context.Context, c cid.Cid, buf []byte, verify bool) ([]byte, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	p, err := placeOf(c)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(s.path(p))
	if errors.Is(err, fs.ErrNotExist) {
		s.known.drop(p.key)
		return nil, absent(c)
	}
	if err != nil {
		return nil, fmt.Errorf("get block %s: %w", c, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("get block %s: %w", c, err)
	}
	if st.Size() > maxBlockFile {
		return nil, s.discard(p, c, st)
	}
	if int64(cap(buf)) < st.Size() {
		buf = make([]byte, st.Size())
	}
	buf = buf[:st.Size()]
	if _, err := io.ReadFull(f, buf); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return nil, s.discard(p, c, st)
		}
		return nil, fmt.Errorf("get block %s: %w", c, err)
	}
	if verify {
		if err := content.Verify(c, buf); errors.Is(err, content.ErrCorrupt) {
			return nil, s.discard(p, c, st)
		} else if err != nil {
			return nil, err
		}
	}
	return buf, nil
}

// discard removes a damaged block, unless it was written anew since it was
// read (was tells which file was read), and returns the error to report.
func (s *Store) discard(p place, c cid.Cid, was fs.FileInfo) error {
	mu := &s.stripe[p.stripe]
	mu.Lock()
	defer mu.Unlock()
	now, err := os.Stat(s.path(p))
	if err == nil && os.SameFile(was, now) {
		if err := os.Remove(s.path(p)); err != nil {
			return fmt.Errorf("remove damaged block %s: %w", c, err)
		}
		s.known.drop(p.key)
		s.damaged.Add(1)
		s.log.Warn("removed a damaged block", "digest", c.String(), "bytes", was.Size())
	}
	return removed(c)
}

// DeleteBlock removes a block. It is no error when it is not here.
func (s *Store) DeleteBlock(ctx context.Context, c cid.Cid) error {
	p, err := placeOf(c)
	if err != nil {
		return err
	}
	mu := &s.stripe[p.stripe]
	mu.Lock()
	defer mu.Unlock()
	return s.removeLocked(p)
}

func (s *Store) removeLocked(p place) error {
	s.known.drop(p.key)
	if err := os.Remove(s.path(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove block: %w", err)
	}
	return nil
}

// AllKeysChan sends the CID (raw, version 1) of every block. The channel closes
// at the end, or early when ctx ends: see AllKeysChanWithErr.
func (s *Store) AllKeysChan(ctx context.Context) (<-chan cid.Cid, error) {
	ch, _, err := s.AllKeysChanWithErr(ctx)
	return ch, err
}

// AllKeysChanWithErr is AllKeysChan with a function that, after the channel is
// drained, tells why it ended early.
func (s *Store) AllKeysChanWithErr(ctx context.Context) (<-chan cid.Cid, func() error, error) {
	ch := make(chan cid.Cid, 64)
	var err error
	go func() {
		defer close(ch)
		err = s.each(ctx, func(p place, h multihash.Multihash) error {
			select {
			case ch <- cid.NewCidV1(cid.Raw, h):
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	}()
	done := func() error {
		for range ch {
		}
		return err
	}
	return ch, done, nil
}

// each calls fn for every block file, folder by folder. Files that are no
// blocks are left alone.
func (s *Store) each(ctx context.Context, fn func(place, multihash.Multihash) error) error {
	folders, err := os.ReadDir(filepath.Join(s.dir, "data"))
	if err != nil {
		return err
	}
	for _, folder := range folders {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		shard := folder.Name()
		dir, err := os.Open(filepath.Join(s.dir, "data", shard))
		if err != nil {
			return err
		}
		names, err := dir.Readdirnames(-1)
		dir.Close()
		if err != nil {
			return err
		}
		for _, name := range names {
			raw, err := encoding.DecodeString(name)
			if err != nil {
				continue
			}
			h, err := multihash.Cast(raw)
			if err != nil {
				continue
			}
			k := keyOf(h)
			if err := fn(place{key: k, shard: shard, name: name, stripe: int(k[0])}, h); err != nil {
				return err
			}
		}
	}
	return nil
}

package tree

import (
	"context"
	"errors"
	"fmt"

	"github.com/beammesh/beammesh/content"
)

// readBlock reads a verified block, into buf when the store can.
func readBlock(ctx context.Context, store content.Blocks, d content.Digest, buf []byte) ([]byte, error) {
	c := d.CID()
	if r, ok := store.(content.Reader); ok {
		return r.ReadBlock(ctx, c, buf)
	}
	b, err := store.Get(ctx, c)
	if err != nil {
		return nil, err
	}
	return b.RawData(), content.Verify(c, b.RawData())
}

func readRoot(ctx context.Context, store content.Blocks, root content.Root) (*rootBlock, int, error) {
	d, ok := content.DigestFrom(root)
	if !ok {
		return nil, 0, fmt.Errorf("tree %s: not a raw BLAKE3 CID: %w", root, content.ErrMalformed)
	}
	data, err := readBlock(ctx, store, d, nil)
	if err != nil {
		return nil, 0, fmt.Errorf("tree %s: %w", root, err)
	}
	t, err := decodeRoot(data)
	if err != nil {
		return nil, 0, fmt.Errorf("tree %s: %w", root, err)
	}
	return t, len(data), nil
}

// Stat reads the root block only.
func Stat(ctx context.Context, store content.Blocks, root content.Root) (Info, error) {
	t, size, err := readRoot(ctx, store, root)
	if err != nil {
		return Info{}, err
	}
	info := Info{Root: root, Bytes: t.bytes, Files: t.files, Entries: t.entries, Chunks: t.chunks, ManifestBytes: int64(size)}
	for _, s := range t.segments {
		info.ManifestBytes += s.size
	}
	return info, nil
}

// Walk calls fn with every entry in order. The Entry and its slices are only
// valid during the call. An error of fn ends the walk and is returned.
func Walk(ctx context.Context, store content.Blocks, root content.Root, fn func(*Entry) error) error {
	return walk(ctx, store, root, nil, fn)
}

// walk is Walk with a call for every block of the manifest before its entries.
func walk(ctx context.Context, store content.Blocks, root content.Root, block func(content.Digest, int64) error, fn func(*Entry) error) error {
	t, size, err := readRoot(ctx, store, root)
	if err != nil {
		return err
	}
	if block != nil {
		d, _ := content.DigestFrom(root)
		if err := block(d, int64(size)); err != nil {
			return err
		}
	}
	// fn's errors pass through as they are; the decoder's get the tree's name.
	var stop error
	d := decoder{emit: func(e *Entry) error {
		stop = fn(e)
		return stop
	}}
	var buf []byte
	for _, s := range t.segments {
		if block != nil {
			if err := block(s.digest, s.size); err != nil {
				return err
			}
		}
		if buf, err = readBlock(ctx, store, s.digest, buf); err == nil {
			err = d.segment(buf, s)
		}
		if stop != nil {
			return stop
		}
		if err != nil {
			return fmt.Errorf("tree %s: %w", root, err)
		}
	}
	if err := d.end(t); err != nil {
		return fmt.Errorf("tree %s: %w", root, err)
	}
	return nil
}

// Blocks calls fn with the digest and size of every block of the tree: the
// root, then each segment followed by its chunks. Equal chunks come each time.
func Blocks(ctx context.Context, store content.Blocks, root content.Root, fn func(d content.Digest, size int64) error) error {
	return walk(ctx, store, root, fn, func(e *Entry) error {
		for i, d := range e.Chunks {
			if err := fn(d, ChunkBytes(e.Size, i)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Segments gives the blocks of the manifest below the root block, in order.
func Segments(ctx context.Context, store content.Blocks, root content.Root) ([]content.Digest, error) {
	t, _, err := readRoot(ctx, store, root)
	if err != nil {
		return nil, err
	}
	list := make([]content.Digest, len(t.segments))
	for i, s := range t.segments {
		list[i] = s.digest
	}
	return list, nil
}

// Lack is what a store lacks of a tree.
type Lack struct {
	Blocks   int64
	Bytes    int64 // of files; exact once Manifest is false
	Manifest bool  // the root or a segment is missing: the rest is unknown
}

// Complete is true when nothing is missing.
func (l Lack) Complete() bool { return l.Blocks == 0 }

// Missing tells what store lacks of the tree. Blocks are looked for, not read:
// one that is damaged on disk counts as present until it is read.
func Missing(ctx context.Context, store content.Blocks, root content.Root) (Lack, error) {
	var l Lack
	list, err := Segments(ctx, store, root)
	switch {
	case errors.Is(err, content.ErrNotFound):
		return Lack{Blocks: 1, Manifest: true}, nil
	case err != nil:
		return l, err
	}
	for _, d := range list {
		if ok, err := store.Has(ctx, d.CID()); err != nil {
			return l, err
		} else if !ok {
			l.Blocks, l.Manifest = l.Blocks+1, true
		}
	}
	if l.Manifest {
		return l, nil
	}
	err = MissingChunks(ctx, store, root, func(_ content.Digest, size int64) error {
		l.Blocks, l.Bytes = l.Blocks+1, l.Bytes+size
		return nil
	})
	if errors.Is(err, content.ErrNotFound) { // a segment was found damaged
		return Lack{Blocks: 1, Manifest: true}, nil
	}
	return l, err
}

// MissingChunks calls fn once with each chunk of the tree that store lacks, in
// the order of the files. It needs the whole manifest: without it the error is
// content.ErrNotFound.
func MissingChunks(ctx context.Context, store content.Blocks, root content.Root, fn func(d content.Digest, size int64) error) error {
	// 32 bytes per chunk looked at, of at most MaxChunks.
	seen := map[content.Digest]struct{}{}
	return Walk(ctx, store, root, func(e *Entry) error {
		for i, d := range e.Chunks {
			if _, ok := seen[d]; ok {
				continue
			}
			seen[d] = struct{}{}
			ok, err := store.Has(ctx, d.CID())
			if err == nil && !ok {
				err = fn(d, ChunkBytes(e.Size, i))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// ReadFile gives a file of the tree of at most limit bytes.
func ReadFile(ctx context.Context, store content.Blocks, root content.Root, path string, limit int64) ([]byte, error) {
	var data []byte
	found := false
	errFound := errors.New("found")
	err := Walk(ctx, store, root, func(e *Entry) error {
		if e.Path != path {
			return nil
		}
		if e.Kind != File {
			return fmt.Errorf("read %q of tree %s: not a regular file: %w", path, root, content.ErrNotFound)
		}
		if e.Size > limit {
			return fmt.Errorf("read %q of tree %s: %d bytes, limit %d: %w", path, root, e.Size, limit, content.ErrLimit)
		}
		found = true
		data = make([]byte, 0, e.Size)
		for i, d := range e.Chunks {
			b, err := readBlock(ctx, store, d, nil)
			if err != nil {
				return fmt.Errorf("read %q of tree %s: %w", path, root, err)
			}
			if int64(len(b)) != ChunkBytes(e.Size, i) {
				return malformed("read %q of tree %s: chunk of %d bytes", path, root, len(b))
			}
			data = append(data, b...)
		}
		return errFound
	})
	switch {
	case found && errors.Is(err, errFound):
		return data, nil
	case err == nil:
		err = fmt.Errorf("read %q of tree %s: %w", path, root, content.ErrNotFound)
	}
	return nil, err
}

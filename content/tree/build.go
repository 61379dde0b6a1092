package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	goruntime "runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/beammesh/beammesh/content"
)

const maxNotes = 100

// builder turns entries whose files are not read yet into a tree.
type builder struct {
	store    content.Blocks
	maxBytes int64 // 0 = no limit
	progress content.Progress

	entries []*Entry // in depth-first order
	files   []fileJob
	notes   []Note
	total   int64        // bytes expected
	done    atomic.Int64 // bytes read
}

// fileJob is a file to be read: open is called once, by some worker.
type fileJob struct {
	entry *Entry
	size  int64 // expected
	open  func() (io.ReadCloser, error)
}

func (b *builder) note(path, reason string) {
	if len(b.notes) < maxNotes {
		b.notes = append(b.notes, Note{path, reason})
	}
}

func (b *builder) addFile(e *Entry, size int64, open func() (io.ReadCloser, error)) {
	b.files = append(b.files, fileJob{e, size, open})
	b.total += size
}

func workerCount(n int) int {
	if n <= 0 {
		n = min(goruntime.GOMAXPROCS(0), 8)
	}
	return n
}

// build reads the files, stores all blocks and commits the root.
func (b *builder) build(ctx context.Context, workers int) (Info, error) {
	if h, ok := b.store.(content.Holder); ok {
		defer h.Hold()()
	}
	jobs := make(chan fileJob)
	g, gctx := errgroup.WithContext(ctx)
	for range workerCount(workers) {
		g.Go(func() error {
			buf := make([]byte, content.ChunkSize)
			for j := range jobs {
				if err := b.readFile(gctx, j, buf); err != nil {
					return fmt.Errorf("import %q: %w", j.entry.Path, err)
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(jobs)
		for _, j := range b.files {
			select {
			case jobs <- j:
			case <-gctx.Done():
				return context.Cause(gctx)
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return Info{}, err
	}
	return b.manifest(ctx)
}

// readFile cuts one file into chunks and stores them.
func (b *builder) readFile(ctx context.Context, j fileJob, buf []byte) error {
	f, err := j.open()
	if err != nil || f == nil { // nil: it turned out not to be a file
		return err
	}
	defer f.Close()
	for {
		n, err := io.ReadFull(f, buf)
		if n > 0 {
			// Also after an error: what counts is the error below.
			if done := b.done.Add(int64(n)); b.maxBytes > 0 && done > b.maxBytes {
				return fmt.Errorf("more than %d bytes: %w", b.maxBytes, content.ErrLimit)
			}
			block := content.NewBlock(buf[:n])
			if err := b.store.Put(ctx, block); err != nil {
				return err
			}
			d, _ := content.DigestFrom(block.Cid())
			j.entry.Chunks = append(j.entry.Chunks, d)
			j.entry.Size += int64(n)
			if len(j.entry.Chunks) > MaxChunks {
				return fmt.Errorf("more than %d chunks: %w", MaxChunks, content.ErrLimit)
			}
			if b.progress != nil {
				done := b.done.Load()
				b.progress(done, max(b.total, done))
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// manifest stores the segments and the root block, and commits it.
func (b *builder) manifest(ctx context.Context) (Info, error) {
	info := Info{Notes: b.notes}
	enc := encoder{put: func(seg []byte) (content.Digest, error) {
		block := content.NewBlock(seg)
		info.ManifestBytes += int64(len(seg))
		d, _ := content.DigestFrom(block.Cid())
		return d, b.store.Put(ctx, block)
	}}
	// The same rules that a reader holds us to: a tree that would be refused
	// must not be made.
	var check checker
	for _, e := range b.entries {
		if err := check.entry(e); err != nil {
			return Info{}, err
		}
		if err := enc.add(e); err != nil {
			return Info{}, err
		}
	}
	if err := enc.cut(); err != nil {
		return Info{}, err
	}
	t := &enc.root
	if t.entries > MaxEntries || t.chunks > MaxChunks {
		return Info{}, fmt.Errorf("%d entries, %d chunks: %w", t.entries, t.chunks, content.ErrLimit)
	}
	block := content.NewBlock(t.encode())
	if err := b.store.Put(ctx, block); err != nil {
		return Info{}, err
	}
	if c, ok := b.store.(content.Committer); ok {
		if err := c.Commit(ctx, block.Cid()); err != nil {
			return Info{}, err
		}
	}
	info.Root, info.Bytes, info.Files, info.Entries, info.Chunks = block.Cid(), t.bytes, t.files, t.entries, t.chunks
	info.ManifestBytes += int64(len(block.RawData()))
	return info, nil
}

package exchange_test

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	blockfmt "github.com/ipfs/go-block-format"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/content/blockstest"
	"github.com/beammesh/beammesh/content/exchange"
	"github.com/beammesh/beammesh/content/tree"
)

// tap is a store that tells of each read before it is let through.
type tap struct {
	content.Blocks
	reads atomic.Int64
	read  chan struct{} // one token per read
	pass  chan struct{} // one token per answer; closed = all
}

func newTap(s content.Blocks) *tap {
	return &tap{Blocks: s, read: make(chan struct{}, 1<<16), pass: make(chan struct{})}
}

func (t *tap) Get(ctx context.Context, c content.Root) (blockfmt.Block, error) {
	t.reads.Add(1)
	t.read <- struct{}{}
	select {
	case <-t.pass:
		return t.Blocks.Get(ctx, c)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// seeded serves a new tree from a tap.
func seeded(t *testing.T, m *mesh, peer string, small int) (*tap, tree.Info) {
	t.Helper()
	seed := &blockstest.Memory{}
	info := importTo(t, seed, source(t, 2, small))
	tp := newTap(seed)
	m.serve(peer, tp)
	return tp, info
}

func await(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-limit(t).Done():
		t.Fatal("it did not come")
	}
}

func inBackground(fn func(context.Context, content.Root, []string, content.Progress) (exchange.Result, error), ctx context.Context, root content.Root, source string) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := fn(ctx, root, []string{source}, nil)
		done <- err
	}()
	return done
}

func TestPrefetchStandsBackForAFetch(t *testing.T) {
	m := newMesh(t)
	a, wanted := seeded(t, m, "a", 0)
	b, urgent := seeded(t, m, "b", 300)
	f := exchange.NewFetcher(&blockstest.Memory{}, m, exchange.FetcherOptions{StallTimeout: time.Hour})

	later := inBackground(f.Prefetch, limit(t), wanted.Root, "a")
	await(t, a.read) // its root block is asked for
	now := inBackground(f.Fetch, limit(t), urgent.Root, "b")
	await(t, b.read)
	a.pass <- struct{}{} // what was asked for before still comes
	for blocks := int64(1); ; blocks++ {
		b.pass <- struct{}{}
		if n := a.reads.Load(); n != 1 {
			t.Fatalf("%d blocks were asked for that nobody waits for, after %d of those that somebody does", n-1, blocks)
		}
		if blocks == urgent.Chunks { // the end: the last ones may be on their way
			break
		}
	}
	close(b.pass)
	must(t, <-now)
	close(a.pass)
	must(t, <-later)
}

func TestFetchJoinsAPrefetchAndHurriesIt(t *testing.T) {
	m := newMesh(t)
	a, wanted := seeded(t, m, "a", 3)
	b, other := seeded(t, m, "b", 3)
	store := &blockstest.Memory{}
	f := exchange.NewFetcher(store, m, exchange.FetcherOptions{StallTimeout: time.Hour})
	octx, giveUp := context.WithCancel(limit(t))
	busy := inBackground(f.Fetch, octx, other.Root, "b")
	await(t, b.read) // and there it stays

	later := inBackground(f.Prefetch, limit(t), wanted.Root, "a")
	close(a.pass)
	must(t, <-inBackground(f.Fetch, limit(t), wanted.Root, "a"))
	must(t, <-later)
	complete(t, store, wanted)
	if n := m.streams("a"); n != 1 {
		t.Errorf("%d streams for what is one fetch", n)
	}
	giveUp()
	if err := <-busy; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// More prefetches than there are places must not keep a fetch out, not even one
// of a tree that waits for such a place.
func TestPrefetchesHoldNoFetchUp(t *testing.T) {
	m := newMesh(t)
	pctx, giveUp := context.WithCancel(limit(t))
	f := exchange.NewFetcher(&blockstest.Memory{}, m, exchange.FetcherOptions{Fetches: 1, StallTimeout: time.Hour})
	var later []<-chan error
	for _, peer := range []string{"a", "b"} {
		tp, info := seeded(t, m, peer, 0)
		later = append(later, inBackground(f.Prefetch, pctx, info.Root, peer))
		await(t, tp.read) // and there it stays
	}
	c, info := seeded(t, m, "c", 0)
	close(c.pass)
	third := inBackground(f.Prefetch, limit(t), info.Root, "c") // has no place
	must(t, <-inBackground(f.Fetch, limit(t), info.Root, "c"))
	must(t, <-third)
	giveUp()
	for _, done := range later {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

// noticed is a store that tells of what is put into it.
type noticed struct {
	blockstest.Memory
	put chan struct{}
}

func (n *noticed) Put(ctx context.Context, b blockfmt.Block) error {
	err := n.Memory.Put(ctx, b)
	n.put <- struct{}{}
	return err
}

// A holder may end a stream on which nothing is asked for long.
func TestPrefetchOutlivesAStreamThatEndedMeanwhile(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	wanted := importTo(t, seed, source(t, 2, 3))
	tp := newTap(seed)
	srv := exchange.NewServer(tp, exchange.ServerOptions{})
	first, ended := make(chan io.Writer, 1), make(chan struct{}, 2)
	m.handle("a", func(rw io.ReadWriteCloser) {
		select {
		case first <- rw:
		default:
		}
		srv.Serve(ctx, "fetcher", rw)
		ended <- struct{}{}
	})
	b, urgent := seeded(t, m, "b", 3)
	store := &noticed{put: make(chan struct{}, 1<<10)}
	f := exchange.NewFetcher(store, m, exchange.FetcherOptions{StallTimeout: time.Hour})
	later := inBackground(f.Prefetch, limit(t), wanted.Root, "a")
	await(t, tp.read)
	now := inBackground(f.Fetch, limit(t), urgent.Root, "b")
	await(t, b.read)
	close(tp.pass)
	await(t, store.put)                              // the root block; the rest is not asked for
	_, err := (<-first).Write([]byte{6, 0, 0, 0, 0}) // refuse: the last frame
	must(t, err)
	await(t, ended)
	close(b.pass)
	must(t, <-now)
	must(t, <-later)
	if n := m.streams("a"); n != 2 {
		t.Errorf("%d streams, want a second one after the first had ended", n)
	}
}

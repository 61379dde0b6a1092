package exchange_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/boxo/blockstore"
	blockfmt "github.com/ipfs/go-block-format"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/content/blocks"
	"github.com/beammesh/beammesh/content/blockstest"
	"github.com/beammesh/beammesh/content/exchange"
	"github.com/beammesh/beammesh/content/tree"
)

var ctx = context.Background()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// source makes a directory with large, small and equal files.
func source(t testing.TB, chunks, small int) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, data []byte) { must(t, os.WriteFile(filepath.Join(dir, name), data, 0o644)) }
	write("large", random(chunks*content.ChunkSize+99))
	for i := range small {
		write(fmt.Sprintf("small%04d", i), fmt.Appendf(nil, "file %d", i))
	}
	write("same1", []byte("the same"))
	write("same2", []byte("the same"))
	return dir
}

func importTo(t testing.TB, store content.Blocks, dir string) tree.Info {
	t.Helper()
	info, err := tree.ImportDir(ctx, store, dir, tree.ImportOptions{ContentOnly: true})
	must(t, err)
	return info
}

// mesh joins fetchers and servers by net.Pipe, under names.
type mesh struct {
	t       testing.TB
	mu      sync.Mutex
	servers map[string]func(io.ReadWriteCloser)
	opened  map[string]int
	wg      sync.WaitGroup
}

func newMesh(t testing.TB) *mesh {
	m := &mesh{t: t, servers: map[string]func(io.ReadWriteCloser){}, opened: map[string]int{}}
	t.Cleanup(m.wg.Wait) // every stream ends when its fetch does
	return m
}

// handle makes peer answer streams with fn.
func (m *mesh) handle(peer string, fn func(io.ReadWriteCloser)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.servers[peer] = fn
}

func (m *mesh) serve(peer string, store content.Blocks) *exchange.Server {
	srv := exchange.NewServer(store, exchange.ServerOptions{})
	m.handle(peer, func(rw io.ReadWriteCloser) { srv.Serve(ctx, "fetcher", rw) })
	return srv
}

func (m *mesh) OpenBlocks(_ context.Context, peer string) (io.ReadWriteCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opened[peer]++
	fn, ok := m.servers[peer]
	if !ok {
		return nil, errors.New("no route")
	}
	here, there := net.Pipe()
	m.wg.Go(func() {
		defer there.Close()
		fn(there)
	})
	return here, nil
}

func (m *mesh) streams(peer string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.opened[peer]
}

// limit bounds every wait of a test, on the slowest machine.
func limit(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	return c
}

func complete(t testing.TB, store content.Blocks, info tree.Info) {
	t.Helper()
	if l, err := tree.Missing(ctx, store, info.Root); err != nil || !l.Complete() {
		t.Fatalf("missing after the fetch: %+v, %v", l, err)
	}
	dst := t.TempDir()
	must(t, tree.Checkout(ctx, store, info.Root, dst, tree.CheckoutOptions{KeepOwner: true}))
	again, err := tree.ImportDir(ctx, &blockstest.Memory{}, dst, tree.ImportOptions{ContentOnly: true})
	must(t, err)
	if again.Root != info.Root {
		t.Errorf("the fetched tree has root %s, want %s", again.Root, info.Root)
	}
}

func TestFetch(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	info := importTo(t, seed, source(t, 30, 700))
	srv := m.serve("seed", seed)
	store, err := blocks.Open(t.TempDir(), blocks.Options{})
	must(t, err)
	defer store.Close()
	f := exchange.NewFetcher(store, m, exchange.FetcherOptions{})

	var last, total int64
	var mu sync.Mutex
	res, err := f.Fetch(limit(t), info.Root, []string{"seed"}, func(done, all int64) {
		mu.Lock()
		defer mu.Unlock()
		if done < last {
			t.Errorf("progress fell from %d to %d", last, done)
		}
		last, total = done, all
	})
	must(t, err)
	complete(t, store, info)
	if last != info.Bytes || total != info.Bytes {
		t.Errorf("progress ended at %d of %d, want %d", last, total, info.Bytes)
	}
	if want := int64(seed.Len()); res.Blocks != want || res.Sources["seed"].Blocks != want {
		t.Errorf("%d blocks fetched, %d from the seed, want %d", res.Blocks, res.Sources["seed"].Blocks, want)
	}
	in, out := f.Metrics(), srv.Metrics()
	if in.Peers["seed"].BytesIn != res.Bytes || out.Peers["fetcher"].BytesOut < res.Bytes {
		t.Errorf("in %+v, out %+v, fetched %d", in.Total, out.Total, res.Bytes)
	}

	// The second time nobody is asked.
	res, err = f.Fetch(limit(t), info.Root, nil, nil)
	if err != nil || res.Blocks != 0 || res.Present != info.Bytes || m.streams("seed") != 1 {
		t.Errorf("again: %+v, %v, %d streams", res, err, m.streams("seed"))
	}
	must(t, f.Close()) // it is committed behind the caller's back
	if got := store.Roots(); len(got) != 1 || got[0] != info.Root {
		t.Errorf("roots = %v", got)
	}
}

func TestSeveralSourcesShareTheWork(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	info := importTo(t, seed, source(t, 120, 10))
	var names []string
	for i := range 3 {
		names = append(names, fmt.Sprint("seed", i))
		m.serve(names[i], seed)
	}
	// Small windows, so that no source can take it all before others begin.
	f := exchange.NewFetcher(&blockstest.Memory{}, m, exchange.FetcherOptions{WindowBytes: 1 << 20})
	res, err := f.Fetch(limit(t), info.Root, names, nil)
	must(t, err)
	sum := int64(0)
	for _, name := range names {
		if res.Sources[name].Blocks == 0 {
			t.Errorf("%s gave nothing: %+v", name, res.Sources)
		}
		sum += res.Sources[name].Blocks
	}
	if sum != res.Blocks || sum != int64(seed.Len()) {
		t.Errorf("sources gave %d, result says %d, want %d", sum, res.Blocks, seed.Len())
	}
}

// One of several seeders flips bits in every tenth block: it is detected,
// counted, and the result is right.
func TestSeederThatFlipsBits(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	info := importTo(t, seed, source(t, 200, 200))
	bad := &blockstest.Faulty{Blockstore: seed, FlipEvery: 10}
	m.serve("good1", seed)
	m.serve("bad", bad)
	m.serve("good2", seed)
	store := &blockstest.Memory{}
	f := exchange.NewFetcher(store, m, exchange.FetcherOptions{WindowBytes: 1 << 20})
	res, err := f.Fetch(limit(t), info.Root, []string{"bad", "good1", "good2"}, nil)
	must(t, err)
	complete(t, store, info)
	st := res.Sources["bad"]
	// After the third it is dropped; some more may be on their way.
	if st.Corrupt == 0 || st.Corrupt > bad.Flips() {
		t.Errorf("%d blocks flipped, %d counted", bad.Flips(), st.Corrupt)
	}
	if got := f.Metrics().Peers["bad"]; got.Corrupt != st.Corrupt || got.Retries < got.Corrupt {
		t.Errorf("metrics = %+v", got)
	}
	if st.Corrupt >= 3 && !strings.Contains(st.Dropped, "do not match their hash") {
		t.Errorf("dropped = %q", st.Dropped)
	}
	for _, name := range []string{"good1", "good2"} {
		if res.Sources[name].Corrupt != 0 {
			t.Errorf("%s is blamed: %+v", name, res.Sources[name])
		}
	}
}

// The only source flips few bits: what it sent wrong is asked for once more.
func TestOnlySourceFlipsABit(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	info := importTo(t, seed, source(t, 30, 0))
	m.serve("seed", &blockstest.Faulty{Blockstore: seed, FlipEvery: 25})
	store := &blockstest.Memory{}
	f := exchange.NewFetcher(store, m, exchange.FetcherOptions{})
	res, err := f.Fetch(limit(t), info.Root, []string{"seed"}, nil)
	must(t, err)
	complete(t, store, info)
	if res.Sources["seed"].Corrupt != 1 {
		t.Errorf("sources = %+v", res.Sources)
	}
}

func TestOnlySourceIsRotten(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	info := importTo(t, seed, source(t, 30, 0))
	m.serve("seed", &blockstest.Faulty{Blockstore: seed, ShortEvery: 1})
	store := &blockstest.Memory{}
	f := exchange.NewFetcher(store, m, exchange.FetcherOptions{})
	_, err := f.Fetch(limit(t), info.Root, []string{"seed"}, nil)
	if !errors.Is(err, content.ErrNotFound) || !strings.Contains(err.Error(), "sent 3 blocks that do not match") {
		t.Errorf("fetch: %v", err)
	}
	if store.Len() != 0 {
		t.Errorf("%d bad blocks were stored", store.Len())
	}
}

// dying closes the stream after n bytes were sent.
type dying struct {
	io.ReadWriteCloser
	left atomic.Int64
}

func (d *dying) Write(p []byte) (int, error) {
	if d.left.Add(-int64(len(p))) < 0 {
		d.Close()
		return 0, io.ErrClosedPipe
	}
	return d.ReadWriteCloser.Write(p)
}

func TestSeederDiesMidway(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	info := importTo(t, seed, source(t, 60, 100))
	srv := exchange.NewServer(seed, exchange.ServerOptions{})
	m.handle("dies", func(rw io.ReadWriteCloser) {
		d := &dying{ReadWriteCloser: rw}
		d.left.Store(5 << 20)
		srv.Serve(ctx, "x", d)
	})
	store := &blockstest.Memory{}
	f := exchange.NewFetcher(store, m, exchange.FetcherOptions{})

	// Alone: the fetch fails, what came stays.
	res, err := f.Fetch(limit(t), info.Root, []string{"dies"}, nil)
	if !errors.Is(err, content.ErrNotFound) || !strings.Contains(err.Error(), "dies: ") {
		t.Fatalf("fetch: %v", err)
	}
	kept := store.Len()
	if kept == 0 || int64(kept) != res.Blocks || len(store.Committed()) != 0 {
		t.Fatalf("%d blocks stayed, %d fetched, committed %v", kept, res.Blocks, store.Committed())
	}
	// With another: it goes on where it stopped.
	m.serve("lives", seed)
	res, err = f.Fetch(limit(t), info.Root, []string{"dies", "lives"}, nil)
	must(t, err)
	complete(t, store, info)
	if int(res.Blocks)+kept != seed.Len() {
		t.Errorf("%d blocks were there, %d came, want %d in all", kept, res.Blocks, seed.Len())
	}
}

func TestStalledSourceIsDropped(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	info := importTo(t, seed, source(t, 40, 10))
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	m.handle("mute", func(rw io.ReadWriteCloser) { io.Copy(io.Discard, rw) }) // takes all, sends nothing
	m.handle("deaf", func(io.ReadWriteCloser) { <-over })                     // takes nothing
	f := exchange.NewFetcher(&blockstest.Memory{}, m, exchange.FetcherOptions{StallTimeout: 200 * time.Millisecond})
	for _, name := range []string{"mute", "deaf"} {
		_, err := f.Fetch(limit(t), info.Root, []string{name}, nil)
		if !errors.Is(err, content.ErrNotFound) || !strings.Contains(err.Error(), "nothing for 200ms") {
			t.Errorf("%s: %v", name, err)
		}
	}
	m.serve("seed", seed)
	store := &blockstest.Memory{}
	f = exchange.NewFetcher(store, m, exchange.FetcherOptions{StallTimeout: time.Hour})
	if _, err := f.Fetch(limit(t), info.Root, []string{"mute", "deaf", "seed"}, nil); err != nil {
		t.Errorf("a good source besides: %v", err)
	}
	complete(t, store, info)
}

func TestPartialSources(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	info := importTo(t, seed, source(t, 40, 300))
	halves := []*blockstest.Memory{{}, {}}
	i := 0
	must(t, tree.Blocks(ctx, seed, info.Root, func(d content.Digest, _ int64) error {
		b, err := seed.Get(ctx, d.CID())
		must(t, err)
		i++
		return halves[i%2].Put(ctx, b)
	}))
	m.serve("half0", halves[0])
	m.serve("half1", halves[1])
	for i := range 6 {
		m.serve(fmt.Sprint("none", i), &blockstest.Memory{})
	}
	for name, sources := range map[string][]string{
		"two halves":                        {"half0", "half1"},
		"behind more who have nothing":      {"none0", "none1", "none2", "none3", "none4", "none5", "half0", "half1"},
		"with some that cannot be reached":  {"gone1", "half0", "gone2", "half1"},
		"the same several times over again": {"half0", "half0", "half1", "half0", "half1"},
	} {
		t.Run(name, func(t *testing.T) {
			store := &blockstest.Memory{}
			f := exchange.NewFetcher(store, m, exchange.FetcherOptions{SourcesPerFetch: 3})
			_, err := f.Fetch(limit(t), info.Root, sources, nil)
			must(t, err)
			complete(t, store, info)
		})
	}
	f := exchange.NewFetcher(&blockstest.Memory{}, m, exchange.FetcherOptions{})
	res, err := f.Fetch(limit(t), info.Root, []string{"half0", "none1"}, nil)
	if !errors.Is(err, content.ErrNotFound) || !strings.Contains(err.Error(), "does not have") {
		t.Errorf("half of it: %v", err)
	}
	if res.Sources["half0"].Lacked == 0 && res.Blocks > 0 {
		t.Errorf("sources = %+v", res.Sources)
	}
}

func TestNoSources(t *testing.T) {
	f := exchange.NewFetcher(&blockstest.Memory{}, newMesh(t), exchange.FetcherOptions{})
	root := content.DigestOf([]byte("no such tree")).CID()
	if _, err := f.Fetch(limit(t), root, nil, nil); !errors.Is(err, content.ErrNotFound) || !strings.Contains(err.Error(), "no source was given") {
		t.Errorf("none: %v", err)
	}
	if _, err := f.Fetch(limit(t), root, []string{"gone"}, nil); !errors.Is(err, content.ErrNotFound) || !strings.Contains(err.Error(), "no route") {
		t.Errorf("unreachable: %v", err)
	}
}

func TestNotATree(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	b := content.NewBlock([]byte("just some bytes"))
	must(t, seed.Put(ctx, b))
	m.serve("seed", seed)
	f := exchange.NewFetcher(&blockstest.Memory{}, m, exchange.FetcherOptions{})
	if _, err := f.Fetch(limit(t), b.Cid(), []string{"seed"}, nil); !errors.Is(err, content.ErrMalformed) {
		t.Errorf("fetch: %v", err)
	}
}

func TestDiskFull(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	info := importTo(t, seed, source(t, 30, 0))
	m.serve("seed", seed)
	f := exchange.NewFetcher(&blockstest.Faulty{Blockstore: &blockstest.Memory{}, FullAfter: 3 << 20}, m, exchange.FetcherOptions{})
	if _, err := f.Fetch(limit(t), info.Root, []string{"seed"}, nil); !errors.Is(err, content.ErrDiskFull) {
		t.Errorf("fetch: %v", err)
	}
}

// gate is a store whose reads wait for a token each.
type gate struct {
	blockstore.Blockstore
	tokens chan struct{}
}

func (g *gate) Get(ctx context.Context, c content.Root) (blockfmt.Block, error) {
	select {
	case <-g.tokens:
		return g.Blockstore.Get(ctx, c)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestFetchesOfOneRootJoin(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	info := importTo(t, seed, source(t, 20, 0))
	g := &gate{Blockstore: seed, tokens: make(chan struct{})}
	m.serve("seed", g)
	store := &blockstest.Memory{}
	f := exchange.NewFetcher(store, m, exchange.FetcherOptions{StallTimeout: time.Hour})

	first, giveUp := context.WithCancelCause(limit(t))
	firstDone := make(chan error, 1)
	go func() {
		_, err := f.Fetch(first, info.Root, []string{"seed"}, nil)
		firstDone <- err
	}()
	g.tokens <- struct{}{} // the first is on its way
	secondIn := make(chan struct{})
	var once sync.Once
	type result struct {
		exchange.Result
		error
	}
	second := make(chan result, 1)
	go func() {
		res, err := f.Fetch(limit(t), info.Root, nil, func(int64, int64) { once.Do(func() { close(secondIn) }) })
		second <- result{res, err}
	}()
	feed := func() bool {
		select {
		case g.tokens <- struct{}{}:
			return true
		case <-secondIn:
			return false
		}
	}
	for feed() { // until the second hears of progress: it has joined
	}
	why := errors.New("first has lost interest")
	giveUp(why)
	if err := <-firstDone; !errors.Is(err, why) {
		t.Errorf("first: %v", err)
	}
	close(g.tokens)
	r := <-second
	must(t, r.error)
	complete(t, store, info)
	if m.streams("seed") != 1 || int(r.Blocks) != seed.Len() {
		t.Errorf("%d streams, %d blocks", m.streams("seed"), r.Blocks)
	}
}

func TestFetchEndsWithItsLastCaller(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	info := importTo(t, seed, source(t, 20, 0))
	g := &gate{Blockstore: seed, tokens: make(chan struct{})}
	m.serve("seed", g)
	f := exchange.NewFetcher(&blockstest.Memory{}, m, exchange.FetcherOptions{})
	c, cancel := context.WithCancel(limit(t))
	done := make(chan error, 1)
	go func() {
		_, err := f.Fetch(c, info.Root, []string{"seed"}, nil)
		done <- err
	}()
	g.tokens <- struct{}{}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("fetch: %v", err)
	}
	m.wg.Wait() // the server's side has ended too
}

// A node that is still fetching serves what it has.
func TestSharedWhileFetching(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	info := importTo(t, seed, source(t, 30, 0))
	m.serve("seed", seed)
	a := &blockstest.Memory{}
	g := &gate{Blockstore: seed, tokens: make(chan struct{}, 10)}
	for range cap(g.tokens) {
		g.tokens <- struct{}{}
	}
	m.serve("slow seed", g)
	m.serve("a", a)
	fa := exchange.NewFetcher(a, m, exchange.FetcherOptions{StallTimeout: time.Hour})
	done := make(chan error, 1)
	started := make(chan struct{})
	var once sync.Once
	go func() {
		_, err := fa.Fetch(limit(t), info.Root, []string{"slow seed"}, func(n, _ int64) {
			if n > 100 { // more than the two equal files count for
				once.Do(func() { close(started) })
			}
		})
		done <- err
	}()
	<-started // a has some chunks and waits for more
	b := &blockstest.Memory{}
	fb := exchange.NewFetcher(b, m, exchange.FetcherOptions{})
	res, err := fb.Fetch(limit(t), info.Root, []string{"a"}, nil)
	if !errors.Is(err, content.ErrNotFound) || res.Sources["a"].Blocks < 3 || res.Sources["a"].Lacked == 0 {
		t.Errorf("from a alone: %+v, %v", res.Sources, err)
	}
	_, err = fb.Fetch(limit(t), info.Root, []string{"a", "seed"}, nil)
	must(t, err)
	complete(t, b, info)
	close(g.tokens)
	must(t, <-done)
	complete(t, a, info)
}

// A block that is damaged on the fetcher's own disk is fetched again.
func TestDamagedSegmentIsMended(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	info := importTo(t, seed, source(t, 3, 5))
	m.serve("seed", seed)
	dir := t.TempDir()
	store, err := blocks.Open(dir, blocks.Options{})
	must(t, err)
	defer store.Close()
	f := exchange.NewFetcher(store, m, exchange.FetcherOptions{})
	_, err = f.Fetch(limit(t), info.Root, []string{"seed"}, nil)
	must(t, err)
	segments, err := tree.Segments(ctx, seed, info.Root)
	must(t, err)
	for _, c := range []content.Root{segments[0].CID(), info.Root} {
		b, err := seed.Get(ctx, c)
		must(t, err)
		list, err := filepath.Glob(filepath.Join(dir, "data", "*", "*"))
		must(t, err)
		for _, name := range list {
			if data, err := os.ReadFile(name); err == nil && string(data) == string(b.RawData()) {
				must(t, os.WriteFile(name, make([]byte, len(data)), 0o600))
			}
		}
	}
	_, err = f.Fetch(limit(t), info.Root, []string{"seed"}, nil)
	must(t, err)
	complete(t, store, info)
	if store.Damaged() != 2 {
		t.Errorf("damaged = %d", store.Damaged())
	}
}

// More fetches than may run at once all come to their end.
func TestFetchesWaitForTheirTurn(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	m.serve("seed", seed)
	store := &blockstest.Memory{}
	f := exchange.NewFetcher(store, m, exchange.FetcherOptions{Fetches: 1})
	var wg sync.WaitGroup
	for range 5 {
		info := importTo(t, seed, source(t, 3, 5))
		for range 2 {
			wg.Go(func() {
				if _, err := f.Fetch(limit(t), info.Root, []string{"seed"}, nil); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if store.Len() != seed.Len() {
		t.Errorf("%d blocks, want %d", store.Len(), seed.Len())
	}
	if n := m.streams("seed"); n > 10 {
		t.Errorf("%d streams", n)
	}
}

package exchange

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/content/tree"
)

// FetcherOptions bounds a fetch. Zero fields take the defaults.
type FetcherOptions struct {
	Fetches         int           // at once, of different roots; more wait; default 8
	SourcesPerFetch int           // streams open at once for one root; default 4
	WindowBytes     int64         // block bytes on their way per source; default 8 MiB
	StallTimeout    time.Duration // no bytes for so long drops a source; default 10 s
	OpenTimeout     time.Duration // for the Opener; default 10 s
	MaxCorrupt      int           // bad blocks before a source is dropped; default 3
	Priority        uint8         // of our wants at the source; higher first
	Log             *slog.Logger
}

// Result is what a fetch did.
type Result struct {
	Bytes    int64                  // block bytes received and stored
	Blocks   int64                  // blocks received and stored
	Present  int64                  // file bytes that were here before
	Sources  map[string]SourceStats // by peer
	Duration time.Duration
}

// SourceStats is one source's share in a fetch.
type SourceStats struct {
	Bytes, Blocks int64  // stored
	Corrupt       int64  // blocks that did not match their hash
	Lacked        int64  // blocks the source did not have
	Dropped       string // why it was given up; "" while it is good
}

const (
	maxSources = 64 // of one fetch; more are not looked at
	maxRounds  = 3  // times that damage found on our own disk is mended in one fetch
	prefetches = 2  // at once; they have slots of their own, as they may stand back for long
)

// Fetcher fetches trees into a store. A fetch takes about 2 MiB of buffers per
// source and 50 bytes per chunk of the tree.
type Fetcher struct {
	store content.Blocks
	open  content.Opener
	o     FetcherOptions
	count counters
	slots chan struct{} // one token per running fetch
	back  chan struct{} // likewise, of those that began as a Prefetch

	mu      sync.Mutex
	flights map[content.Root]*flight
	running map[*flight]struct{} // also those that have no caller any more
	// urgent counts the running flights that somebody waits for; while there
	// are any, the others ask for nothing.
	urgent atomic.Int32
}

// NewFetcher makes a Fetcher into store.
func NewFetcher(store content.Blocks, opener content.Opener, o FetcherOptions) *Fetcher {
	if o.Fetches <= 0 {
		o.Fetches = 8
	}
	if o.SourcesPerFetch <= 0 {
		o.SourcesPerFetch = 4
	}
	if o.WindowBytes <= 0 {
		o.WindowBytes = 8 << 20
	}
	o.WindowBytes = max(o.WindowBytes, minWindow)
	if o.StallTimeout <= 0 {
		o.StallTimeout = 10 * time.Second
	}
	if o.OpenTimeout <= 0 {
		o.OpenTimeout = 10 * time.Second
	}
	if o.MaxCorrupt <= 0 {
		o.MaxCorrupt = 3
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Fetcher{store: store, open: opener, o: o, slots: make(chan struct{}, o.Fetches), back: make(chan struct{}, prefetches),
		flights: map[content.Root]*flight{}, running: map[*flight]struct{}{}}
}

// Metrics copies the counters.
func (f *Fetcher) Metrics() Metrics { return f.count.metrics() }

// flight is one running fetch, shared by all who ask for its root.
type flight struct {
	root   content.Root
	swarm  *swarm
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when res and err are set
	res    Result
	err    error

	waiters int           // under Fetcher.mu
	urgent  bool          // under Fetcher.mu: somebody waits for it
	hurried chan struct{} // closed when it becomes urgent

	mu       sync.Mutex
	progress map[int]content.Progress
	nextSub  int
}

// errUnwanted ends a flight whose callers have all gone.
var errUnwanted = errors.New("nobody waits for it any more")

// Fetch brings all blocks of root into the store and commits it. Calls for the
// same root join: sources of later calls are added, and the work ends when the
// last caller has given up. Without anything missing it returns at once and
// asks nobody.
//
// The error is content.ErrNotFound when no source has all of it, ErrDiskFull,
// ErrMalformed, the context's, or tells why each source was given up.
func (f *Fetcher) Fetch(ctx context.Context, root content.Root, sources []string, progress content.Progress) (Result, error) {
	return f.fetch(ctx, root, sources, progress, true)
}

// Prefetch is Fetch for what nobody waits for yet: while a Fetch of another
// root is running here it asks for nothing. A Fetch of the same root joins it,
// and from then on it is one.
func (f *Fetcher) Prefetch(ctx context.Context, root content.Root, sources []string, progress content.Progress) (Result, error) {
	return f.fetch(ctx, root, sources, progress, false)
}

func (f *Fetcher) fetch(ctx context.Context, root content.Root, sources []string, progress content.Progress, urgent bool) (Result, error) {
	for {
		fl, joined := f.join(ctx, root, sources, urgent)
		sub := fl.subscribe(progress)
		select {
		case <-fl.done:
			f.leave(fl, sub)
			if joined && fl.err != nil && !fl.swarm.knows(sources) {
				continue // it ended before our sources could help
			}
			return fl.res, fl.err
		case <-ctx.Done():
			f.leave(fl, sub)
			return Result{}, fmt.Errorf("fetch %s: %w", root, context.Cause(ctx))
		}
	}
}

// join finds the running flight of root or starts one.
func (f *Fetcher) join(ctx context.Context, root content.Root, sources []string, urgent bool) (fl *flight, joined bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl, ok := f.flights[root]; ok {
		fl.waiters++
		if urgent {
			f.hurryLocked(fl)
		}
		fl.swarm.addSources(sources)
		return fl, true
	}
	// The flight has a life of its own: it must not end with its first caller.
	fctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	fl = &flight{root: root, cancel: cancel, done: make(chan struct{}), waiters: 1, hurried: make(chan struct{}), progress: map[int]content.Progress{}}
	d, _ := content.DigestFrom(root)
	fl.swarm = newSwarm(f, d)
	fl.swarm.addSources(sources)
	f.flights[root] = fl
	f.running[fl] = struct{}{}
	if urgent {
		f.hurryLocked(fl)
	}
	go func() {
		defer close(fl.done)
		defer cancel(nil)
		start := time.Now()
		fl.err = f.run(fctx, fl)
		fl.swarm.close()
		fl.res = fl.swarm.result()
		fl.res.Duration = time.Since(start)
		f.forget(fl)
	}()
	return fl, false
}

// hurryLocked notes that somebody waits for a flight.
func (f *Fetcher) hurryLocked(fl *flight) {
	if !fl.urgent {
		fl.urgent = true
		close(fl.hurried)
		f.urgent.Add(1)
		fl.swarm.hurry()
	}
}

// forget takes a flight out that has ended; with the last urgent one those that
// stood back go on.
func (f *Fetcher) forget(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.flights[fl.root] == fl {
		delete(f.flights, fl.root)
	}
	delete(f.running, fl)
	if fl.urgent && f.urgent.Add(-1) == 0 {
		for other := range f.running {
			other.swarm.nudge()
		}
	}
}

// leave takes one caller off; the last one ends the flight and waits until
// nothing of it runs.
func (f *Fetcher) leave(fl *flight, sub int) {
	fl.mu.Lock()
	delete(fl.progress, sub)
	fl.mu.Unlock()
	f.mu.Lock()
	fl.waiters--
	last := fl.waiters == 0
	if last && f.flights[fl.root] == fl {
		delete(f.flights, fl.root)
	}
	f.mu.Unlock()
	if last {
		fl.cancel(errUnwanted)
		<-fl.done
	}
}

func (fl *flight) subscribe(p content.Progress) int {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.nextSub++
	if p != nil {
		fl.progress[fl.nextSub] = p
	}
	return fl.nextSub
}

func (fl *flight) report(done, total int64) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	for _, p := range fl.progress {
		p(done, total)
	}
}

// enter waits for a place among the running fetches. What is urgent never waits
// behind what stands back for it.
func (f *Fetcher) enter(ctx context.Context, fl *flight) (leave func(), err error) {
	back := f.back
	f.mu.Lock()
	if fl.urgent {
		back = nil
	}
	f.mu.Unlock()
	if back != nil {
		select {
		case back <- struct{}{}:
			return func() { <-back }, nil
		case <-fl.hurried:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	select {
	case f.slots <- struct{}{}:
		return func() { <-f.slots }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// run fetches the root block, then the segments, then the chunks.
func (f *Fetcher) run(ctx context.Context, fl *flight) error {
	leave, err := f.enter(ctx, fl)
	if err != nil {
		return err
	}
	defer leave()
	if h, ok := f.store.(content.Holder); ok {
		defer h.Hold()()
	}
	fl.swarm.start(ctx)
	for range maxRounds {
		// A block of ours that turns out damaged when it is read is missing
		// from then on: another round brings it.
		if err = f.round(ctx, fl); err == nil || !errors.Is(err, errDamaged) {
			break
		}
	}
	if err == nil {
		if c, ok := f.store.(content.Committer); ok {
			err = c.Commit(ctx, fl.root)
		}
	}
	if err != nil {
		return fmt.Errorf("fetch %s: %w", fl.root, err)
	}
	return nil
}

// errDamaged says that a part of the manifest was lost again after it was here.
var errDamaged = errors.New("a block of the manifest was damaged on disk")

func damagedHere(err error) error {
	if errors.Is(err, content.ErrNotFound) {
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	return err
}

func (f *Fetcher) round(ctx context.Context, fl *flight) error {
	root, ok := content.DigestFrom(fl.root)
	if !ok {
		return fmt.Errorf("not a raw BLAKE3 CID: %w", content.ErrMalformed)
	}
	if err := f.getMissing(ctx, fl.swarm, []content.Digest{root}); err != nil {
		return err
	}
	segments, err := tree.Segments(ctx, f.store, fl.root)
	if err != nil {
		return damagedHere(err)
	}
	if err := f.getMissing(ctx, fl.swarm, segments); err != nil {
		return err
	}
	return f.chunks(ctx, fl)
}

// getMissing fetches those of a few blocks that are not here.
func (f *Fetcher) getMissing(ctx context.Context, s *swarm, list []content.Digest) error {
	var need []*piece
	for _, d := range list {
		has, err := f.store.Has(ctx, d.CID())
		if err != nil {
			return err
		}
		if !has {
			// The size is not known yet; the window is kept by the holder's
			// count of what it sends.
			need = append(need, &piece{digest: d, size: content.ChunkSize})
		}
	}
	if err := s.push(ctx, need); err != nil {
		return err
	}
	return s.wait(ctx)
}

// batchPieces bounds what is listed of a tree at once: 4 GiB of full chunks.
const batchPieces = 16_384

func (f *Fetcher) chunks(ctx context.Context, fl *flight) error {
	info, err := tree.Stat(ctx, f.store, fl.root)
	if err != nil {
		return damagedHere(err)
	}
	lack, err := tree.Missing(ctx, f.store, fl.root)
	if err != nil {
		return err
	}
	if lack.Manifest {
		return errDamaged
	}
	present := info.Bytes - lack.Bytes
	fl.swarm.setProgress(func(received int64) { fl.report(min(present+received, info.Bytes), info.Bytes) }, present)
	if lack.Blocks == 0 {
		return nil
	}
	var batch []*piece
	push := func() error {
		// Each fetcher starts somewhere else, so that several that fetch the
		// same tree have different parts to share with each other.
		if n := len(batch); n > 0 {
			k := rand.IntN(n)
			batch = append(batch[k:n:n], batch[:k]...)
		}
		err := fl.swarm.push(ctx, batch)
		batch = nil
		return err
	}
	err = tree.MissingChunks(ctx, f.store, fl.root, func(d content.Digest, size int64) error {
		batch = append(batch, &piece{digest: d, size: size})
		if len(batch) < batchPieces {
			return nil
		}
		return push()
	})
	if err == nil {
		err = push()
	}
	if err == nil {
		err = fl.swarm.wait(ctx)
	}
	var none *noSource
	if errors.As(err, &none) {
		return err // the sources' lack, not ours
	}
	return damagedHere(err)
}

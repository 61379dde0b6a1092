// Package prefetch keeps the images that the mesh uses ready on a node that runs
// containers, so that a task which comes here starts as on a node that ran it
// before.
//
//	p := prefetch.New(prefetch.Config{Images: ledger, Hot: hot, Fetch: fetch, Prepare: prepare, …})
//	go p.Run(ctx)
//	p.Nudge()            // a member came up
//	p.Heard(roots)       // a member's advert names complete roots
//	fmt.Println(p.State())
//
// What is brought: when Run begins, the newest base image and the images that
// some member has in use; from then on each image that is registered, and each
// that a member begins to use. Layers are fetched and unpacked in the engine, one
// image at a time, the next layer on its way while the last one is unpacked.
//
// It is work that nobody waits for, so it is bounded (see the constants) and
// gives up early: an image that would take the disk below its floor, or this
// hour's share above Config.Budget, is left to the task that wants it. What it
// brings is ordinary content: the collectors of blocks and layers drop it when it
// was not used for longest. After a kill nothing has to be cleaned up: whole
// blocks stay and are found, half a layer is removed by the engine's start.
//
// Prefetcher is safe for concurrent use. It knows no peers and no disk: Config
// has functions for both.
package prefetch

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/node/ledger"
)

// Bounds.
const (
	// MaxFirst is how many images Run begins with.
	MaxFirst = 8
	// MaxWaiting bounds the images that wait for their turn; the oldest go.
	MaxWaiting = 32
	// MaxHourly bounds the images of an hour.
	MaxHourly = 32
	// MaxTries is how often an image is tried before it is left alone, until it
	// is registered anew or Run begins again.
	MaxTries = 3
	// Margin is disk that stays free above the floor: bytes that the floor's own
	// check would only notice when tasks write.
	Margin = 1 << 30

	maxKnown   = 1024   // images remembered, to know the one that a root is of
	maxRecords = 10_000 // of the ledger, looked at when Run begins
	// unknownLayer stands in for the size of a layer that its record lacks.
	unknownLayer = 64 << 20
)

// Config is what a Prefetcher is made from. All fields but Budget, Retry and
// MeshOnly are required.
type Config struct {
	Images ledger.Reader
	// MeshOnly leaves the images of workspaces alone: this machine belongs to
	// somebody else, and need not have what it does not run.
	MeshOnly bool
	// Sizes gives the bytes of an image's layers as far as its record has them.
	Sizes func(ledger.Image) []int64
	// Hot gives a test for whether a root is in use, here or at a member, now.
	Hot func() func(root string) bool
	// Fetch makes a root complete here and gives the bytes that had to move.
	Fetch func(ctx context.Context, root string, sources []string, progress content.Progress) (int64, error)
	// Prepare unpacks a chain of layers, lowest first, all complete here.
	Prepare func(ctx context.Context, roots []string) error
	// Yield waits, not for ever, while containers of other images than the one
	// with this top layer are being started.
	Yield func(ctx context.Context, top string)
	// Room is the bytes that may be written until the disk's floor.
	Room func() (int64, error)
	// Budget bounds the bytes that are fetched in an hour; 0 = 4 GiB.
	Budget int64
	// Retry is the pause after a first failure, doubled after each; 0 = 5 s.
	Retry time.Duration
	Log   *slog.Logger
}

// Prefetcher brings images. See the package comment.
type Prefetcher struct {
	cfg    Config
	relook chan struct{} // one token: the ledger may be reachable
	wake   chan struct{} // one token: there may be something to do

	mu      sync.Mutex
	known   map[string]*image // by top root
	waiting []*image          // in the order of their turn
	nudges  int
	spentAt time.Time // begin of the hour that is counted
	spent   int64     // bytes
	images  int
	looked  bool // the first look at the ledger is over
	state   State
	changed chan struct{} // closed and replaced when state changes
}

type phase int

// An image is waiting, then worked on, then ready or left alone; it waits again
// after a failure. Only ready is for good.
const (
	idle phase = iota
	waiting
	working
	ready
	left
)

type image struct {
	name    string // for people
	base    bool
	roots   []string
	sizes   []int64
	builder string
	changed time.Time
	phase   phase
	tries   int
	nudges  int       // Prefetcher.nudges at the last failure: a member that came since may help
	after   time.Time // not before, after a failure
}

func (i *image) top() string { return i.roots[len(i.roots)-1] }

func (i *image) bytes() int64 {
	var n int64
	for k := range i.roots {
		if k < len(i.sizes) {
			n += i.sizes[k]
		} else {
			n += unknownLayer
		}
	}
	return n
}

// New makes a Prefetcher; Run drives it.
func New(cfg Config) *Prefetcher {
	if cfg.Budget <= 0 {
		cfg.Budget = 4 << 30
	}
	if cfg.Retry <= 0 {
		cfg.Retry = 5 * time.Second
	}
	return &Prefetcher{cfg: cfg, relook: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		known: map[string]*image{}, changed: make(chan struct{})}
}

// Run brings images until ctx ends.
func (p *Prefetcher) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { p.follow(ctx) })
	p.work(ctx)
	wg.Wait()
}

// Nudge says that a member came up: what could not be reached may be now.
func (p *Prefetcher) Nudge() {
	p.mu.Lock()
	p.nudges++
	p.mu.Unlock()
	poke(p.relook)
	poke(p.wake)
}

// Heard takes the roots that a member says are complete there: it has them in
// use.
func (p *Prefetcher) Heard(roots []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range roots {
		if i := p.known[r]; i != nil && i.phase == idle {
			p.enqueueLocked(i)
		}
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// enqueueLocked gives an image its turn: base images first, for most others lie
// on them.
func (p *Prefetcher) enqueueLocked(i *image) {
	i.phase = waiting
	at := len(p.waiting)
	if i.base {
		at = 0
		for at < len(p.waiting) && p.waiting[at].base {
			at++
		}
	}
	p.waiting = slices.Insert(p.waiting, at, i)
	if len(p.waiting) > MaxWaiting {
		oldest := slices.IndexFunc(p.waiting, func(i *image) bool { return !i.base })
		oldest = max(oldest, 0)
		p.waiting[oldest].phase = idle
		p.waiting = slices.Delete(p.waiting, oldest, oldest+1)
	}
	p.tellLocked()
	poke(p.wake)
}

// work takes one image after the other.
func (p *Prefetcher) work(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		i, wait := p.next(time.Now())
		if i != nil {
			p.finish(ctx, i, p.bring(ctx, i))
			continue
		}
		timer.Reset(wait)
		select {
		case <-p.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// next takes the first image whose time has come, or says how long that may be.
func (p *Prefetcher) next(now time.Time) (*image, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	wait := time.Hour
	for k, i := range p.waiting {
		if d := i.after.Sub(now); d > 0 && i.nudges == p.nudges {
			wait = min(wait, d)
			continue
		}
		p.waiting = slices.Delete(p.waiting, k, k+1)
		i.phase = working
		p.state.Doing, p.state.Done, p.state.Total, p.state.Unpacking = i.name, 0, i.bytes(), false
		p.tellLocked()
		return i, 0
	}
	// What has failed once is not waited for.
	if p.looked && !p.state.Settled && !slices.ContainsFunc(p.waiting, func(i *image) bool { return i.tries == 0 }) {
		p.state.Settled = true
		p.tellLocked()
	}
	return nil, wait
}

// finish notes how an image went.
func (p *Prefetcher) finish(ctx context.Context, i *image, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.Doing = ""
	switch {
	case ctx.Err() != nil:
		i.phase = idle
	case err == nil:
		i.phase = ready
		p.state.Trouble = ""
		p.cfg.Log.Info("image is ready", "image", i.name, "bytes", i.bytes())
	default:
		i.tries++
		var s *skip
		if asSkip(err, &s) || i.tries >= MaxTries {
			i.phase = left
			p.state.Trouble = fmt.Sprintf("%s was not fetched ahead: %v", i.name, err)
		} else {
			i.after, i.nudges = time.Now().Add(p.cfg.Retry<<(i.tries-1)), p.nudges
			i.phase = waiting
			p.waiting = append(p.waiting, i)
		}
		p.cfg.Log.Info("image was not fetched ahead", "image", i.name, "try", i.tries, "err", err)
	}
	p.tellLocked()
}

func (p *Prefetcher) tellLocked() {
	p.state.Ready, p.state.Waiting = 0, len(p.waiting)
	for _, i := range p.known {
		if i.phase == ready {
			p.state.Ready++
		}
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

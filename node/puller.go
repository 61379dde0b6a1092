package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/content/blocks"
	"github.com/beammesh/beammesh/content/exchange"
	"github.com/beammesh/beammesh/content/tree"
	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/ipfs/go-cid"
)

// puller joins content to the mesh: it brings trees here, writes them as layers
// and keeps the list of what is complete, which goes into the advert.
type puller struct {
	store   *blocks.Store
	fetcher *exchange.Fetcher
	self    mesh.PeerID
	// find names peers that may hold a root when the given sources do not.
	find func(ctx context.Context, root string) []mesh.PeerID
	// onHot is told when the list of complete roots changed.
	onHot func(roots []string)

	mu     sync.Mutex
	images []string // layers of images, complete here, the most recently used first
	code   []string // code trees, likewise
	rate   int64    // KiB/s of fetches from the mesh, averaged; 0 = not measured
}

// Bounds of the roots that are advertised. Images come first: how fast a task
// would start depends on them, and an advert may have room for few.
const (
	maxHotImages = 24
	maxHotCode   = 8
)

// minRateBytes is the smallest fetch whose speed says something of the network.
const minRateBytes = 4 << 20

// Pull implements worker.Puller.
func (p *puller) Pull(ctx context.Context, image []string, code string, sources []string) (int64, []string, error) {
	var bytes int64
	var from []string
	take := func(root string, isImage bool) error {
		n, more, err := p.pull(ctx, root, sources, p.fetcher.Fetch, nil)
		bytes += n
		for _, s := range more {
			if !slices.Contains(from, s) {
				from = append(from, s)
			}
		}
		if err == nil {
			p.heat(root, isImage)
		}
		return err
	}
	for _, r := range image {
		if err := take(r, true); err != nil {
			return bytes, from, err
		}
	}
	if code == "" {
		return bytes, from, nil
	}
	return bytes, from, take(code, false)
}

// fetchFunc is how a tree comes here: Fetcher.Fetch or Fetcher.Prefetch.
type fetchFunc func(ctx context.Context, root content.Root, sources []string, progress content.Progress) (exchange.Result, error)

// pull makes one tree complete here. It gives the bytes that had to move and
// whom they came from.
func (p *puller) pull(ctx context.Context, root string, sources []string, fetch fetchFunc, progress content.Progress) (int64, []string, error) {
	c, err := cid.Decode(root)
	if err != nil {
		return 0, nil, fault.Wrap(fault.Invalid, err, "root "+root+" is not a CID", "")
	}
	p.store.Use(c)() // marks it as used now
	if lack, err := tree.Missing(ctx, p.store, c); err == nil && lack.Complete() {
		return 0, nil, nil
	}
	others := slices.DeleteFunc(slices.Clone(sources), func(s string) bool { return s == string(p.self) })
	for _, id := range p.find(ctx, root) {
		if !slices.Contains(others, string(id)) && id != p.self {
			others = append(others, string(id))
		}
	}
	if len(others) == 0 {
		return 0, nil, fault.New(fault.NotFound, "no reachable node holds "+root, "start the node that built the image or took the code")
	}
	res, err := fetch(ctx, c, others, progress)
	p.measure(res)
	var from []string
	for s, st := range res.Sources {
		if st.Bytes > 0 {
			from = append(from, s)
		}
	}
	slices.Sort(from)
	if err != nil {
		return res.Bytes, from, fmt.Errorf("pull %s: %w", root, err)
	}
	return res.Bytes, from, nil
}

// measure takes a fetch into the average of how fast they are: a quarter each,
// the first whole.
func (p *puller) measure(res exchange.Result) {
	if res.Bytes < minRateBytes || res.Duration <= 0 {
		return
	}
	rate := max(1, int64(float64(res.Bytes>>10)/res.Duration.Seconds()))
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rate == 0 {
		p.rate = rate
	}
	p.rate += (rate - p.rate) / 4
}

// bandwidth is the measured speed in KiB/s; 0 = not measured.
func (p *puller) bandwidth() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rate
}

// heat moves a root to the front of the complete ones.
func (p *puller) heat(root string, isImage bool) {
	p.mu.Lock()
	list, most := &p.code, maxHotCode
	if isImage {
		list, most = &p.images, maxHotImages
	}
	changed := !slices.Contains(*list, root)
	*list = slices.Insert(slices.DeleteFunc(*list, func(r string) bool { return r == root }), 0, root)
	*list = (*list)[:min(len(*list), most)]
	hot := slices.Concat(p.images, p.code)
	p.mu.Unlock()
	if changed {
		p.onHot(hot)
	}
}

// WriteLayer implements runtime.LayerWriter. It does not wait for the disk: the
// engine syncs layers behind the back of whoever starts the container, and
// drops those that a power cut came before.
func (p *puller) WriteLayer(ctx context.Context, root, dir string) error {
	c, err := cid.Decode(root)
	if err != nil {
		return fmt.Errorf("write layer %s: %w", root, err)
	}
	release := p.store.Use(c)
	defer release()
	err = tree.Checkout(ctx, p.store, c, dir, tree.CheckoutOptions{})
	if errors.Is(err, content.ErrNotFound) {
		// A block was found damaged and removed: fetch it again. Files that were
		// written already are written once more.
		if _, _, perr := p.pull(ctx, root, nil, p.fetcher.Fetch, nil); perr != nil {
			return errors.Join(err, perr)
		}
		err = tree.Checkout(ctx, p.store, c, dir, tree.CheckoutOptions{})
	}
	return err
}

// blockOpener opens block streams for content.
type blockOpener struct{ dialer mesh.Dialer }

var _ content.Opener = blockOpener{}

func (o blockOpener) OpenBlocks(ctx context.Context, peer string) (io.ReadWriteCloser, error) {
	s, err := o.dialer.OpenBulk(ctx, mesh.PeerID(peer), content.BlockProtocol)
	if err != nil {
		return nil, err
	}
	return abortive{s}, nil
}

// abortive is a stream whose Close ends reads and writes that are under way, as
// package exchange asks for.
type abortive struct{ mesh.Stream }

func (a abortive) Close() error { return a.Reset() }

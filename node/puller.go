package node

import (
	"context"
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

	mu  sync.Mutex
	hot []string // complete here, the most recently used first
}

// maxHot bounds the roots that are advertised.
const maxHot = 32

// Pull implements worker.Puller.
func (p *puller) Pull(ctx context.Context, roots, sources []string) (int64, []string, error) {
	var bytes int64
	var from []string
	for _, r := range roots {
		c, err := cid.Decode(r)
		if err != nil {
			return bytes, from, fault.Wrap(fault.Invalid, err, "root "+r+" is not a CID", "")
		}
		p.store.Use(c)() // marks it as used now
		lack, err := tree.Missing(ctx, p.store, c)
		if err == nil && lack.Bytes == 0 && lack.Blocks == 0 {
			p.heat(r)
			continue
		}
		others := slices.DeleteFunc(slices.Clone(sources), func(s string) bool { return s == string(p.self) })
		for _, id := range p.find(ctx, r) {
			if !slices.Contains(others, string(id)) && id != p.self {
				others = append(others, string(id))
			}
		}
		if len(others) == 0 {
			return bytes, from, fault.New(fault.NotFound, "no reachable node holds "+r, "start the node that built the image or took the code")
		}
		res, err := p.fetcher.Fetch(ctx, c, others, nil)
		bytes += res.Bytes
		for s, st := range res.Sources {
			if st.Bytes > 0 && !slices.Contains(from, s) {
				from = append(from, s)
			}
		}
		if err != nil {
			return bytes, from, fmt.Errorf("pull %s: %w", r, err)
		}
		p.heat(r)
	}
	return bytes, from, nil
}

// heat moves a root to the front of the complete ones.
func (p *puller) heat(root string) {
	p.mu.Lock()
	changed := len(p.hot) == 0 || !slices.Contains(p.hot, root)
	p.hot = slices.DeleteFunc(p.hot, func(r string) bool { return r == root })
	p.hot = slices.Insert(p.hot, 0, root)
	p.hot = p.hot[:min(len(p.hot), maxHot)]
	hot := slices.Clone(p.hot)
	p.mu.Unlock()
	if changed {
		p.onHot(hot)
	}
}

// WriteLayer implements runtime.LayerWriter.
func (p *puller) WriteLayer(ctx context.Context, root, dir string) error {
	c, err := cid.Decode(root)
	if err != nil {
		return fmt.Errorf("write layer %s: %w", root, err)
	}
	release := p.store.Use(c)
	defer release()
	return tree.Checkout(ctx, p.store, c, dir, tree.CheckoutOptions{})
}

// blockOpener opens block streams for content.
type blockOpener struct{ dialer mesh.Dialer }

var _ content.Opener = blockOpener{}

func (o blockOpener) OpenBlocks(ctx context.Context, peer string) (io.ReadWriteCloser, error) {
	return o.dialer.OpenBulk(ctx, mesh.PeerID(peer), content.BlockProtocol)
}

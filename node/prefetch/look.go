package prefetch

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/beammesh/beammesh/node/ledger"
)

// Pauses between looks at a ledger that cannot be reached; a member that comes
// up ends them.
const (
	minLook = time.Second
	maxLook = 30 * time.Second
)

// follow learns of images from the ledger until ctx ends.
func (p *Prefetcher) follow(ctx context.Context) {
	pause := minLook
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		rev, err := p.look(ctx)
		p.mu.Lock()
		p.looked = true
		p.mu.Unlock()
		poke(p.wake)
		if err == nil {
			pause = minLook
			err = p.cfg.Images.Watch(ctx, ledger.Filter{Kind: ledger.KindImage, Workspace: p.workspace()}, rev, func(e ledger.Event) error {
				if i := p.know(e.Record); i != nil && !e.Deleted {
					p.want(i)
				}
				return nil
			})
			if errors.Is(err, ledger.ErrCompacted) {
				continue // the next look sees it
			}
		}
		if ctx.Err() != nil {
			return
		}
		p.cfg.Log.Debug("look for images", "err", err)
		timer.Reset(pause)
		pause = min(2*pause, maxLook)
		select {
		case <-p.relook:
			pause = minLook
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

func (p *Prefetcher) workspace() string {
	if p.cfg.MeshOnly {
		return ledger.MeshScope
	}
	return ledger.AllWorkspaces
}

// look reads the images of the ledger and takes those in use. It gives the
// revision to watch from.
func (p *Prefetcher) look(ctx context.Context) (rev uint64, err error) {
	var found []*image
	q := ledger.Query{Kind: ledger.KindImage, Workspace: p.workspace()}
	for n := 0; n < maxRecords; {
		page, err := p.cfg.Images.List(ctx, q)
		if err != nil {
			return 0, err
		}
		if rev == 0 {
			rev = page.Revision
		}
		for _, r := range page.Records {
			if i := p.know(r); i != nil {
				found = append(found, i)
			}
		}
		n += len(page.Records)
		if q.After = page.Next; q.After == "" || len(page.Records) == 0 {
			break
		}
	}
	slices.SortStableFunc(found, func(a, b *image) int {
		if a.base != b.base {
			if a.base {
				return -1
			}
			return 1
		}
		if n := b.changed.Compare(a.changed); n != 0 {
			return n
		}
		return strings.Compare(a.top(), b.top())
	})
	hot := p.cfg.Hot()
	taken := 0
	for k, i := range found {
		newestBase := k == 0 && i.base // every image of its Python lies on it
		if taken < MaxFirst && (newestBase || hot(i.top())) {
			p.want(i)
			taken++
		}
	}
	return rev, nil
}

// know remembers an image by its top root; nil if the record is of no use.
func (p *Prefetcher) know(r ledger.Record) *image {
	body, ok := r.Body.(ledger.Image)
	if !ok || len(body.Roots) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	top := body.Roots[len(body.Roots)-1]
	if i := p.known[top]; i != nil {
		return i // the same layers under another name
	}
	i := &image{name: "image " + r.ID[:min(len(r.ID), 8)], base: r.Workspace == ledger.MeshScope, roots: body.Roots,
		sizes: p.cfg.Sizes(body), builder: body.Builder, changed: r.Changed}
	if i.base {
		i.name = "the base image"
		if body.Python != "" {
			i.name += " with Python " + body.Python
		}
	}
	if len(p.known) >= maxKnown {
		p.forgetLocked()
	}
	p.known[top] = i
	return i
}

// forgetLocked drops the oldest image that nothing is done with.
func (p *Prefetcher) forgetLocked() {
	var oldest *image
	for _, i := range p.known {
		if i.phase != waiting && i.phase != working && (oldest == nil || i.changed.Before(oldest.changed)) {
			oldest = i
		}
	}
	if oldest != nil { // at most MaxWaiting+1 are not
		delete(p.known, oldest.top())
	}
}

// want gives an image its turn, unless it has one or had it.
func (p *Prefetcher) want(i *image) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i.phase == left {
		i.phase, i.tries = idle, 0 // registered anew
	}
	if i.phase == idle {
		p.enqueueLocked(i)
	}
}

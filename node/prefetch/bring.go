package prefetch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/beammesh/beammesh/content"
)

// skip is a reason to leave an image alone that trying again does not mend.
type skip struct{ why string }

func (s *skip) Error() string { return s.why }

func asSkip(err error, s **skip) bool {
	return errors.As(err, s) || errors.Is(err, content.ErrDiskFull)
}

// bring fetches and unpacks one image: a layer is unpacked while the next one is
// fetched.
func (p *Prefetcher) bring(ctx context.Context, i *image) error {
	if err := p.admit(i); err != nil {
		return err
	}
	p.cfg.Yield(ctx, i.top())
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	here := make(chan int, len(i.roots)) // layers from below that are complete
	unpacked := make(chan error, 1)
	go func() {
		var err error
		for n := range here {
			if err == nil {
				if err = p.cfg.Prepare(ctx, i.roots[:n]); err != nil {
					cancel(err) // the rest need not come
				}
			}
		}
		unpacked <- err
	}()
	err := p.fetch(ctx, i, here)
	close(here)
	if err == nil {
		p.unpacking()
	}
	if uerr := <-unpacked; uerr != nil {
		return fmt.Errorf("unpack: %w", uerr)
	}
	return err
}

// fetch brings the layers, lowest first.
func (p *Prefetcher) fetch(ctx context.Context, i *image, here chan<- int) error {
	var sources []string
	if i.builder != "" {
		sources = []string{i.builder}
	}
	var below int64
	for k, root := range i.roots {
		moved, err := p.cfg.Fetch(ctx, root, sources, func(done, total int64) { p.progress(below, done, total) })
		p.spend(moved)
		if err != nil {
			return err
		}
		if k < len(i.sizes) {
			below += i.sizes[k]
		} else {
			below += unknownLayer
		}
		here <- k + 1
	}
	return nil
}

// admit refuses what is above the bounds. An image takes its size twice: as
// blocks, and unpacked.
func (p *Prefetcher) admit(i *image) error {
	room, err := p.cfg.Room()
	if err != nil {
		return err
	}
	need := 2*i.bytes() + Margin
	if room < need {
		return &skip{fmt.Sprintf("it takes %d MiB of disk with what must stay free, and %d MiB are left above the floor", need>>20, max(room, 0)>>20)}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.Sub(p.spentAt) >= time.Hour {
		p.spentAt, p.spent, p.images = now, 0, 0
	}
	if p.spent+i.bytes() > p.cfg.Budget || p.images >= MaxHourly {
		return &skip{fmt.Sprintf("%d images with %d MiB were fetched ahead this hour, and it has %d MiB; the limits are %d and %d MiB",
			p.images, p.spent>>20, i.bytes()>>20, MaxHourly, p.cfg.Budget>>20)}
	}
	p.images++
	return nil
}

func (p *Prefetcher) spend(bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spent += bytes
}

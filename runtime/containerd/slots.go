package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/network"
	"github.com/beammesh/beammesh/runtime/userns"
)

// slot is what a container is started in: a namespace pair with an address, a
// range of ids and a writable disk. A slot serves one container and is then
// taken apart; only its number, and with it address and ids, is used again.
type slot struct {
	n    int
	pair *userns.Pair
	addr netip.Addr
	disk string // mounted here; its size is defaultDisk
}

// slots makes slots ahead of need, so that the start of a container does not
// wait for it.
type slots struct {
	net   *network.Network
	cfg   *Config
	log   *slog.Logger
	ready chan *slot
	kick  chan struct{} // capacity 1
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu    sync.Mutex
	taken []bool
	next  int // numbers are used in turn: a stale connection finds nobody for long
}

// newSlots makes one slot at once, so that a machine that cannot make any is
// found out here and not by the first container.
func newSlots(ctx context.Context, c *Config, n *network.Network) (*slots, error) {
	fctx, stop := context.WithCancel(context.Background())
	s := &slots{net: n, cfg: c, log: c.Log, ready: make(chan *slot, c.Spare), kick: make(chan struct{}, 1),
		stop: stop, taken: make([]bool, c.Slots)}
	first, err := s.make(ctx)
	if err != nil {
		stop()
		return nil, err
	}
	s.ready <- first
	s.wake()
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		s.fill(fctx)
	}()
	return s, nil
}

// fill keeps ready full; a word on kick says that one was taken.
func (s *slots) fill(ctx context.Context) {
	for {
		select {
		case <-s.kick:
		case <-ctx.Done():
			return
		}
		for len(s.ready) < cap(s.ready) && ctx.Err() == nil {
			sl, err := s.make(ctx)
			if errors.Is(err, runtime.ErrNoResource) {
				break // all in use; the next return kicks again
			}
			if err != nil {
				if ctx.Err() == nil {
					s.log.Error("prepare namespaces for a container", "err", err)
				}
				break // whoever needs one meets the error
			}
			s.ready <- sl // only fill sends, so there is room
		}
	}
}

func (s *slots) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// take returns a slot whose disk has the given size (0 = default).
func (s *slots) take(ctx context.Context, disk int64) (*slot, error) {
	var sl *slot
	var err error
	select {
	case sl = <-s.ready:
		s.wake()
	default:
		if sl, err = s.make(ctx); err != nil {
			// The last free numbers may lie ready by now.
			select {
			case sl = <-s.ready:
				s.wake()
			default:
				return nil, err
			}
		}
	}
	if disk != 0 && disk != defaultDisk {
		err := unmount(sl.disk)
		if err == nil {
			err = mountDisk(ctx, s.cfg.disks(), sl.disk, disk, sl.pair.First)
		}
		if err != nil {
			return nil, errors.Join(err, s.give(sl))
		}
	}
	return sl, nil
}

func (s *slots) number() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.taken {
		n := (s.next + i) % len(s.taken)
		if !s.taken[n] {
			s.taken[n], s.next = true, n+1
			return n, nil
		}
	}
	return 0, fmt.Errorf("%d containers run: %w", len(s.taken), runtime.ErrNoResource)
}

func (s *slots) make(ctx context.Context) (*slot, error) {
	n, err := s.number()
	if err != nil {
		return nil, err
	}
	sl := &slot{n: n, disk: filepath.Join(s.cfg.State, "p", strconv.Itoa(n))}
	sl.pair, err = userns.New(s.cfg.FirstID+uint32(n)*idsPerContainer, idsPerContainer)
	if err == nil {
		sl.addr, err = s.net.Attach(sl.pair, n)
	}
	if err == nil {
		err = mountDisk(ctx, s.cfg.disks(), sl.disk, defaultDisk, sl.pair.First)
	}
	if err != nil {
		return nil, errors.Join(err, s.give(sl))
	}
	return sl, nil
}

// give takes a slot apart. Nothing may run in it.
func (s *slots) give(sl *slot) error {
	var errs []error
	errs = append(errs, s.net.Detach(sl.n))
	if sl.pair != nil {
		errs = append(errs, sl.pair.Close())
	}
	errs = append(errs, unmount(sl.disk))
	if err := os.Remove(sl.disk); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if err != nil {
		// The number stays taken: who came next would share what is left.
		return fmt.Errorf("take slot %d apart: %w", sl.n, err)
	}
	s.mu.Lock()
	s.taken[sl.n] = false
	s.mu.Unlock()
	s.wake()
	return nil
}

// close takes the ready slots apart; those of containers must be back.
func (s *slots) close() error {
	s.stop()
	s.wg.Wait()
	var errs []error
	for {
		select {
		case sl := <-s.ready:
			errs = append(errs, s.give(sl))
		default:
			return errors.Join(errs...)
		}
	}
}

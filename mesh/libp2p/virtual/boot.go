package virtual

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/beammesh/beammesh/mesh/libp2p"
)

// Bounds of Boot and Meet: a node serves 32 join requests at once, and dials of a
// whole mesh in one instant would only queue at the links.
const (
	joinsAtOnce = 16
	meetsAtOnce = 64
	startEvery  = 5 * time.Millisecond
)

// Boot makes one mesh of nodes with these configs, attached already: the first
// founds it, the others join with its tickets, all start. before, which may be
// nil, is where a node registers its handlers. On an error everything is closed.
func Boot(ctx context.Context, cfgs []libp2p.Config, before func(i int, m *libp2p.Mesh)) (ms []*libp2p.Mesh, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, Close(ms))
			ms = nil
		}
	}()
	start := func(i int) error {
		if before != nil {
			before(i, ms[i])
		}
		if err := ms[i].Start(ctx); err != nil {
			return fmt.Errorf("start node %d: %w", i, err)
		}
		return nil
	}
	for i, cfg := range cfgs {
		m, err := libp2p.New(ctx, cfg)
		if err != nil {
			return ms, fmt.Errorf("make node %d: %w", i, err)
		}
		ms = append(ms, m)
	}
	if err := ms[0].Found(ctx); err != nil {
		return ms, err
	}
	if err := start(0); err != nil {
		return ms, err
	}
	// All join before the next one starts: what has started costs something.
	err = each(len(ms)-1, joinsAtOnce, func(i int) error {
		ticket, err := ms[0].Invite(ctx, libp2p.Invitation{})
		if err != nil {
			return err
		}
		return ms[i+1].Join(ctx, ticket)
	})
	if err != nil {
		return ms, err
	}
	for i := range ms[1:] {
		if err := start(i + 1); err != nil {
			return ms, err
		}
		time.Sleep(startEvery)
	}
	return ms, nil
}

// Learn tells a node where others are; it does not connect them.
func Learn(m *libp2p.Mesh, others []*libp2p.Mesh) {
	for _, o := range others {
		m.Learn(o.PeerID(), o.Addrs())
	}
}

// Meet connects pairs of nodes, by their index in ms, and waits for their hellos.
func Meet(ctx context.Context, ms []*libp2p.Mesh, pairs [][2]int) error {
	return each(len(pairs), meetsAtOnce, func(i int) error {
		a, b := ms[pairs[i][0]], ms[pairs[i][1]]
		Learn(a, []*libp2p.Mesh{b})
		s, err := a.Open(ctx, b.PeerID(), "meet/1")
		if err != nil {
			return err
		}
		return s.Reset() // nothing was written: the peer has not seen it
	})
}

// Close closes nodes, all at once.
func Close(ms []*libp2p.Mesh) error {
	return each(len(ms), len(ms), func(i int) error { return ms[i].Close() })
}

// each calls fn for 0 to n-1, a few at once, and gives what failed.
func each(n, atOnce int, fn func(i int) error) error {
	errs := make([]error, n)
	room := make(chan struct{}, max(atOnce, 1))
	var wg sync.WaitGroup
	for i := range n {
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			errs[i] = fn(i)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

package exchange_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/content/blockstest"
	"github.com/beammesh/beammesh/content/exchange"
)

// slowDisk commits when it is told to.
type slowDisk struct {
	blockstest.Memory
	commit chan error
	held   atomic.Int64
}

func (d *slowDisk) Commit(context.Context, content.Root) error { return <-d.commit }

func (d *slowDisk) Hold() func() {
	d.held.Add(1)
	return func() { d.held.Add(-1) }
}

func TestFetchDoesNotWaitForTheDisk(t *testing.T) {
	m := newMesh(t)
	seed := &blockstest.Memory{}
	info := importTo(t, seed, source(t, 2, 3))
	m.serve("seed", seed)
	store := &slowDisk{commit: make(chan error)}
	f := exchange.NewFetcher(store, m, exchange.FetcherOptions{})
	if _, err := f.Fetch(limit(t), info.Root, []string{"seed"}, nil); err != nil {
		t.Fatal(err)
	}
	complete(t, store, info)
	if store.held.Load() != 1 {
		t.Error("the collector may take what is not committed yet")
	}
	closed := make(chan error, 1)
	go func() { closed <- f.Close() }()
	store.commit <- errors.New("the disk is slow and broken") // is logged
	must(t, <-closed)
	if store.held.Load() != 0 {
		t.Error("held after the commit")
	}
	_, err := f.Fetch(limit(t), info.Root, []string{"seed"}, nil)
	if err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("after Close: %v", err)
	}
}

// Close ends what runs, also when its caller would wait on.
func TestCloseEndsFetches(t *testing.T) {
	m := newMesh(t)
	tp, info := seeded(t, m, "a", 3)
	f := exchange.NewFetcher(&blockstest.Memory{}, m, exchange.FetcherOptions{})
	done := inBackground(f.Fetch, limit(t), info.Root, "a")
	await(t, tp.read)
	must(t, f.Close())
	if err := <-done; err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("got %v", err)
	}
}

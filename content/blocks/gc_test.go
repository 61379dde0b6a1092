package blocks_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	blockfmt "github.com/ipfs/go-block-format"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/content/blocks"
)

// A toy tree: its root block holds the digests of its leaves.
func toyTree(t testing.TB, s *blocks.Store, leaves ...string) content.Root {
	t.Helper()
	var data []byte
	for _, l := range leaves {
		d, _ := content.DigestFrom(put(t, s, l).Cid())
		data = append(data, d[:]...)
	}
	root := content.NewBlock(data)
	if err := s.Put(ctx, root); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, root.Cid()); err != nil {
		t.Fatal(err)
	}
	return root.Cid()
}

func toyLinks(ctx context.Context, s content.Blocks, root content.Root, emit func(content.Digest, int64) error) error {
	b, err := s.Get(ctx, root)
	if err != nil {
		return err
	}
	d, _ := content.DigestFrom(root)
	if err := emit(d, int64(len(b.RawData()))); err != nil {
		return err
	}
	for leaf := range slices.Chunk(b.RawData(), len(content.Digest{})) {
		n, err := s.GetSize(ctx, content.Digest(leaf).CID())
		if err != nil {
			return err
		}
		if err := emit(content.Digest(leaf), int64(n)); err != nil {
			return err
		}
	}
	return nil
}

// age sets when a tree was used last.
func age(t testing.TB, dir string, root content.Root, d time.Duration) {
	t.Helper()
	at := time.Now().Add(-d)
	if err := os.Chtimes(filepath.Join(dir, "roots", root.String()), at, at); err != nil {
		t.Fatal(err)
	}
}

func here(t testing.TB, s *blocks.Store, text string) bool {
	t.Helper()
	ok, err := s.Has(ctx, content.DigestOf([]byte(text)).CID())
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func TestGCKeepsWhatWasUsedLast(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, blocks.Options{})
	big := func(name string) string { return name + strings.Repeat(".", 1000) }
	oldest := toyTree(t, s, big("a"), big("shared"))
	middle := toyTree(t, s, big("b"))
	newest := toyTree(t, s, big("c"), big("shared"))
	age(t, dir, oldest, 3*time.Hour)
	age(t, dir, middle, 2*time.Hour)
	s.Close()
	s = open(t, dir, blocks.Options{})

	st, err := s.GC(ctx, 2500, toyLinks)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.Roots(), []content.Root{newest}) || len(st.DroppedRoots) != 2 {
		t.Errorf("roots = %v, dropped %v", s.Roots(), st.DroppedRoots)
	}
	for text, want := range map[string]bool{"a": false, "b": false, "c": true, "shared": true} {
		if got := here(t, s, big(text)); got != want {
			t.Errorf("%s is here = %v, want %v", text, got, want)
		}
	}
	// Two roots of 64 and 32 bytes, two leaves.
	if st.FreedBytes != 2*1001+64+32 || st.FreedBlocks != 4 || st.KeptBlocks != 3 {
		t.Errorf("stats = %+v", st)
	}
}

func TestGCKeepsPinnedAndUsed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, blocks.Options{})
	pinned, used, free := toyTree(t, s, "p"), toyTree(t, s, "u"), toyTree(t, s, "f")
	for _, owner := range []string{"image/1", "run/..~odd"} {
		if err := s.Pin(ctx, pinned, owner); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	s = open(t, dir, blocks.Options{})
	if got := s.Pinned()[pinned]; !slices.Equal(got, []string{"image/1", "run/..~odd"}) {
		t.Errorf("pins after a restart = %q", got)
	}
	release := s.Use(used)
	gc := func() {
		t.Helper()
		if _, err := s.GC(ctx, 0, toyLinks); err != nil {
			t.Fatal(err)
		}
	}
	gc()
	if !here(t, s, "p") || !here(t, s, "u") || here(t, s, "f") {
		t.Errorf("p, u, f = %v, %v, %v", here(t, s, "p"), here(t, s, "u"), here(t, s, "f"))
	}
	if slices.Contains(s.Roots(), free) {
		t.Error("the free tree is still listed")
	}
	release()
	release()
	s.Unpin(ctx, pinned, "image/1")
	gc()
	if !here(t, s, "p") || here(t, s, "u") {
		t.Errorf("p, u = %v, %v", here(t, s, "p"), here(t, s, "u"))
	}
	if err := s.Unpin(ctx, pinned, "run/..~odd"); err != nil {
		t.Fatal(err)
	}
	gc()
	if here(t, s, "p") {
		t.Error("p is still here")
	}
	if n, _, err := s.Usage(ctx); n != 0 || err != nil {
		t.Errorf("%d blocks left, %v", n, err)
	}
}

func TestGCOrphans(t *testing.T) {
	s := open(t, t.TempDir(), blocks.Options{})
	put(t, s, "young orphan")
	if _, err := s.GC(ctx, 1<<40, toyLinks); err != nil {
		t.Fatal(err)
	}
	if !here(t, s, "young orphan") {
		t.Error("a fetch that broke off cannot go on")
	}
	s = open(t, t.TempDir(), blocks.Options{OrphanAge: -1})
	put(t, s, "orphan")
	if _, err := s.GC(ctx, 1<<40, toyLinks); err != nil {
		t.Fatal(err)
	}
	if here(t, s, "orphan") {
		t.Error("orphan stays")
	}
}

func TestGCLeavesHeldBlocks(t *testing.T) {
	s := open(t, t.TempDir(), blocks.Options{OrphanAge: -1})
	put(t, s, "was there")
	release := s.Hold()
	put(t, s, "put now")
	if !here(t, s, "was there") {
		t.Fatal("lost")
	}
	if _, err := s.GC(ctx, 0, toyLinks); err != nil {
		t.Fatal(err)
	}
	if !here(t, s, "was there") || !here(t, s, "put now") {
		t.Error("a held block was collected")
	}
	release()
	if _, err := s.GC(ctx, 0, toyLinks); err != nil {
		t.Fatal(err)
	}
	if n, _, _ := s.Usage(ctx); n != 0 {
		t.Errorf("%d blocks left", n)
	}
}

// A tree that is committed while a collection runs survives it, whenever its
// hold ends.
func TestGCBesideCommits(t *testing.T) {
	s := open(t, t.TempDir(), blocks.Options{OrphanAge: -1})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := s.GC(ctx, 1<<40, toyLinks); err != nil {
				t.Errorf("gc: %v", err)
				return
			}
		}
	})
	for i := range 60 {
		release := s.Hold()
		leaf := strings.Repeat("leaf", i)
		root := toyTree(t, s, leaf, "common")
		release()
		if !here(t, s, leaf) || !here(t, s, "common") {
			t.Errorf("tree %d lost a block", i)
		}
		if err := s.Forget(ctx, root); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
}

func TestGCDropsATreeThatLostABlock(t *testing.T) {
	s := open(t, t.TempDir(), blocks.Options{})
	root := toyTree(t, s, "x", "y")
	if err := s.DeleteBlock(ctx, content.DigestOf([]byte("x")).CID()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GC(ctx, 1<<40, toyLinks); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(s.Roots(), root) {
		t.Error("still listed as complete")
	}
}

func TestPinOwners(t *testing.T) {
	s := open(t, t.TempDir(), blocks.Options{})
	root := toyTree(t, s, "x")
	for _, owner := range []string{"", strings.Repeat("o", 101)} {
		if err := s.Pin(ctx, root, owner); err == nil {
			t.Errorf("owner of %d bytes was taken", len(owner))
		}
	}
	if err := s.Unpin(ctx, root, "nobody"); err != nil {
		t.Error(err)
	}
}

func TestCancelledContext(t *testing.T) {
	s := open(t, t.TempDir(), blocks.Options{})
	b := put(t, s, "x")
	dead, cancel := context.WithCancel(ctx)
	cancel()
	_, getErr := s.Get(dead, b.Cid())
	_, gcErr := s.GC(dead, 0, toyLinks)
	_, scrubErr := s.Scrub(dead)
	for what, err := range map[string]error{
		"get": getErr, "gc": gcErr, "scrub": scrubErr,
		"put": s.Put(dead, blockfmt.Block(b)), "sync": s.Sync(dead),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !here(t, s, "x") {
		t.Error("x is gone")
	}
}

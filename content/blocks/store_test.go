package blocks_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipfs/boxo/blockstore"
	blockfmt "github.com/ipfs/go-block-format"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/content/blocks"
	"github.com/beammesh/beammesh/content/blockstest"
)

var (
	_ blockstore.Blockstore           = (*blocks.Store)(nil)
	_ blockstore.Viewer               = (*blocks.Store)(nil)
	_ blockstore.AllKeysChanWithErrer = (*blocks.Store)(nil)
)

var ctx = context.Background()

func open(t testing.TB, dir string, o blocks.Options) *blocks.Store {
	t.Helper()
	s, err := blocks.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t testing.TB, s *blocks.Store, text string) blockfmt.Block {
	t.Helper()
	b := content.NewBlock([]byte(text))
	if err := s.Put(ctx, b); err != nil {
		t.Fatal(err)
	}
	return b
}

// file finds the one file of the store's data that holds exactly this text.
func file(t testing.TB, dir string, b blockfmt.Block) string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "data", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range list {
		if data, err := os.ReadFile(name); err == nil && bytes.Equal(data, b.RawData()) {
			return name
		}
	}
	t.Fatalf("block %s has no file", b.Cid())
	return ""
}

func TestConformance(t *testing.T) {
	for name, o := range map[string]blocks.Options{
		"defaults":    {},
		"verify":      {VerifyPuts: true},
		"trust disk":  {TrustDisk: true},
		"small cache": {CacheEntries: 2},
	} {
		t.Run(name, func(t *testing.T) {
			blockstest.Run(t, func(t *testing.T) blockstore.Blockstore {
				return open(t, t.TempDir(), o)
			})
		})
	}
}

func TestBlocksOutliveTheStore(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, blocks.Options{})
	b := put(t, s, "kept")
	if err := s.Commit(ctx, b.Cid()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, blocks.Options{})
	if _, err := s.Get(ctx, b.Cid()); err != nil {
		t.Error(err)
	}
	if got := s.Roots(); len(got) != 1 || got[0] != b.Cid() {
		t.Errorf("roots = %v", got)
	}
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, blocks.Options{})
	if _, err := blocks.Open(dir, blocks.Options{}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("second open: %v", err)
	}
}

func TestUnknownFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "format"), []byte("9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := blocks.Open(dir, blocks.Options{}); err == nil {
		t.Error("opened")
	}
}

// A power cut leaves files with zeros, cut short or empty: each is found when
// it is read, removed, reported as missing and can be put again.
func TestDamagedBlockIsMissing(t *testing.T) {
	damage := map[string]func([]byte) []byte{
		"bit flip": func(d []byte) []byte { d[3] ^= 1; return d },
		"zeros":    func(d []byte) []byte { return make([]byte, len(d)) },
		"short":    func(d []byte) []byte { return d[:len(d)-1] },
		"long":     func(d []byte) []byte { return append(d, 0) },
		"empty":    func([]byte) []byte { return nil },
	}
	for name, change := range damage {
		for _, reopen := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				s := open(t, dir, blocks.Options{})
				b := put(t, s, "a block that gets damaged")
				path := file(t, dir, b)
				if err := os.WriteFile(path, change(bytes.Clone(b.RawData())), 0o600); err != nil {
					t.Fatal(err)
				}
				if reopen {
					s.Close()
					s = open(t, dir, blocks.Options{})
				}
				if _, err := s.Get(ctx, b.Cid()); !errors.Is(err, content.ErrNotFound) {
					t.Fatalf("get: %v, want not found", err)
				}
				if ok, err := s.Has(ctx, b.Cid()); ok || err != nil {
					t.Errorf("has = %v, %v", ok, err)
				}
				if s.Damaged() != 1 {
					t.Errorf("damaged = %d, want 1", s.Damaged())
				}
				if err := s.Put(ctx, b); err != nil {
					t.Fatal(err)
				}
				if _, err := s.Get(ctx, b.Cid()); err != nil {
					t.Errorf("get after it was put again: %v", err)
				}
			})
		}
	}
}

// A torn block of another length must not keep Put from writing it again.
func TestPutMendsATornBlock(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, blocks.Options{})
	b := put(t, s, "torn by a power cut")
	path := file(t, dir, b)
	s.Close()
	if err := os.Truncate(path, 4); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, blocks.Options{})
	if err := s.Put(ctx, b); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, b.Cid()); err != nil {
		t.Error(err)
	}
}

func TestVerifyPuts(t *testing.T) {
	s := open(t, t.TempDir(), blocks.Options{VerifyPuts: true})
	b, err := blockfmt.NewBlockWithCid([]byte("other bytes"), content.DigestOf([]byte("bytes")).CID())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(ctx, b); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("put: %v, want corrupt", err)
	}
	if ok, _ := s.Has(ctx, b.Cid()); ok {
		t.Error("the wrong block was kept")
	}
}

func TestAdmissionFloor(t *testing.T) {
	free := int64(100 << 20)
	s := open(t, t.TempDir(), blocks.Options{
		FloorBytes: 90 << 20,
		Free:       func() (int64, error) { return free, nil },
	})
	chunk := make([]byte, content.MaxBlock)
	for i := 0; ; i++ {
		chunk[0] = byte(i)
		err := s.Put(ctx, content.NewBlock(bytes.Clone(chunk)))
		if err != nil {
			if !errors.Is(err, content.ErrDiskFull) {
				t.Fatalf("put: %v", err)
			}
			break
		}
		if free -= int64(len(chunk)); free < 89<<20 {
			t.Fatal("went through the floor")
		}
	}
	free = 100 << 20
	if err := s.Put(ctx, content.NewBlock([]byte("room again"))); err != nil {
		t.Errorf("put when there is room again: %v", err)
	}
}

func TestLeftoverTemporaryFilesGo(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, blocks.Options{})
	s.Close()
	if err := os.WriteFile(filepath.Join(dir, "tmp", "x"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir, blocks.Options{})
	if list, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(list) != 0 {
		t.Errorf("%d files left", len(list))
	}
}

func TestScrub(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, blocks.Options{TrustDisk: true})
	good, bad := put(t, s, "good"), put(t, s, "bad block")
	if err := os.WriteFile(file(t, dir, bad), []byte("bad blocK"), 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := s.Scrub(ctx)
	if err != nil || st.Blocks != 1 || st.Damaged != 1 {
		t.Errorf("scrub = %+v, %v", st, err)
	}
	if ok, _ := s.Has(ctx, bad.Cid()); ok {
		t.Error("the damaged block is still here")
	}
	if ok, _ := s.Has(ctx, good.Cid()); !ok {
		t.Error("the good block is gone")
	}
}

func TestCommitNeedsItsRoot(t *testing.T) {
	s := open(t, t.TempDir(), blocks.Options{})
	if err := s.Commit(ctx, content.DigestOf([]byte("absent")).CID()); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("commit: %v", err)
	}
}

// More blocks than are synced one by one.
func TestSyncOfManyBlocks(t *testing.T) {
	s := open(t, t.TempDir(), blocks.Options{})
	for i := range 600 {
		put(t, s, strings.Repeat("x", i))
	}
	if err := s.Sync(ctx); err != nil {
		t.Error(err)
	}
}

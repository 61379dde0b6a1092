package blockstest

import (
	"context"
	"errors"
	"testing"

	"github.com/ipfs/boxo/blockstore"

	"github.com/beammesh/beammesh/content"
)

func TestMemory(t *testing.T) {
	Run(t, func(*testing.T) blockstore.Blockstore { return &Memory{} })
}

func TestFaultyWithoutCues(t *testing.T) {
	Run(t, func(*testing.T) blockstore.Blockstore { return &Faulty{Blockstore: &Memory{}} })
}

func TestFaultyFailsOnCue(t *testing.T) {
	ctx := context.Background()
	b := content.NewBlock([]byte("some bytes"))
	read := func(f *Faulty) error {
		f.Blockstore = &Memory{}
		if err := f.Blockstore.Put(ctx, b); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Get(ctx, b.Cid()); err != nil {
			t.Fatalf("first read: %v", err)
		}
		got, err := f.Get(ctx, b.Cid())
		if err != nil {
			return err
		}
		return content.Verify(b.Cid(), got.RawData())
	}
	if err := read(&Faulty{FlipEvery: 2}); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("flipped bit: %v", err)
	}
	if err := read(&Faulty{ShortEvery: 2}); !errors.Is(err, content.ErrCorrupt) {
		t.Errorf("short read: %v", err)
	}
	if err := read(&Faulty{FailEvery: 2}); !errors.Is(err, ErrFault) {
		t.Errorf("failed read: %v", err)
	}
	f := &Faulty{Blockstore: &Memory{}, FullAfter: 15}
	if err := f.Put(ctx, b); err != nil {
		t.Errorf("first put: %v", err)
	}
	if err := f.Put(ctx, b); !errors.Is(err, content.ErrDiskFull) {
		t.Errorf("second put: %v", err)
	}
}

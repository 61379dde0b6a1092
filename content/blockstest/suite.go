package blockstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/ipfs/boxo/blockstore"
	blockfmt "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"

	"github.com/beammesh/beammesh/content"
)

// Run checks that a store keeps the contract of content.Blocks and boxo's
// Blockstore. open gives an empty store for each case.
func Run(t *testing.T, open func(t *testing.T) blockstore.Blockstore) {
	cases := []struct {
		name string
		run  func(t *testing.T, s blockstore.Blockstore)
	}{
		{"what was put is read back", roundTrip},
		{"a missing block is not found", missing},
		{"putting twice keeps one", putTwice},
		{"a deleted block is gone", deleted},
		{"all keys are listed", allKeys},
		{"blocks of other hashes and codecs are kept", foreign},
		{"the undefined CID is refused or absent", undefined},
		{"concurrent use", concurrent},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t)) })
	}
}

func body(i int) []byte { return bytes.Repeat([]byte(fmt.Sprint(i, ".")), i*37%500) }

func roundTrip(t *testing.T, s blockstore.Blockstore) {
	ctx := context.Background()
	for _, size := range []int{0, 1, 4096, content.ChunkSize, content.MaxBlock} {
		b := content.NewBlock(bytes.Repeat([]byte{7}, size))
		if err := s.Put(ctx, b); err != nil {
			t.Fatalf("put %d bytes: %v", size, err)
		}
		if ok, err := s.Has(ctx, b.Cid()); !ok || err != nil {
			t.Errorf("has %d bytes = %v, %v", size, ok, err)
		}
		if n, err := s.GetSize(ctx, b.Cid()); n != size || err != nil {
			t.Errorf("size of %d bytes = %d, %v", size, n, err)
		}
		got, err := s.Get(ctx, b.Cid())
		if err != nil {
			t.Fatalf("get %d bytes: %v", size, err)
		}
		if !bytes.Equal(got.RawData(), b.RawData()) || got.Cid() != b.Cid() {
			t.Errorf("get %d bytes gave other data", size)
		}
	}
}

func missing(t *testing.T, s blockstore.Blockstore) {
	ctx := context.Background()
	c := content.DigestOf([]byte("never put")).CID()
	if ok, err := s.Has(ctx, c); ok || err != nil {
		t.Errorf("has = %v, %v", ok, err)
	}
	_, err := s.Get(ctx, c)
	if !errors.Is(err, content.ErrNotFound) || !ipld.IsNotFound(err) {
		t.Errorf("get: %v, want not found for us and for boxo", err)
	}
	if _, err := s.GetSize(ctx, c); !ipld.IsNotFound(err) {
		t.Errorf("size: %v, want not found", err)
	}
	if err := s.DeleteBlock(ctx, c); err != nil {
		t.Errorf("delete: %v", err)
	}
}

func putTwice(t *testing.T, s blockstore.Blockstore) {
	ctx := context.Background()
	b := content.NewBlock([]byte("twice"))
	if err := s.PutMany(ctx, []blockfmt.Block{b, b}); err != nil {
		t.Fatal(err)
	}
	if n := len(keys(t, s)); n != 1 {
		t.Errorf("%d blocks, want 1", n)
	}
}

func deleted(t *testing.T, s blockstore.Blockstore) {
	ctx := context.Background()
	b := content.NewBlock([]byte("short life"))
	if err := s.Put(ctx, b); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteBlock(ctx, b.Cid()); err != nil {
		t.Fatal(err)
	}
	if ok, _ := s.Has(ctx, b.Cid()); ok {
		t.Error("still here")
	}
	if _, err := s.Get(ctx, b.Cid()); !ipld.IsNotFound(err) {
		t.Errorf("get: %v", err)
	}
	if err := s.Put(ctx, b); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, b.Cid()); err != nil {
		t.Errorf("get after it was put again: %v", err)
	}
}

func keys(t *testing.T, s blockstore.Blockstore) map[string]bool {
	t.Helper()
	ch, err := s.AllKeysChan(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for c := range ch {
		out[string(c.Hash())] = true
	}
	return out
}

func allKeys(t *testing.T, s blockstore.Blockstore) {
	var bs []blockfmt.Block
	for i := range 200 {
		bs = append(bs, content.NewBlock(append(body(i), byte(i))))
	}
	if err := s.PutMany(context.Background(), bs); err != nil {
		t.Fatal(err)
	}
	got := keys(t, s)
	if len(got) != len(bs) {
		t.Errorf("%d keys, want %d", len(got), len(bs))
	}
	for _, b := range bs {
		if !got[string(b.Cid().Hash())] {
			t.Errorf("%s is not listed", b.Cid())
		}
	}
}

func foreign(t *testing.T, s blockstore.Blockstore) {
	ctx := context.Background()
	data := []byte("from another world")
	for _, p := range []cid.Prefix{
		{Version: 1, Codec: cid.DagProtobuf, MhType: multihash.SHA2_256, MhLength: -1},
		{Version: 0, Codec: cid.DagProtobuf, MhType: multihash.SHA2_256, MhLength: -1},
		{Version: 1, Codec: cid.Raw, MhType: multihash.SHA2_512, MhLength: -1},
	} {
		c, err := p.Sum(data)
		if err != nil {
			t.Fatal(err)
		}
		b, err := blockfmt.NewBlockWithCid(data, c)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Put(ctx, b); err != nil {
			t.Fatalf("put %s: %v", c, err)
		}
		// The store is keyed by hash: any codec over it finds the bytes.
		got, err := s.Get(ctx, cid.NewCidV1(cid.Raw, c.Hash()))
		if err != nil || !bytes.Equal(got.RawData(), data) {
			t.Errorf("get %s by its hash: %v", c, err)
		}
	}
}

func undefined(t *testing.T, s blockstore.Blockstore) {
	if ok, err := s.Has(context.Background(), cid.Undef); ok {
		t.Errorf("has = %v, %v", ok, err)
	}
	if _, err := s.Get(context.Background(), cid.Undef); err == nil {
		t.Error("get gave a block")
	}
}

func concurrent(t *testing.T, s blockstore.Blockstore) {
	ctx := context.Background()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 100 {
				b := content.NewBlock(body((i + w) % 100))
				if err := s.Put(ctx, b); err != nil {
					t.Errorf("put: %v", err)
					return
				}
				got, err := s.Get(ctx, b.Cid())
				if err != nil {
					t.Errorf("get: %v", err)
					return
				}
				if err := content.Verify(b.Cid(), got.RawData()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

package content_test

import (
	"errors"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/beammesh/beammesh/content"
)

func TestNames(t *testing.T) {
	b := content.NewBlock([]byte("hello"))
	c := b.Cid()
	if p := c.Prefix(); p.Version != 1 || p.Codec != cid.Raw || p.MhType != multihash.BLAKE3 || p.MhLength != 32 {
		t.Errorf("prefix = %+v", p)
	}
	// The hash of another implementation.
	other, err := cid.Prefix{Version: 1, Codec: cid.Raw, MhType: multihash.BLAKE3, MhLength: 32}.Sum([]byte("hello"))
	if err != nil || other != c {
		t.Errorf("another implementation says %s, %v; we say %s", other, err, c)
	}
	d, ok := content.DigestFrom(c)
	if !ok || d != content.DigestOf([]byte("hello")) || d.CID() != c {
		t.Errorf("digest of %s = %x, %v", c, d, ok)
	}
	if root, err := content.ParseRoot(c.String()); root != c || err != nil {
		t.Errorf("parse %s = %s, %v", c, root, err)
	}
}

func TestForeignNames(t *testing.T) {
	c, err := cid.Prefix{Version: 1, Codec: cid.DagProtobuf, MhType: multihash.SHA2_256, MhLength: 32}.Sum([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := content.DigestFrom(c); ok {
		t.Error("taken for one of ours")
	}
	for _, text := range []string{"", "bafy", c.String()} {
		if _, err := content.ParseRoot(text); err == nil {
			t.Errorf("root %q was taken", text)
		}
	}
}

func TestVerify(t *testing.T) {
	sha, err := cid.Prefix{Version: 0, Codec: cid.DagProtobuf, MhType: multihash.SHA2_256, MhLength: 32}.Sum([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []cid.Cid{content.DigestOf([]byte("x")).CID(), sha} {
		if err := content.Verify(c, []byte("x")); err != nil {
			t.Errorf("%s: %v", c, err)
		}
		if err := content.Verify(c, []byte("y")); !errors.Is(err, content.ErrCorrupt) {
			t.Errorf("%s: %v, want corrupt", c, err)
		}
	}
}

package tree

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/content/blockstest"
)

// encode stores entries without the checks of an import.
func encode(t testing.TB, store content.Blocks, entries []*Entry, change func(*rootBlock)) content.Root {
	t.Helper()
	ctx := context.Background()
	put := func(data []byte) (content.Digest, error) {
		b := content.NewBlock(data)
		d, _ := content.DigestFrom(b.Cid())
		return d, store.Put(ctx, b)
	}
	enc := encoder{put: put}
	for _, e := range entries {
		if err := enc.add(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := enc.cut(); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&enc.root)
	}
	d, err := put(enc.root.encode())
	if err != nil {
		t.Fatal(err)
	}
	return d.CID()
}

var top = &Entry{Kind: Dir, Mode: 0o755}

func TestHundredThousandFiles(t *testing.T) {
	store := &blockstest.Memory{}
	entries := []*Entry{top}
	for d := range 100 {
		dir := fmt.Sprintf("usr/lib/python3/dist-packages/package%02d", d)
		entries = append(entries, &Entry{Path: dir, Kind: Dir, Mode: 0o755})
		for f := range 1000 {
			name := fmt.Sprintf("%s/module_%04d.py", dir, f)
			entries = append(entries, &Entry{Path: name, Kind: File, Mode: 0o644, Size: 10, MTime: 1_700_000_000,
				Chunks: []content.Digest{content.DigestOf([]byte(name))}})
		}
	}
	for _, d := range []string{"usr", "usr/lib", "usr/lib/python3", "usr/lib/python3/dist-packages"} {
		entries = append(entries, &Entry{Path: d, Kind: Dir, Mode: 0o755})
	}
	slices.SortFunc(entries, func(a, b *Entry) int { return comparePaths(a.Path, b.Path) })
	root := encode(t, store, entries, nil)
	info, err := Stat(context.Background(), store, root)
	if err != nil || info.Files != 100_000 || info.Entries != 100_105 || info.Bytes != 1_000_000 {
		t.Fatalf("stat = %+v, %v", info, err)
	}
	i := 0
	err = Walk(context.Background(), store, root, func(e *Entry) error {
		if e.Path != entries[i].Path || e.Kind != entries[i].Kind || !slices.Equal(e.Chunks, entries[i].Chunks) {
			return fmt.Errorf("entry %d is %+v, want %+v", i, *e, *entries[i])
		}
		i++
		return nil
	})
	if err != nil || i != len(entries) {
		t.Fatalf("%d entries, %v", i, err)
	}
	if per := info.ManifestBytes / info.Files; per > 64 {
		t.Errorf("%d manifest bytes per file", per)
	}
	ch, err := store.AllKeysChan(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for c := range ch {
		if n, _ := store.GetSize(context.Background(), c); n > content.MaxBlock {
			t.Errorf("a block of %d bytes", n)
		}
	}
}

// A file whose digests fill several segments.
func TestHugeFile(t *testing.T) {
	store := &blockstest.Memory{}
	huge := &Entry{Path: "b", Kind: File, Mode: 0o600, Size: 30_000*content.ChunkSize - 1}
	for i := range 30_000 {
		huge.Chunks = append(huge.Chunks, content.DigestOf(binary.AppendUvarint(nil, uint64(i))))
	}
	want := []*Entry{top, {Path: "a", Kind: File}, huge, {Path: "c", Kind: Symlink, Target: "b", Mode: 0o777}}
	root := encode(t, store, want, nil)
	i := 0
	err := Walk(context.Background(), store, root, func(e *Entry) error {
		w := want[i]
		if i++; e.Path != w.Path || e.Size != w.Size || !slices.Equal(e.Chunks, w.Chunks) || e.Target != w.Target {
			t.Errorf("%q came with size %d, %d chunks", e.Path, e.Size, len(e.Chunks))
		}
		return nil
	})
	if err != nil || i != 4 {
		t.Errorf("%d entries, %v", i, err)
	}
	var n int64
	if err := Blocks(context.Background(), store, root, func(content.Digest, int64) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	if segments := int64(store.Len() - 1); segments < 4 || n != 30_000+segments+1 {
		t.Errorf("%d segments, %d blocks", segments, n)
	}
}

func TestComparePaths(t *testing.T) {
	sorted := []string{"", "a", "a/b", "a/b/c", "a/b.c", "a\x01", "a b", "a-b", "a.b", "a0", "ab"}
	for i, a := range sorted {
		for j, b := range sorted {
			if got := comparePaths(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("compare %q, %q = %d", a, b, got)
			}
		}
	}
}

func TestBadTreesAreRefused(t *testing.T) {
	d := content.DigestOf([]byte("x"))
	file := func(path string) *Entry {
		return &Entry{Path: path, Kind: File, Size: 1, Chunks: []content.Digest{d}}
	}
	dir := func(path string) *Entry { return &Entry{Path: path, Kind: Dir} }
	cases := map[string]struct {
		entries []*Entry
		change  func(*rootBlock)
		want    error
	}{
		"no top directory":         {entries: []*Entry{file("a")}, want: content.ErrMalformed},
		"no entry":                 {want: content.ErrMalformed},
		"two tops":                 {entries: []*Entry{top, top}, want: content.ErrUnsafe},
		"parent":                   {entries: []*Entry{top, file("../x")}, want: content.ErrUnsafe},
		"parent inside":            {entries: []*Entry{top, dir("a"), file("a/../../x")}, want: content.ErrUnsafe},
		"absolute":                 {entries: []*Entry{top, file("/etc/passwd")}, want: content.ErrUnsafe},
		"dot":                      {entries: []*Entry{top, file("./a")}, want: content.ErrUnsafe},
		"empty name":               {entries: []*Entry{top, dir("a"), file("a//b")}, want: content.ErrUnsafe},
		"slash at the end":         {entries: []*Entry{top, dir("a/")}, want: content.ErrUnsafe},
		"zero byte":                {entries: []*Entry{top, file("a\x00b")}, want: content.ErrUnsafe},
		"long name":                {entries: []*Entry{top, file(strings.Repeat("n", 256))}, want: content.ErrUnsafe},
		"below a link":             {entries: []*Entry{top, {Path: "l", Kind: Symlink, Target: "/"}, file("l/x")}, want: content.ErrUnsafe},
		"below a file":             {entries: []*Entry{top, file("f"), file("f/x")}, want: content.ErrUnsafe},
		"below nothing":            {entries: []*Entry{top, file("d/x")}, want: content.ErrUnsafe},
		"below a closed directory": {entries: []*Entry{top, dir("a"), file("b"), file("a/x")}, want: content.ErrMalformed},
		"out of order":             {entries: []*Entry{top, file("b"), file("a")}, want: content.ErrMalformed},
		"twice":                    {entries: []*Entry{top, file("a"), file("a")}, want: content.ErrMalformed},
		"hard link out":            {entries: []*Entry{top, {Path: "h", Kind: Hardlink, Target: "../x"}}, want: content.ErrUnsafe},
		"hard link absolute":       {entries: []*Entry{top, {Path: "h", Kind: Hardlink, Target: "/x"}}, want: content.ErrUnsafe},
		"hard link ahead":          {entries: []*Entry{top, {Path: "h", Kind: Hardlink, Target: "i"}}, want: content.ErrMalformed},
		"empty link":               {entries: []*Entry{top, {Path: "l", Kind: Symlink}}, want: content.ErrMalformed},
		"opaque file":              {entries: []*Entry{top, {Path: "f", Kind: File, Opaque: true}}, want: content.ErrMalformed},
		"mode":                     {entries: []*Entry{top, {Path: "f", Kind: File, Mode: 0o10000}}, want: content.ErrMalformed},
		"kind":                     {entries: []*Entry{top, {Path: "f", Kind: 6}}, want: content.ErrMalformed},
		"no kind":                  {entries: []*Entry{top, {Path: "f"}}, want: content.ErrMalformed},
		"too few chunks":           {entries: []*Entry{top, {Path: "f", Kind: File, Size: 1}}, want: content.ErrMalformed},
		"too many chunks":          {entries: []*Entry{top, {Path: "f", Kind: File, Size: 1, Chunks: []content.Digest{d, d}}}, want: content.ErrMalformed},
		"overlay's own attribute":  {entries: []*Entry{top, {Path: "f", Kind: File, Xattrs: []Xattr{{Name: "trusted.overlay.redirect"}}}}, want: content.ErrUnsafe},
		"user's overlay attribute": {entries: []*Entry{top, {Path: "d", Kind: Dir, Xattrs: []Xattr{{Name: "user.overlay.opaque"}}}}, want: content.ErrUnsafe},
		"attributes out of order":  {entries: []*Entry{top, {Path: "f", Kind: File, Xattrs: []Xattr{{Name: "user.b"}, {Name: "user.a"}}}}, want: content.ErrMalformed},
		"wrong bytes":              {entries: []*Entry{top, file("f")}, change: func(r *rootBlock) { r.bytes++ }, want: content.ErrMalformed},
		"wrong files":              {entries: []*Entry{top, file("f")}, change: func(r *rootBlock) { r.files-- }, want: content.ErrMalformed},
		"wrong entries":            {entries: []*Entry{top, file("f")}, change: func(r *rootBlock) { r.entries++ }, want: content.ErrMalformed},
		"wrong segment entries":    {entries: []*Entry{top, file("f")}, change: func(r *rootBlock) { r.entries++; r.segments[0].entries++ }, want: content.ErrMalformed},
		"wrong segment chunks":     {entries: []*Entry{top, file("f")}, change: func(r *rootBlock) { r.chunks++; r.segments[0].chunks++ }, want: content.ErrMalformed},
		"too many entries":         {entries: []*Entry{top}, change: func(r *rootBlock) { r.entries = MaxEntries + 1 }, want: content.ErrMalformed},
		"segment not here":         {entries: []*Entry{top}, change: func(r *rootBlock) { r.segments[0].digest[0]++ }, want: content.ErrNotFound},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			store := &blockstest.Memory{}
			root := encode(t, store, c.entries, c.change)
			err := Walk(context.Background(), store, root, func(*Entry) error { return nil })
			if !errors.Is(err, c.want) {
				t.Errorf("walk: %v, want %v", err, c.want)
			}
			dst := t.TempDir()
			if err := Checkout(context.Background(), store, root, dst, CheckoutOptions{KeepOwner: true}); err == nil {
				t.Error("checkout took it")
			}
		})
	}
	store := &blockstest.Memory{}
	if _, err := Stat(context.Background(), store, content.DigestOf([]byte("absent")).CID()); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("absent root: %v", err)
	}
	chunk := content.NewBlock([]byte("some file's bytes"))
	if err := store.Put(context.Background(), chunk); err != nil {
		t.Fatal(err)
	}
	if _, err := Stat(context.Background(), store, chunk.Cid()); !errors.Is(err, content.ErrMalformed) {
		t.Errorf("a chunk as root: %v", err)
	}
}

func richEntries() []*Entry {
	d := content.DigestOf([]byte("x"))
	return []*Entry{
		top,
		{Path: "bin", Kind: Dir, Mode: 0o755, Opaque: true, Xattrs: []Xattr{{"user.a", []byte("1")}, {"user.b", nil}}},
		{Path: "bin/ping", Kind: File, Mode: 0o4755, UID: 1, GID: 70000, MTime: -5, Size: content.ChunkSize + 1,
			Chunks: []content.Digest{d, d}, Xattrs: []Xattr{{"security.capability", []byte("cap")}}},
		{Path: "bin/pong", Kind: Hardlink, Target: "bin/ping"},
		{Path: "gone", Kind: Whiteout},
		{Path: "lib", Kind: Symlink, Mode: 0o777, Target: "usr/lib"},
	}
}

// What a decoder takes it gives back in the very same bytes: one tree has one
// encoding and one root.
func FuzzSegment(f *testing.F) {
	store := &blockstest.Memory{}
	for _, list := range [][]*Entry{richEntries(), {top}} {
		segs, err := Segments(context.Background(), store, encode(f, store, list, nil))
		if err != nil {
			f.Fatal(err)
		}
		b, err := store.Get(context.Background(), segs[0].CID())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b.RawData(), int64(len(list)), int64(2*(len(list)/3)))
	}
	f.Fuzz(func(t *testing.T, data []byte, entries, chunks int64) {
		if len(data) > content.MaxBlock {
			return
		}
		var again []byte
		enc := encoder{put: func(seg []byte) (content.Digest, error) {
			again = append(again, seg...)
			return content.Digest{}, nil
		}}
		var failed error
		dec := decoder{emit: func(e *Entry) error {
			if failed == nil {
				failed = enc.add(e)
			}
			return nil
		}}
		if err := dec.segment(data, segment{entries: entries, chunks: chunks}); err != nil || dec.open != nil {
			return
		}
		if failed == nil {
			failed = enc.cut()
		}
		if failed != nil {
			t.Fatal(failed)
		}
		// A segment of an odd length is legal, though we would cut it elsewhere.
		if len(enc.root.segments) == 1 && !bytes.Equal(again, data) {
			t.Fatalf("decoded\n%x\nencoded\n%x", data, again)
		}
	})
}

func FuzzRoot(f *testing.F) {
	store := &blockstest.Memory{}
	b, err := store.Get(context.Background(), encode(f, store, richEntries(), nil))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b.RawData())
	f.Add([]byte(rootMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := decodeRoot(data); err == nil && !bytes.Equal(r.encode(), data) {
			t.Fatalf("decoded\n%x\nencoded\n%x", data, r.encode())
		}
	})
}

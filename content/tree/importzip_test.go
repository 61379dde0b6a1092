package tree_test

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/content/blockstest"
	"github.com/beammesh/beammesh/content/tree"
	"github.com/beammesh/beammesh/proto/fault"
)

type zipFile struct {
	name, body string
	mode       fs.FileMode
}

func archive(t testing.TB, list ...zipFile) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, f := range list {
		h := &zip.FileHeader{Name: f.name, Method: zip.Deflate}
		if f.mode != 0 {
			h.SetMode(f.mode)
		}
		x, err := w.CreateHeader(h)
		must(t, err)
		_, err = x.Write([]byte(f.body))
		if len(f.body) > 0 {
			must(t, err)
		}
	}
	must(t, w.Close())
	return b.Bytes()
}

func importZip(store content.Blocks, data []byte, l tree.ZipLimits) (tree.Info, error) {
	return tree.ImportZip(ctx, store, bytes.NewReader(data), int64(len(data)), l)
}

func TestZipEqualsDirectory(t *testing.T) {
	store := &blockstest.Memory{}
	big := random(content.ChunkSize + 5)
	data := archive(t,
		zipFile{name: "app.py", body: "x = 1"},
		zipFile{name: "./pkg/data.bin", body: big, mode: 0o600},
		zipFile{name: "pkg/", mode: fs.ModeDir | 0o700},
		zipFile{name: "pkg/run.sh", body: "#!/bin/sh", mode: 0o700},
		zipFile{name: "pkg/up", body: "../app.py", mode: fs.ModeSymlink | 0o777},
		zipFile{name: "void/", mode: fs.ModeDir | 0o755},
	)
	info, err := importZip(store, data, tree.ZipLimits{})
	must(t, err)
	dir := files(t, map[string]string{
		"app.py": "x = 1", "pkg/data.bin": big, "pkg/run.sh": "#!/bin/sh", "pkg/up -> ../app.py": "", "void/": "",
	})
	must(t, os.Chmod(filepath.Join(dir, "pkg/run.sh"), 0o755))
	if same := importDir(t, store, dir, tree.ImportOptions{ContentOnly: true}); same.Root != info.Root {
		t.Error("the archive and the directory have different roots")
	}
	dst := t.TempDir()
	must(t, tree.Checkout(ctx, store, info.Root, dst, tree.CheckoutOptions{KeepOwner: true}))
	if got, err := os.ReadFile(filepath.Join(dst, "pkg/up")); string(got) != "x = 1" {
		t.Errorf("through the link: %q, %v", got, err)
	}
}

func TestEmptyZip(t *testing.T) {
	info, err := importZip(&blockstest.Memory{}, archive(t), tree.ZipLimits{})
	if err != nil || info.Entries != 1 || info.Files != 0 {
		t.Errorf("info = %+v, %v", info, err)
	}
}

func TestBadZips(t *testing.T) {
	link := fs.ModeSymlink | 0o777
	good := archive(t, zipFile{name: "a", body: strings.Repeat("text ", 100)})
	damaged := bytes.Clone(good)
	damaged[40] ^= 0xff
	crc := bytes.Clone(archive(t, zipFile{name: "a", body: random(1000)}))
	crc[500] ^= 1
	cases := map[string]struct {
		data   []byte
		limits tree.ZipLimits
		want   error
		code   fault.Code
		says   string
	}{
		"parent":              {data: archive(t, zipFile{name: "../x"}), want: content.ErrUnsafe, says: `"../x"`},
		"parent inside":       {data: archive(t, zipFile{name: "a/../../x"}), want: content.ErrUnsafe},
		"absolute":            {data: archive(t, zipFile{name: "/etc/passwd"}), want: content.ErrUnsafe},
		"zero byte":           {data: archive(t, zipFile{name: "a\x00b"}), want: content.ErrUnsafe},
		"twice":               {data: archive(t, zipFile{name: "a"}, zipFile{name: "./a"}), want: content.ErrUnsafe, says: "twice"},
		"file and folder":     {data: archive(t, zipFile{name: "a"}, zipFile{name: "a/b"}), want: content.ErrUnsafe},
		"folder and file":     {data: archive(t, zipFile{name: "a/b"}, zipFile{name: "a"}), want: content.ErrUnsafe},
		"device":              {data: archive(t, zipFile{name: "d", mode: fs.ModeDevice | 0o600}), want: content.ErrUnsafe},
		"link up":             {data: archive(t, zipFile{"l", "../x", link}), want: content.ErrUnsafe, says: "outside"},
		"link absolute":       {data: archive(t, zipFile{"l", "/etc", link}), want: content.ErrUnsafe},
		"link deep up":        {data: archive(t, zipFile{"a/b/l", "../../../x", link}), want: content.ErrUnsafe},
		"link over a link":    {data: archive(t, zipFile{"a/b/up", "../..", link}, zipFile{"l", "a/b/up/../x", link}), want: content.ErrUnsafe},
		"links in a circle":   {data: archive(t, zipFile{"a", "b", link}, zipFile{"b", "a", link}), want: content.ErrUnsafe},
		"file below a link":   {data: archive(t, zipFile{"l", "d", link}, zipFile{name: "d/x"}, zipFile{name: "l/y"}), want: content.ErrUnsafe},
		"link without target": {data: archive(t, zipFile{"l", "", link}), want: content.ErrUnsafe},
		"not a zip":           {data: []byte("hello"), want: content.ErrMalformed},
		"cut short":           {data: good[:len(good)-5], want: content.ErrMalformed},
		"damaged":             {data: damaged, want: content.ErrMalformed},
		"checksum":            {data: crc, want: content.ErrMalformed},
		"archive too large":   {data: good, limits: tree.ZipLimits{MaxArchive: 10}, want: content.ErrLimit, code: fault.TooLarge},
		"file too large":      {data: good, limits: tree.ZipLimits{MaxFile: 10}, want: content.ErrLimit, code: fault.TooLarge},
		"unpacks to too much": {data: good, limits: tree.ZipLimits{MaxBytes: 10}, want: content.ErrLimit, code: fault.TooLarge},
		"too many entries":    {data: archive(t, zipFile{name: "a"}, zipFile{name: "b"}), limits: tree.ZipLimits{MaxEntries: 1}, want: content.ErrLimit, code: fault.TooLarge},
		"too many folders":    {data: archive(t, zipFile{name: strings.Repeat("d/", 50) + "x"}), limits: tree.ZipLimits{MaxEntries: 1}, want: content.ErrLimit, code: fault.TooLarge},
		"zip bomb":            {data: archive(t, zipFile{name: "b", body: strings.Repeat("\x00", 80<<20)}), want: content.ErrLimit, code: fault.TooLarge},
		"lying about its size": {data: lying(archive(t, zipFile{name: "b", body: strings.Repeat("\x00", 80<<20)})),
			want: content.ErrMalformed},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			store := &blockstest.Memory{}
			_, err := importZip(store, c.data, c.limits)
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			var f *fault.Error
			if !errors.As(err, &f) {
				t.Fatalf("%v is no fault", err)
			}
			if c.code == "" {
				c.code = fault.Invalid
			}
			if f.Code != c.code || f.Hint == "" || !strings.Contains(f.Message, c.says) {
				t.Errorf("code %q, message %q, hint %q", f.Code, f.Message, f.Hint)
			}
			if n := len(store.Committed()); n != 0 {
				t.Errorf("%d trees committed", n)
			}
		})
	}
}

// lying sets every unpacked size in the archive's directory to 10.
func lying(data []byte) []byte {
	i := bytes.LastIndex(data, []byte("PK\x01\x02"))
	binary.LittleEndian.PutUint32(data[i+24:], 10)
	return data
}

// The count in the trailer is not believed: entries are counted as they come,
// and reading stops long before they fill the memory.
func TestZipDirectoryIsBounded(t *testing.T) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for i := range 60_000 {
		_, err := w.CreateHeader(&zip.FileHeader{Name: fmt.Sprintf("f%05d", i)})
		must(t, err)
	}
	must(t, w.Close())
	_, err := importZip(&blockstest.Memory{}, b.Bytes(), tree.ZipLimits{MaxEntries: 10})
	if !errors.Is(err, content.ErrLimit) || !strings.Contains(err.Error(), "far more") {
		t.Error(err)
	}
}

func FuzzZip(f *testing.F) {
	f.Add(archive(f, zipFile{name: "a/b", body: "x"}, zipFile{"l", "a/b", fs.ModeSymlink | 0o777}))
	f.Add(archive(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		store := &blockstest.Memory{}
		info, err := importZip(store, data, tree.ZipLimits{MaxBytes: 1 << 20, MaxEntries: 100})
		if err != nil {
			return
		}
		// Whatever was taken is a tree that a reader takes too.
		if err := tree.Walk(ctx, store, info.Root, func(*tree.Entry) error { return nil }); err != nil {
			t.Fatal(err)
		}
	})
}

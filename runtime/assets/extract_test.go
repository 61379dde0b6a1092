package assets

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/klauspost/compress/zstd"

	"github.com/beammesh/beammesh/proto/fault"
)

func pack(t testing.TB, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: 6, Mode: 0o600, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte("x = 1\n"))
	}
	w.Close()
	return b.Bytes()
}

// sources makes what build/assets would embed.
func sources(t testing.TB, edit func(m *Manifest, files map[string][]byte)) fs.FS {
	t.Helper()
	files := map[string][]byte{Runner: pack(t, "beam/__init__.py", "beam/_runner/main.py")}
	var m Manifest
	for _, n := range []string{Runc, Shim, Initd, NVML} {
		files[n] = []byte("#!/bin/sh\necho " + n + "\n")
	}
	for _, n := range []string{Runc, Shim, Initd, NVML, Runner} {
		sum := sha256.Sum256(files[n])
		m.Assets = append(m.Assets, Asset{Name: n, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(files[n])), Tar: n == Runner})
	}
	if edit != nil {
		edit(&m, files)
	}
	src := fstest.MapFS{}
	enc, _ := zstd.NewWriter(nil)
	for n, b := range files {
		src[n+".zst"] = &fstest.MapFile{Data: enc.EncodeAll(b, nil)}
	}
	j, _ := json.Marshal(m)
	src[ManifestName] = &fstest.MapFile{Data: j}
	return src
}

func entries(t testing.TB, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Name() != ".lock" {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestExtractConcurrentlyAndAgain(t *testing.T) {
	src, dir := sources(t, nil), filepath.Join(t.TempDir(), "a")
	left := filepath.Join(dir, tmpPrefix+"killed")
	if err := os.MkdirAll(filepath.Join(left, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	got := make([]Paths, 8)
	for i := range got {
		wg.Go(func() {
			p, err := extract(src, dir)
			if err != nil {
				t.Error(err)
			}
			got[i] = p
		})
	}
	wg.Wait()
	for _, p := range got[1:] {
		if p != got[0] {
			t.Errorf("got %+v and %+v", got[0], p)
		}
	}
	p := got[0]
	if l := entries(t, dir); len(l) != 1 || l[0] != filepath.Base(p.Root) {
		t.Errorf("folder holds %v", l)
	}
	for _, f := range []string{p.Runc, p.Shim, p.Initd, p.NVML} {
		fi, err := os.Stat(f)
		if err != nil || fi.Mode() != 0o755 {
			t.Errorf("%s: %v, %v", f, fi, err)
		}
	}
	b, err := os.ReadFile(filepath.Join(p.Runner, "beam/__init__.py"))
	if err != nil || string(b) != "x = 1\n" {
		t.Errorf("runner: %q, %v", b, err)
	}
	mark := filepath.Join(p.Root, "mark")
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := extract(src, dir); err != nil || again != p {
		t.Errorf("again: %+v, %v", again, err)
	}
	if _, err := os.Stat(mark); err != nil {
		t.Error("extracted a second time")
	}
	other := sources(t, func(m *Manifest, files map[string][]byte) {
		files[Initd] = []byte("other")
		sum := sha256.Sum256(files[Initd])
		m.Assets[2].SHA256, m.Assets[2].Size = hex.EncodeToString(sum[:]), 5
	})
	if p2, err := extract(other, dir); err != nil || p2.Root == p.Root || p2.RunnerHash != p.RunnerHash {
		t.Errorf("other content: %+v, %v", p2, err)
	}
}

func TestExtractRefuses(t *testing.T) {
	for name, edit := range map[string]func(m *Manifest, files map[string][]byte){
		"flipped":       func(m *Manifest, files map[string][]byte) { files[Runc][3] ^= 1 },
		"longer":        func(m *Manifest, files map[string][]byte) { files[Runc] = append(files[Runc], "more than said"...) },
		"missing asset": func(m *Manifest, files map[string][]byte) { m.Assets = m.Assets[1:] },
		"unknown asset": func(m *Manifest, files map[string][]byte) { m.Assets[0].Name = "../evil" },
		"not a tar":     func(m *Manifest, files map[string][]byte) { m.Assets[0].Tar = true },
		"leads out": func(m *Manifest, files map[string][]byte) {
			files[Runner] = pack(t, "beam/__init__.py", "../out")
			sum := sha256.Sum256(files[Runner])
			m.Assets[4].SHA256, m.Assets[4].Size = hex.EncodeToString(sum[:]), int64(len(files[Runner]))
		},
	} {
		dir := t.TempDir()
		if p, err := extract(sources(t, edit), dir); err == nil {
			t.Errorf("%s: extracted to %+v", name, p)
		}
		if l := entries(t, dir); len(l) != 0 {
			t.Errorf("%s: left %v", name, l)
		}
	}
}

func TestExtract(t *testing.T) {
	p, err := Extract(t.TempDir())
	if embedded == nil {
		if fault.CodeOf(err) != fault.Unsupported || !strings.Contains(fault.From(err).Hint, "make build") {
			t.Errorf("plain build: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"beam/__init__.py", "beta9/__init__.py", "cloudpickle/__init__.py", "beam/_runner/main.py"} {
		if _, err := os.Stat(filepath.Join(p.Runner, f)); errors.Is(err, fs.ErrNotExist) {
			t.Errorf("bundle lacks %s", f)
		}
	}
}

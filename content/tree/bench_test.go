package tree_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/beammesh/beammesh/content/blocks"
	"github.com/beammesh/beammesh/content/tree"
)

// benchSource looks like a Python root: many small files and some large ones.
func benchSource(b *testing.B) (dir string, bytes int64) {
	list := map[string]string{}
	add := func(name string, n int) {
		list[name] = random(n)
		bytes += int64(n)
	}
	for i := range 2000 {
		add(fmt.Sprintf("lib/p%02d/m%d.py", i%50, i), 500+i*7%16000)
	}
	for i := range 8 {
		add(fmt.Sprintf("lib/so%d", i), 4<<20)
	}
	return files(b, list), bytes
}

func benchStore(b *testing.B) *blocks.Store {
	s, err := blocks.Open(b.TempDir(), blocks.Options{})
	must(b, err)
	b.Cleanup(func() { s.Close() })
	return s
}

// BenchmarkCopy is the floor: the same tree copied file by file.
func BenchmarkCopy(b *testing.B) {
	src, n := benchSource(b)
	b.SetBytes(n)
	for b.Loop() {
		must(b, os.CopyFS(b.TempDir(), os.DirFS(src)))
	}
}

func BenchmarkImport(b *testing.B) {
	src, n := benchSource(b)
	b.SetBytes(n)
	for b.Loop() {
		importDir(b, benchStore(b), src, tree.ImportOptions{})
	}
}

// BenchmarkImportAgain finds every block in the store.
func BenchmarkImportAgain(b *testing.B) {
	src, n := benchSource(b)
	s := benchStore(b)
	importDir(b, s, src, tree.ImportOptions{})
	b.SetBytes(n)
	for b.Loop() {
		importDir(b, s, src, tree.ImportOptions{})
	}
}

func BenchmarkCheckout(b *testing.B) {
	src, n := benchSource(b)
	s := benchStore(b)
	info := importDir(b, s, src, tree.ImportOptions{})
	b.SetBytes(n)
	for b.Loop() {
		must(b, tree.Checkout(ctx, s, info.Root, b.TempDir(), tree.CheckoutOptions{KeepOwner: true}))
	}
}

// BenchmarkReadBlocks reads and verifies, without writing.
func BenchmarkReadBlocks(b *testing.B) {
	src, n := benchSource(b)
	s := benchStore(b)
	info := importDir(b, s, src, tree.ImportOptions{})
	b.SetBytes(n)
	for b.Loop() {
		_, err := s.Scrub(ctx)
		must(b, err)
	}
	_ = info
}

// BenchmarkReadFiles is the floor of BenchmarkReadBlocks.
func BenchmarkReadFiles(b *testing.B) {
	src, n := benchSource(b)
	b.SetBytes(n)
	for b.Loop() {
		must(b, filepath.WalkDir(src, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(io.Discard, f)
			return err
		}))
	}
}

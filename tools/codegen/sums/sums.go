// Package sums keeps the digests of schemas and of the code generated from
// them in one text file, so that a test can tell, without protoc, that one of
// the two was changed without the other.
package sums

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// FileName is the file of digests inside the schema folder.
const FileName = "generated.sum"

// ErrStale is wrapped by Check's answer when files and digests differ.
var ErrStale = errors.New("generated code and schemas differ: run `make generate`")

// Schemas gives the paths of all .proto files below dir, relative to it and
// sorted, the form in which protoc registers them.
func Schemas(dir string) ([]string, error) {
	return find(dir, func(name string) bool { return strings.HasSuffix(name, ".proto") })
}

// generated recognises the files that protoc's two plugins write.
func generated(name string) bool {
	return strings.HasSuffix(name, ".pb.go") || strings.HasSuffix(name, ".connect.go")
}

// RemoveGenerated deletes what earlier runs wrote, so that the code of a
// schema that is gone goes too.
func RemoveGenerated(dir string) error {
	files, err := find(dir, generated)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.Remove(filepath.Join(dir, f)); err != nil {
			return err
		}
	}
	return nil
}

// Write records the present state of dir.
func Write(dir string) error {
	text, err := list(dir)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, FileName), []byte(text), 0o644)
}

// Check compares dir with what Write recorded and names the files that differ.
func Check(dir string) error {
	want, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil {
		return err
	}
	got, err := list(dir)
	if err != nil {
		return err
	}
	if got == string(want) {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrStale, strings.Join(differing(string(want), got), ", "))
}

// list has one line "<sha256>  <path>" per schema and generated file.
func list(dir string) (string, error) {
	files, err := find(dir, func(name string) bool {
		return strings.HasSuffix(name, ".proto") || generated(name)
	})
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%x  %s\n", sha256.Sum256(data), f)
	}
	return b.String(), nil
}

// differing gives the paths whose line stands in only one of the two texts.
func differing(a, b string) []string {
	seen := map[string]int{}
	for _, l := range strings.Split(a, "\n") {
		seen[l]++
	}
	for _, l := range strings.Split(b, "\n") {
		seen[l]--
	}
	paths := map[string]bool{}
	for l, n := range seen {
		if _, path, ok := strings.Cut(l, "  "); ok && n != 0 {
			paths[path] = true
		}
	}
	out := make([]string, 0, len(paths))
	for p := range paths {
		out = append(out, p)
	}
	sort.Strings(out)
	return out
}

func find(dir string, want func(name string) bool) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !want(d.Name()) {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		out = append(out, filepath.ToSlash(rel))
		return err
	})
	sort.Strings(out)
	return out, err
}

package build

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// maxKept bounds the keys that a DirCache remembers, 100 bytes each. The ones
// written longest ago go first, half of them at a time.
const maxKept = 8192

var _ Cache = DirCache{}

// DirCache is a Cache with one small file per key.
type DirCache struct {
	Dir string // made when missing
	// Has reports whether the layer's blocks are still there or can be
	// fetched; a key whose layer is gone does not count.
	Has func(ctx context.Context, root string) (bool, error)
}

// Get looks a key up.
func (c DirCache) Get(ctx context.Context, key string) (string, bool, error) {
	path, err := c.path(key)
	if err != nil {
		return "", false, err
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) == 0 { // empty: a power cut came between
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("build cache: %w", err)
	}
	ok, err := c.Has(ctx, string(b))
	return string(b), ok, err
}

// Put remembers a key.
func (c DirCache) Put(_ context.Context, key, root string) error {
	path, err := c.path(key)
	if err != nil {
		return err
	}
	err = os.MkdirAll(c.Dir, 0o755)
	if err == nil {
		// Written whole or not at all. Losing it costs a build, so no sync.
		tmp := path + ".part"
		if err = os.WriteFile(tmp, []byte(root), 0o600); err == nil {
			err = os.Rename(tmp, path)
		}
	}
	if err == nil {
		err = c.shrink()
	}
	if err != nil {
		return fmt.Errorf("build cache: %w", err)
	}
	return nil
}

func (c DirCache) path(key string) (string, error) {
	if _, err := hex.DecodeString(key); err != nil || len(key) != 64 {
		return "", fmt.Errorf("build cache: %q is no key", key)
	}
	return filepath.Join(c.Dir, key), nil
}

func (c DirCache) shrink() error {
	list, err := os.ReadDir(c.Dir)
	if err != nil || len(list) <= maxKept {
		return err
	}
	type file struct {
		name string
		at   int64
	}
	files := make([]file, 0, len(list))
	for _, e := range list {
		if fi, err := e.Info(); err == nil {
			files = append(files, file{e.Name(), fi.ModTime().UnixNano()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return int(min(1, max(-1, a.at-b.at))) })
	for _, f := range files[:len(files)/2] {
		if err := os.Remove(filepath.Join(c.Dir, f.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

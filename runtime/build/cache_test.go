package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDirCache(t *testing.T) {
	ctx, has := t.Context(), true
	c := DirCache{Dir: filepath.Join(t.TempDir(), "new"), Has: func(context.Context, string) (bool, error) { return has, nil }}
	key := hash("", "x")
	if _, ok, err := c.Get(ctx, key); ok || err != nil {
		t.Errorf("empty cache: %v, %v", ok, err)
	}
	if err := c.Put(ctx, key, "root"); err != nil {
		t.Fatal(err)
	}
	if root, ok, err := c.Get(ctx, key); root != "root" || !ok || err != nil {
		t.Errorf("got %q, %v, %v", root, ok, err)
	}
	has = false
	if _, ok, _ := c.Get(ctx, key); ok {
		t.Error("its layer is gone and it counts")
	}
	for _, bad := range []string{"", "../x", strings.Repeat("z", 64)} {
		if err := c.Put(ctx, bad, "root"); err == nil {
			t.Errorf("took key %q", bad)
		}
	}
	if err := os.WriteFile(filepath.Join(c.Dir, hash("", "cut")), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := c.Get(ctx, hash("", "cut")); ok || err != nil {
		t.Errorf("file of a power cut: %v, %v", ok, err)
	}
}

func TestDirCacheIsBounded(t *testing.T) {
	c := DirCache{Dir: t.TempDir(), Has: func(context.Context, string) (bool, error) { return true, nil }}
	old := time.Now().Add(-time.Hour)
	for i := range maxKept {
		f := filepath.Join(c.Dir, fmt.Sprintf("%064x", i))
		if err := os.WriteFile(f, []byte("r"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(f, old, old); err != nil {
			t.Fatal(err)
		}
	}
	key := hash("", "newest")
	if err := c.Put(t.Context(), key, "root"); err != nil {
		t.Fatal(err)
	}
	list, _ := os.ReadDir(c.Dir)
	if _, ok, _ := c.Get(t.Context(), key); !ok || len(list) > maxKept {
		t.Errorf("%d keys, newest there: %v", len(list), ok)
	}
}

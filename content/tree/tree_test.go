package tree_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/content/blocks"
	"github.com/beammesh/beammesh/content/blockstest"
	"github.com/beammesh/beammesh/content/tree"
)

var ctx = context.Background()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// files makes a directory: "name/" is a folder, "name -> target" a link.
func files(t testing.TB, list map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	fill(t, dir, list)
	return dir
}

func fill(t testing.TB, dir string, list map[string]string) {
	t.Helper()
	for name, data := range list {
		link, target, isLink := strings.Cut(name, " -> ")
		path := filepath.Join(dir, link)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		switch {
		case isLink:
			must(t, os.Symlink(target, path))
		case strings.HasSuffix(name, "/"):
			must(t, os.MkdirAll(path, 0o755))
		default:
			must(t, os.WriteFile(path, []byte(data), 0o644))
		}
	}
}

func importDir(t testing.TB, store content.Blocks, dir string, o tree.ImportOptions) tree.Info {
	t.Helper()
	info, err := tree.ImportDir(ctx, store, dir, o)
	must(t, err)
	return info
}

// shape tells all that a tree keeps of a directory, one line per path.
func shape(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	inodes := map[uint64]string{}
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		must(t, err)
		rel, _ := filepath.Rel(dir, path)
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		fmt.Fprintf(&b, "%s %o %d:%d %d", rel, st.Mode, st.Uid, st.Gid, st.Mtim.Sec)
		switch {
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			must(t, err)
			fmt.Fprintf(&b, " -> %s", target)
		case d.Type().IsRegular():
			data, err := os.ReadFile(path)
			must(t, err)
			fmt.Fprintf(&b, " %x", content.DigestOf(data))
			if st.Nlink > 1 {
				if inodes[st.Ino] == "" {
					inodes[st.Ino] = rel
				}
				fmt.Fprintf(&b, " =%s", inodes[st.Ino])
			}
		}
		names := make([]byte, 4096)
		if n, err := unix.Llistxattr(path, names); err == nil {
			for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
				if name != "" {
					v := make([]byte, 4096)
					n, err := unix.Lgetxattr(path, name, v)
					must(t, err)
					fmt.Fprintf(&b, " %s=%q", name, v[:n])
				}
			}
		}
		b.WriteByte('\n')
		return nil
	}))
	return b.String()
}

func random(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return string(b)
}

// needRoot skips where ownership cannot be tested.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func richDir(t testing.TB) string {
	dir := files(t, map[string]string{
		"empty": "", "one": "x", "edge": random(content.ChunkSize), "edge1": random(content.ChunkSize + 1),
		"large": random(5*content.ChunkSize + 77), "zeros": strings.Repeat("\x00", 3*content.ChunkSize),
		"a/b/c/deep": "deep", "a-b": "sorts between a and a/b", "a.b/x": "x", "void/": "",
		"link -> a/b": "", "a/dangling -> ../../../nowhere": "", "abs -> /etc/passwd": "",
		"run.sh": "#!/bin/sh\n", "a/odd name\n\xff": "any bytes",
	})
	must(t, os.Chmod(filepath.Join(dir, "run.sh"), 0o4755))
	must(t, os.Chmod(filepath.Join(dir, "void"), 0o1777))
	must(t, os.Link(filepath.Join(dir, "one"), filepath.Join(dir, "void", "same")))
	must(t, os.Link(filepath.Join(dir, "one"), filepath.Join(dir, "zz")))
	old := time.Unix(1_000_000_000, 0)
	for _, name := range []string{"one", "run.sh", "a/b/c", "a/b", "void", "."} {
		must(t, os.Chtimes(filepath.Join(dir, name), old, old))
	}
	must(t, os.Chtimes(filepath.Join(dir, "empty"), old, time.Unix(-86400, 0)))
	return dir
}

func TestRoundTrip(t *testing.T) {
	needRoot(t)
	src := richDir(t)
	must(t, os.Chown(filepath.Join(src, "large"), 1234, 4321))
	must(t, os.Lchown(filepath.Join(src, "link"), 5, 6))
	must(t, unix.Setxattr(filepath.Join(src, "run.sh"), "user.note", []byte("kept"), 0))
	capability := []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	must(t, unix.Setxattr(filepath.Join(src, "a-b"), "security.capability", capability, 0))

	disk, err := blocks.Open(t.TempDir(), blocks.Options{})
	must(t, err)
	defer disk.Close()
	for name, store := range map[string]content.Blocks{"disk": disk, "memory": &blockstest.Memory{}} {
		t.Run(name, func(t *testing.T) {
			info := importDir(t, store, src, tree.ImportOptions{})
			dst := t.TempDir()
			var last, total atomic.Int64
			must(t, tree.Checkout(ctx, store, info.Root, dst, tree.CheckoutOptions{
				Sync:     true,
				Progress: func(done, all int64) { last.Store(max(last.Load(), done)); total.Store(all) },
			}))
			if got, want := shape(t, dst), shape(t, src); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
			if last.Load() != info.Bytes || total.Load() != info.Bytes {
				t.Errorf("progress ended at %d of %d, want %d", last.Load(), total.Load(), info.Bytes)
			}
			stat, err := tree.Stat(ctx, store, info.Root)
			must(t, err)
			if stat.Bytes != info.Bytes || stat.Files != info.Files || stat.Entries != info.Entries ||
				stat.Chunks != info.Chunks || stat.ManifestBytes != info.ManifestBytes {
				t.Errorf("stat %+v, import said %+v", stat, info)
			}
			if info.Files != 11 || len(info.Notes) != 0 {
				t.Errorf("info = %+v", info)
			}
			// A second checkout over the first changes nothing.
			must(t, tree.Checkout(ctx, store, info.Root, dst, tree.CheckoutOptions{}))
			if got, want := shape(t, dst), shape(t, src); got != want {
				t.Errorf("after a second checkout:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestEqualTreesHaveEqualRoots(t *testing.T) {
	list := map[string]string{"a/x.py": "x = 1", "b/y": random(content.ChunkSize * 2), "s -> a": "", "e/": ""}
	store := &blockstest.Memory{}
	one, two := files(t, list), files(t, list)
	old := time.Unix(77, 0)
	must(t, os.Chtimes(filepath.Join(two, "a/x.py"), old, old))
	must(t, os.Chmod(filepath.Join(two, "a/x.py"), 0o600))
	must(t, os.Link(filepath.Join(two, "b/y"), filepath.Join(two, "hard")))
	must(t, os.WriteFile(filepath.Join(one, "hard"), []byte(list["b/y"]), 0o644))
	o := tree.ImportOptions{ContentOnly: true}
	a, b := importDir(t, store, one, o), importDir(t, &blockstest.Memory{}, two, o)
	if a.Root != b.Root {
		t.Error("equal content, different roots")
	}
	must(t, os.WriteFile(filepath.Join(two, "a/x.py"), []byte("x = 2"), 0o644))
	if c := importDir(t, store, two, o); c.Root == a.Root {
		t.Error("different content, equal roots")
	}
	if got := store.Committed(); !slices.Equal(got[:1], []content.Root{a.Root}) {
		t.Errorf("committed %v", got)
	}
}

func TestSiblingsShareBlocks(t *testing.T) {
	list := map[string]string{}
	for i := range 3000 {
		list[fmt.Sprintf("lib/%03d/module%d.py", i%97, i)] = fmt.Sprint("value = ", i)
	}
	store := &blockstest.Memory{}
	dir := files(t, list)
	first := importDir(t, store, dir, tree.ImportOptions{ContentOnly: true})
	before := store.Len()
	fill(t, dir, map[string]string{"lib/050/new.py": "new"})
	second := importDir(t, store, dir, tree.ImportOptions{ContentOnly: true})
	// One chunk, the segment around it and the root block.
	if added := store.Len() - before; added > 4 {
		t.Errorf("one new file made %d new blocks", added)
	}
	if first.Root == second.Root {
		t.Error("equal roots")
	}
}

func TestLayersOfAnOverlay(t *testing.T) {
	needRoot(t)
	base, work := t.TempDir(), t.TempDir()
	lower := files(t, map[string]string{
		"etc/keep": "k", "etc/gone": "g", "replaced/a": "a", "replaced/b": "b", "deleted/x": "x",
		"file-to-dir": "f", "dir-to-file/x": "x", "edit": "old", "swap -> etc": "", "moded/x": "x",
	})
	upper := filepath.Join(work, "upper")
	merged := func(t *testing.T, upper string, lower ...string) string {
		t.Helper()
		w, m := t.TempDir(), t.TempDir()
		must(t, os.MkdirAll(upper, 0o755))
		opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(lower, ":"), upper, w)
		if err := unix.Mount("overlay", m, "overlay", 0, opts); err != nil {
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EPERM) {
				t.Skipf("no overlay on this file system: %v", err)
			}
			t.Fatal(err)
		}
		t.Cleanup(func() { must(t, unix.Unmount(m, 0)) })
		return m
	}
	m := merged(t, upper, lower)
	in := func(name string) string { return filepath.Join(m, name) }
	must(t, os.Remove(in("etc/gone")))
	must(t, os.RemoveAll(in("deleted")))
	must(t, os.RemoveAll(in("replaced")))
	must(t, os.Remove(in("file-to-dir")))
	must(t, os.RemoveAll(in("dir-to-file")))
	must(t, os.Remove(in("swap")))
	fill(t, m, map[string]string{
		"replaced/c": "only this", "file-to-dir/y": "y", "dir-to-file": "now a file",
		"edit": "new", "swap/z": "z", "fresh/f": "f",
	})
	must(t, os.Chmod(in("moded"), 0o700))
	want := shape(t, m)

	store := &blockstest.Memory{}
	l0 := importDir(t, store, lower, tree.ImportOptions{})
	l1 := importDir(t, store, upper, tree.ImportOptions{})
	var seen []string
	must(t, tree.Walk(ctx, store, l1.Root, func(e *tree.Entry) error {
		if e.Kind == tree.Whiteout || e.Opaque {
			seen = append(seen, fmt.Sprint(e.Kind, e.Path))
		}
		return nil
	}))
	if len(seen) != 5 {
		t.Errorf("whiteouts and opaque directories: %q", seen)
	}

	check := func(t *testing.T, dir string) {
		t.Helper()
		if got := shape(t, dir); got != want {
			t.Errorf("got:\n%s\nwant:\n%s", got, want)
		}
	}
	t.Run("one above the other in a plain directory", func(t *testing.T) {
		must(t, tree.Checkout(ctx, store, l0.Root, base, tree.CheckoutOptions{}))
		must(t, tree.Checkout(ctx, store, l1.Root, base, tree.CheckoutOptions{}))
		check(t, base)
	})
	t.Run("on a mounted overlay", func(t *testing.T) {
		upper2 := filepath.Join(t.TempDir(), "upper")
		m2 := merged(t, upper2, lower)
		must(t, tree.Checkout(ctx, store, l1.Root, m2, tree.CheckoutOptions{}))
		check(t, m2)
		again := importDir(t, &blockstest.Memory{}, upper2, tree.ImportOptions{})
		m3 := merged(t, filepath.Join(t.TempDir(), "upper"), lower)
		if again.Bytes != l1.Bytes {
			t.Errorf("the layer grew from %d to %d bytes", l1.Bytes, again.Bytes)
		}
		must(t, tree.Checkout(ctx, store, l1.Root, m3, tree.CheckoutOptions{}))
		check(t, m3)
	})
}

func TestCheckoutPrefix(t *testing.T) {
	store := &blockstest.Memory{}
	info := importDir(t, store, files(t, map[string]string{"main.py": "1"}), tree.ImportOptions{ContentOnly: true})
	dst := files(t, map[string]string{"mnt/other": "stays", "trap -> ..": ""})
	o := tree.CheckoutOptions{KeepOwner: true, Prefix: "mnt/code/x"}
	must(t, tree.Checkout(ctx, store, info.Root, dst, o))
	for name, want := range map[string]string{"mnt/code/x/main.py": "1", "mnt/other": "stays"} {
		if got, err := os.ReadFile(filepath.Join(dst, name)); string(got) != want {
			t.Errorf("%s = %q, %v", name, got, err)
		}
	}
	for _, prefix := range []string{"..", "../x", "/abs", "trap/x", "mnt/../../x"} {
		o.Prefix = prefix
		if err := tree.Checkout(ctx, store, info.Root, dst, o); !errors.Is(err, content.ErrUnsafe) {
			t.Errorf("prefix %q: %v, want unsafe", prefix, err)
		}
	}
}

// A link in the target directory, left by a lower layer, is replaced and never
// followed.
func TestCheckoutFollowsNoLink(t *testing.T) {
	store := &blockstest.Memory{}
	info := importDir(t, store, files(t, map[string]string{"dir/file": "new", "plain": "new", "l -> x": ""}), tree.ImportOptions{ContentOnly: true})
	outside := files(t, map[string]string{"file": "mine", "plain": "mine"})
	dst := t.TempDir()
	must(t, os.Symlink(outside, filepath.Join(dst, "dir")))
	must(t, os.Symlink(filepath.Join(outside, "plain"), filepath.Join(dst, "plain")))
	must(t, os.Symlink(outside, filepath.Join(dst, "l")))
	must(t, tree.Checkout(ctx, store, info.Root, dst, tree.CheckoutOptions{KeepOwner: true}))
	for _, name := range []string{"file", "plain"} {
		if got, _ := os.ReadFile(filepath.Join(outside, name)); string(got) != "mine" {
			t.Errorf("%s outside was changed to %q", name, got)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dst, "dir/file")); string(got) != "new" {
		t.Errorf("dir/file = %q, %v", got, err)
	}
}

func TestSpecialFiles(t *testing.T) {
	dir := files(t, map[string]string{"a": "a"})
	must(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	store := &blockstest.Memory{}
	info := importDir(t, store, dir, tree.ImportOptions{})
	if info.Entries != 2 || len(info.Notes) != 1 || info.Notes[0].Path != "pipe" {
		t.Errorf("info = %+v", info)
	}
	if _, err := tree.ImportDir(ctx, store, dir, tree.ImportOptions{RefuseSpecial: true}); !errors.Is(err, content.ErrUnsafe) {
		t.Errorf("refused: %v", err)
	}
}

func TestImportLimitsAndSkip(t *testing.T) {
	dir := files(t, map[string]string{"a": "12345", "b": "12345", ".git/x": "x", "c/d": ""})
	store := &blockstest.Memory{}
	if _, err := tree.ImportDir(ctx, store, dir, tree.ImportOptions{MaxBytes: 9}); !errors.Is(err, content.ErrLimit) {
		t.Errorf("bytes: %v", err)
	}
	if _, err := tree.ImportDir(ctx, store, dir, tree.ImportOptions{MaxEntries: 3}); !errors.Is(err, content.ErrLimit) {
		t.Errorf("entries: %v", err)
	}
	info := importDir(t, store, dir, tree.ImportOptions{Skip: func(p string, dir bool) bool { return p == ".git" && dir }})
	if info.Files != 3 {
		t.Errorf("%d files", info.Files)
	}
	if _, err := tree.ImportDir(ctx, store, filepath.Join(dir, "none"), tree.ImportOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func TestIDs(t *testing.T) {
	needRoot(t)
	dir := files(t, map[string]string{"f": "f"})
	must(t, os.Chown(filepath.Join(dir, "f"), 100_033, 100_044))
	must(t, os.Chown(dir, 100_000, 100_000))
	shift := func(by int64) func(u, g uint32) (uint32, uint32, error) {
		return func(u, g uint32) (uint32, uint32, error) {
			return uint32(int64(u) + by), uint32(int64(g) + by), nil
		}
	}
	store := &blockstest.Memory{}
	info := importDir(t, store, dir, tree.ImportOptions{IDs: shift(-100_000)})
	dst := t.TempDir()
	must(t, tree.Checkout(ctx, store, info.Root, dst, tree.CheckoutOptions{IDs: shift(7)}))
	var st unix.Stat_t
	must(t, unix.Lstat(filepath.Join(dst, "f"), &st))
	if st.Uid != 40 || st.Gid != 51 {
		t.Errorf("owner %d:%d", st.Uid, st.Gid)
	}
	bad := errors.New("id outside of the map")
	_, err := tree.ImportDir(ctx, store, dir, tree.ImportOptions{IDs: func(uint32, uint32) (uint32, uint32, error) { return 0, 0, bad }})
	if !errors.Is(err, bad) {
		t.Errorf("import: %v", err)
	}
}

func TestMissingAndReadFile(t *testing.T) {
	store := &blockstest.Memory{}
	big := random(3 * content.ChunkSize)
	info := importDir(t, store, files(t, map[string]string{"d/big": big, "d/again": big, "small": "s"}), tree.ImportOptions{})
	got, err := tree.ReadFile(ctx, store, info.Root, "d/big", 1<<20)
	if err != nil || string(got) != big {
		t.Errorf("read: %d bytes, %v", len(got), err)
	}
	if _, err := tree.ReadFile(ctx, store, info.Root, "d/big", 10); !errors.Is(err, content.ErrLimit) {
		t.Errorf("above the limit: %v", err)
	}
	for _, name := range []string{"d", "none"} {
		if _, err := tree.ReadFile(ctx, store, info.Root, name, 10); !errors.Is(err, content.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if l, err := tree.Missing(ctx, store, info.Root); err != nil || !l.Complete() {
		t.Errorf("missing = %+v, %v", l, err)
	}
	c := content.DigestOf([]byte(big[:content.ChunkSize])).CID()
	must(t, store.DeleteBlock(ctx, c))
	if l, err := tree.Missing(ctx, store, info.Root); err != nil || l != (tree.Lack{Blocks: 1, Bytes: content.ChunkSize}) {
		t.Errorf("missing = %+v, %v", l, err)
	}
	if err := tree.Checkout(ctx, store, info.Root, t.TempDir(), tree.CheckoutOptions{KeepOwner: true}); !errors.Is(err, content.ErrNotFound) {
		t.Errorf("checkout without a chunk: %v", err)
	}
	segments, err := tree.Segments(ctx, store, info.Root)
	must(t, err)
	must(t, store.DeleteBlock(ctx, segments[0].CID()))
	for _, want := range []int64{1, 1} {
		if l, err := tree.Missing(ctx, store, info.Root); err != nil || !l.Manifest || l.Blocks != want {
			t.Errorf("missing = %+v, %v", l, err)
		}
		must(t, store.DeleteBlock(ctx, info.Root))
	}
}

func TestFaultyStores(t *testing.T) {
	src := files(t, map[string]string{"a": random(20 * content.ChunkSize)})
	mem := &blockstest.Memory{}
	full := &blockstest.Faulty{Blockstore: mem, FullAfter: 10 * content.ChunkSize}
	if _, err := tree.ImportDir(ctx, full, src, tree.ImportOptions{}); !errors.Is(err, content.ErrDiskFull) {
		t.Errorf("import to a full disk: %v", err)
	}
	info := importDir(t, mem, src, tree.ImportOptions{})
	for name, c := range map[string]struct {
		store *blockstest.Faulty
		want  error
	}{
		"bit flips":    {&blockstest.Faulty{Blockstore: mem, FlipEvery: 10}, content.ErrCorrupt},
		"short reads":  {&blockstest.Faulty{Blockstore: mem, ShortEvery: 10}, content.ErrCorrupt},
		"failed reads": {&blockstest.Faulty{Blockstore: mem, FailEvery: 10}, blockstest.ErrFault},
	} {
		t.Run(name, func(t *testing.T) {
			dst := t.TempDir()
			err := tree.Checkout(ctx, c.store, info.Root, dst, tree.CheckoutOptions{KeepOwner: true})
			if !errors.Is(err, c.want) {
				t.Errorf("checkout: %v, want %v", err, c.want)
			}
			if list, _ := os.ReadDir(dst); len(list) != 0 {
				t.Errorf("left %v", list)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	store := &blockstest.Memory{}
	src := files(t, map[string]string{"a": random(4 * content.ChunkSize), "b/c": "x"})
	info := importDir(t, store, src, tree.ImportOptions{})
	dead, cancel := context.WithCancelCause(ctx)
	why := errors.New("no more interest")
	cancel(why)
	if _, err := tree.ImportDir(dead, store, src, tree.ImportOptions{}); !errors.Is(err, why) {
		t.Errorf("import: %v", err)
	}
	if err := tree.Checkout(dead, store, info.Root, t.TempDir(), tree.CheckoutOptions{KeepOwner: true}); !errors.Is(err, why) {
		t.Errorf("checkout: %v", err)
	}
	// In the middle: the file that was being written is not there.
	dst := t.TempDir()
	mid, stop := context.WithCancelCause(ctx)
	err := tree.Checkout(mid, store, info.Root, dst, tree.CheckoutOptions{KeepOwner: true,
		Progress: func(done, _ int64) {
			if done > content.ChunkSize {
				stop(why)
			}
		}})
	if !errors.Is(err, why) {
		t.Errorf("checkout: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dst, "a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a file is left: %v", err)
	}
}

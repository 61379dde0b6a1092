package objects

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/content/blockstest"
	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/ledger/ledgertest"
	"github.com/beammesh/beammesh/proto/fault"
)

func newObjects(t *testing.T) *Objects {
	t.Helper()
	l := ledgertest.NewFake(nil)
	t.Cleanup(func() { _ = l.Close() })
	if _, err := l.Propose(t.Context(), ledger.PutWorkspace{ID: "ws", Name: "ws"}); err != nil {
		t.Fatal(err)
	}
	return &Objects{Blocks: &blockstest.Memory{}, Ledger: l, Dir: t.TempDir()}
}

type entry struct {
	name, body string
	mode       fs.FileMode
}

func archive(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate}
		h.SetMode(e.mode | 0o644)
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func hash(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func TestPutAndFind(t *testing.T) {
	o := newObjects(t)
	a := archive(t, entry{name: "app.py", body: "print(1)"})
	if _, err := o.Find(t.Context(), "ws", hash(a)); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("before it is there: %v", err)
	}
	obj, err := o.Put(t.Context(), "ws", hash(a), bytes.NewReader(a))
	if err != nil {
		t.Fatal(err)
	}
	got, err := o.Find(t.Context(), "ws", hash(a))
	if err != nil || got.Root != obj.Root || got.Size != 8 {
		t.Errorf("%+v, %v; put %+v", got, err, obj)
	}
	if again, err := o.Put(t.Context(), "ws", hash(a), bytes.NewReader(a)); err != nil || again.Root != obj.Root {
		t.Errorf("again: %+v, %v", again, err)
	}
	// The same files in another archive are the same tree.
	b := archive(t, entry{name: "app.py", body: "print(1)", mode: 0o600})
	if hash(a) != hash(b) {
		if other, err := o.Put(t.Context(), "ws", hash(b), bytes.NewReader(b)); err != nil || other.Root != obj.Root {
			t.Errorf("another archive: %+v, %v", other, err)
		}
	}
	if _, err := o.Find(t.Context(), "another", hash(a)); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("another workspace: %v", err)
	}
	if left, err := os.ReadDir(o.Dir); err != nil || len(left) != 0 {
		t.Errorf("%d uploads are left, %v", len(left), err)
	}
}

func TestRefused(t *testing.T) {
	o := newObjects(t)
	plain := archive(t, entry{name: "app.py", body: "x"})
	for _, c := range []struct {
		name string
		hash string
		body io.Reader
		want fault.Code
	}{
		{"wrong hash", hash([]byte("other")), bytes.NewReader(plain), fault.Invalid},
		{"no hash", "x", bytes.NewReader(plain), fault.Invalid},
		{"hash that is a path", "../../" + strings.Repeat("a", 58), bytes.NewReader(plain), fault.Invalid},
		{"upper case hash", strings.ToUpper(hash(plain)), bytes.NewReader(plain), fault.Invalid},
		{"cut short", hash(plain), bytes.NewReader(plain[:len(plain)-1]), fault.Invalid},
		{"dots", "", bytes.NewReader(archive(t, entry{name: "../evil.py"})), fault.Invalid},
		{"dots inside", "", bytes.NewReader(archive(t, entry{name: "a/../../evil.py"})), fault.Invalid},
		{"absolute", "", bytes.NewReader(archive(t, entry{name: "/etc/passwd"})), fault.Invalid},
		{"link out", "", bytes.NewReader(archive(t, entry{name: "l", body: "../../etc/passwd", mode: fs.ModeSymlink})), fault.Invalid},
		{"absolute link", "", bytes.NewReader(archive(t, entry{name: "l", body: "/etc/passwd", mode: fs.ModeSymlink})), fault.Invalid},
		{"not a zip", "", strings.NewReader("hello"), fault.Invalid},
		{"empty", "", strings.NewReader(""), fault.Invalid},
		{"bomb", "", bytes.NewReader(archive(t, entry{name: "zeros", body: strings.Repeat("\x00", 80<<20)})), fault.TooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.hash == "" {
				b, err := io.ReadAll(c.body)
				if err != nil {
					t.Fatal(err)
				}
				c.hash, c.body = hash(b), bytes.NewReader(b)
			}
			_, err := o.Put(t.Context(), "ws", c.hash, c.body)
			if fault.CodeOf(err) != c.want {
				t.Errorf("%v, want %s", err, c.want)
			}
			if _, err := o.Find(t.Context(), "ws", c.hash); err == nil {
				t.Error("it is registered all the same")
			}
			if left, err := os.ReadDir(o.Dir); err != nil || len(left) != 0 {
				t.Errorf("%d uploads are left, %v", len(left), err)
			}
		})
	}
	// A reader that breaks off is its own error.
	broken := errors.New("connection lost")
	if _, err := o.Put(t.Context(), "ws", hash(plain), io.MultiReader(bytes.NewReader(plain[:5]), &failing{broken})); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// An archive above the bound is refused when the bound is reached, not when it ends.
func TestEndlessUpload(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 1 GiB")
	}
	o := newObjects(t)
	z := &zeros{}
	_, err := o.Put(t.Context(), "ws", hash(nil), z)
	if fault.CodeOf(err) != fault.TooLarge {
		t.Errorf("got %v", err)
	}
	if z.n > MaxArchive+1<<20 {
		t.Errorf("%d bytes were read", z.n)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

type zeros struct{ n int64 }

func (z *zeros) Read(b []byte) (int, error) { z.n += int64(len(b)); return len(b), nil }

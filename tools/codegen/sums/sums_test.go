package sums

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The repository's own schemas and generated code belong together.
func TestRepositoryIsGenerated(t *testing.T) {
	if err := Check("../../../proto"); err != nil {
		t.Fatal(err)
	}
}

func TestCheckNoticesEachKindOfChange(t *testing.T) {
	files := map[string]string{"a/a.proto": "schema", "a/a.pb.go": "code", "a/hand.go": "by hand"}
	changes := []struct {
		name   string
		change func(dir string) error
		names  string // the file the error has to name; "" = no error
	}{
		{"nothing", func(string) error { return nil }, ""},
		{"hand-written file", func(d string) error { return os.WriteFile(filepath.Join(d, "a/hand.go"), []byte("x"), 0o600) }, ""},
		{"schema edited", func(d string) error { return os.WriteFile(filepath.Join(d, "a/a.proto"), []byte("x"), 0o600) }, "a/a.proto"},
		{"code edited", func(d string) error { return os.WriteFile(filepath.Join(d, "a/a.pb.go"), []byte("x"), 0o600) }, "a/a.pb.go"},
		{"schema added", func(d string) error { return os.WriteFile(filepath.Join(d, "a/b.proto"), []byte("x"), 0o600) }, "a/b.proto"},
		{"code removed", RemoveGenerated, "a/a.pb.go"},
	}
	for _, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for f, text := range files {
				if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(f)), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, f), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := Write(dir); err != nil {
				t.Fatal(err)
			}
			if err := c.change(dir); err != nil {
				t.Fatal(err)
			}
			err := Check(dir)
			if c.names == "" {
				if err != nil {
					t.Fatalf("got %v, want no error", err)
				}
				return
			}
			if !errors.Is(err, ErrStale) || !strings.Contains(err.Error(), c.names) {
				t.Fatalf("got %v, want ErrStale naming %s", err, c.names)
			}
		})
	}
}

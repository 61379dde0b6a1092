package containerd

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/beammesh/beammesh/runtime"
)

func TestDiff(t *testing.T) {
	e := newEngine(t, nil)
	tg := target(e)
	c := start(t, e, runtime.Spec{ID: "changes"})
	if err := e.Diff(context.Background(), "changes", func(dir string) error {
		var left []string
		err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
			if p != dir {
				left = append(left, p)
			}
			return err
		})
		if len(left) != 0 {
			t.Errorf("changes of a container in which nothing ran: %v", left)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"write", "/etc/new", "x"}, {"remove", "/etc/passwd"}, {"mkdir", "/srv/a"}, {"chown", "/srv/a", "33"}} {
		if o := tg.Do(t, c, args...); o.Code != 0 {
			t.Fatalf("%v: %+v", args, o)
		}
	}
	var seen []string
	if err := e.Diff(context.Background(), "changes", func(dir string) error {
		return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || p == dir {
				return err
			}
			fi, err := d.Info()
			if err != nil {
				return err
			}
			uid, _, _ := owner(fi)
			what := ""
			if st := fi.Sys().(*syscall.Stat_t); st.Mode&syscall.S_IFMT == syscall.S_IFCHR && st.Rdev == 0 {
				what = " removed" // whoever owns the mark
			} else if uid == 33 {
				what += " of 33"
			} else if uid != 0 {
				what += " of a stranger"
			}
			seen = append(seen, strings.TrimPrefix(p, dir)+what)
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"/etc", "/etc/new", "/etc/passwd removed", "/srv", "/srv/a of 33"}; !slices.Equal(seen, want) {
		t.Errorf("changes %q\nwant %q", seen, want)
	}
	if err := e.Diff(context.Background(), "nobody", nil); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("unknown container: %v, want ErrNotFound", err)
	}
}

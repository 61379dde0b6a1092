package tree

import (
	"fmt"
	"strings"

	"github.com/beammesh/beammesh/content"
)

// checker keeps the rules that make a list of entries a tree.
type checker struct {
	started      bool
	prev         string
	dirs         []string // the open directories, top first
	files, bytes int64
}

func (c *checker) entry(e *Entry) error {
	if !c.started {
		if e.Path != "" || e.Kind != Dir || e.Opaque {
			return malformed("the first entry %q is not the top directory", e.Path)
		}
		c.started, c.dirs = true, []string{""}
		return checkXattrs(e)
	}
	if err := CheckPath(e.Path); err != nil {
		return err
	}
	if comparePaths(c.prev, e.Path) >= 0 {
		return malformed("%q stands after %q", e.Path, c.prev)
	}
	c.prev = e.Path
	parent, _ := splitPath(e.Path)
	for len(c.dirs) > 0 && c.dirs[len(c.dirs)-1] != parent {
		c.dirs = c.dirs[:len(c.dirs)-1]
	}
	if len(c.dirs) == 0 {
		return fmt.Errorf("%q: %q is no directory of the tree: %w", e.Path, parent, content.ErrUnsafe)
	}
	switch e.Kind {
	case Dir:
		c.dirs = append(c.dirs, e.Path)
	case File:
		c.files++
		c.bytes += e.Size
	case Symlink:
		if e.Target == "" || strings.IndexByte(e.Target, 0) >= 0 {
			return malformed("%q: link to %q", e.Path, e.Target)
		}
	case Hardlink:
		if err := CheckPath(e.Target); err != nil {
			return err
		}
		if comparePaths(e.Target, e.Path) >= 0 {
			return malformed("%q: linked to %q, which is not before it", e.Path, e.Target)
		}
	}
	if e.Opaque && e.Kind != Dir {
		return malformed("%q: opaque, but no directory", e.Path)
	}
	return checkXattrs(e)
}

func checkXattrs(e *Entry) error {
	if len(e.Xattrs) > 0 && e.Kind != File && e.Kind != Dir {
		return malformed("%q: attributes on this kind", e.Path)
	}
	for i, a := range e.Xattrs {
		if !keepXattr(a.Name) {
			return fmt.Errorf("%q: attribute %q may not be set: %w", e.Path, a.Name, content.ErrUnsafe)
		}
		if i > 0 && e.Xattrs[i-1].Name >= a.Name {
			return malformed("%q: attributes out of order", e.Path)
		}
	}
	return nil
}

// keepXattr tells which extended attributes are part of a tree: capabilities,
// access lists and the user's own, but none of overlay's.
func keepXattr(name string) bool {
	switch {
	case strings.IndexByte(name, 0) >= 0, strings.HasPrefix(name, "user.overlay."):
		return false
	case name == "security.capability", name == "system.posix_acl_access", name == "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.") && len(name) > len("user.")
}

// CheckPath gives an error that is content.ErrUnsafe unless path is clean,
// relative, below the top and within the limits.
func CheckPath(path string) error {
	if path == "" || len(path) > MaxPath || strings.IndexByte(path, 0) >= 0 {
		return fmt.Errorf("path %.100q: %w", path, content.ErrUnsafe)
	}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." || name == ".." || len(name) > MaxName {
			return fmt.Errorf("path %.100q: %w", path, content.ErrUnsafe)
		}
	}
	return nil
}

// splitPath gives the parent ("" for the top) and the last name.
func splitPath(path string) (parent, name string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}

// comparePaths orders paths depth first: "/" is below every other byte.
func comparePaths(a, b string) int {
	n := commonPrefix(a, b)
	rank := func(s string) int {
		switch {
		case n == len(s):
			return 0
		case s[n] == '/':
			return 1
		}
		return 2 + int(s[n])
	}
	return rank(a) - rank(b)
}

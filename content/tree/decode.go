package tree

import (
	"fmt"

	"github.com/beammesh/beammesh/content"
)

// decoder reads segments in order and gives checked entries.
type decoder struct {
	emit  func(*Entry) error
	check checker

	open *Entry // a File whose digests go on in the next segment
	e    Entry  // reused
}

// segment decodes one segment, which must have the counts that the root says.
func (d *decoder) segment(data []byte, want segment) error {
	r := &reader{b: data}
	r.magic(segMagic)
	var entries, chunks int64
	prev, first := "", true
	for len(r.b) > 0 && r.err == nil {
		flags := r.bytes("flags", 1)[0]
		if d.open != nil || flags == kindMore {
			if d.open == nil || flags != kindMore || !first {
				return malformed("digests go on in the wrong place")
			}
			n, err := d.digests(r, d.open)
			if err != nil {
				return err
			}
			chunks += n
			first = false
			if d.open == nil {
				if err := d.emit(&d.e); err != nil {
					return err
				}
			}
			continue
		}
		first = false
		path, err := r.path(prev)
		if err != nil {
			return err
		}
		d.e = Entry{Path: path, Chunks: d.e.Chunks[:0], Xattrs: d.e.Xattrs[:0]}
		prev = path
		entries++
		n, err := d.record(r, flags)
		if err != nil {
			return err
		}
		chunks += n
		if err := d.check.entry(&d.e); err != nil {
			return err
		}
		if d.open == nil {
			if err := d.emit(&d.e); err != nil {
				return err
			}
		}
	}
	if r.err != nil {
		return r.err
	}
	if entries != want.entries || chunks != want.chunks {
		return malformed("segment has %d entries and %d chunks, its root says %d and %d",
			entries, chunks, want.entries, want.chunks)
	}
	return nil
}

func (r *reader) path(prev string) (string, error) {
	shared := int(r.number("path", MaxPath))
	rest := r.text("path", MaxPath)
	if r.err != nil {
		return "", r.err
	}
	if shared > len(prev) || shared+len(rest) > MaxPath {
		return "", malformed("path after %q", prev)
	}
	path := prev[:shared] + string(rest)
	if commonPrefix(prev, path) != shared {
		return "", malformed("path %q is not in its shortest form", path)
	}
	return path, nil
}

// record decodes what follows the path and returns the number of digests read.
func (d *decoder) record(r *reader, flags byte) (chunks int64, err error) {
	e := &d.e
	e.Kind = Kind(flags & kindMask)
	e.Opaque = flags&flagOpaque != 0
	if flags&^(kindMask|flagOpaque|flagXattrs) != 0 || e.Kind < File || e.Kind > Whiteout {
		return 0, malformed("%q: flags %#x", e.Path, flags)
	}
	switch e.Kind {
	case File, Dir, Symlink:
		e.Mode = uint32(r.number("mode", 0o7777))
		e.UID = uint32(r.number("owner", 1<<32-1))
		e.GID = uint32(r.number("group", 1<<32-1))
		zig := r.number("mtime", 1<<64-1)
		e.MTime = int64(zig>>1) ^ -int64(zig&1)
	}
	if flags&flagXattrs != 0 {
		r.xattrs(e)
	}
	switch e.Kind {
	case File:
		e.Size = int64(r.number("size", maxTreeBytes))
		if r.err == nil {
			chunks, err = d.digests(r, e)
		}
	case Symlink, Hardlink:
		e.Target = string(r.text("target", MaxPath))
	}
	if r.err != nil {
		return 0, fmt.Errorf("%q: %w", e.Path, r.err)
	}
	return chunks, err
}

func (r *reader) xattrs(e *Entry) {
	n := r.number("attributes", 64)
	left := MaxXattrs
	for range n {
		name := string(r.text("attribute name", 255))
		value := r.text("attribute value", max(left-len(name), 0))
		left -= len(name) + len(value)
		e.Xattrs = append(e.Xattrs, Xattr{name, value})
	}
	if n == 0 {
		r.fail("attributes")
	}
}

// digests reads one record's digests of e and sets open when more must follow.
func (d *decoder) digests(r *reader, e *Entry) (int64, error) {
	n := r.number("digests", maxRecord)
	want := chunkCount(e.Size) - int64(len(e.Chunks))
	more := n < uint64(want)
	raw := r.bytes("digests", int(n)*len(content.Digest{}))
	switch {
	case r.err != nil:
		return 0, fmt.Errorf("%q: %w", e.Path, r.err)
	case n > uint64(want), more && n != maxRecord, more && len(r.b) > 0:
		return 0, malformed("%q: %d digests where %d are to come", e.Path, n, want)
	}
	for ; len(raw) > 0; raw = raw[len(content.Digest{}):] {
		e.Chunks = append(e.Chunks, content.Digest(raw))
	}
	d.open = nil
	if more {
		d.open = e
	}
	return int64(n), nil
}

// end checks what only the whole tree shows.
func (d *decoder) end(t *rootBlock) error {
	switch {
	case d.open != nil:
		return malformed("%q ends too early", d.open.Path)
	case d.check.files != t.files || d.check.bytes != t.bytes:
		return malformed("%d files of %d bytes, the root says %d of %d",
			d.check.files, d.check.bytes, t.files, t.bytes)
	}
	return nil
}

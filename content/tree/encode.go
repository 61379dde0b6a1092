package tree

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"

	"github.com/beammesh/beammesh/content"
)

// encoder cuts entries into segments; put stores each.
type encoder struct {
	put  func(seg []byte) (content.Digest, error)
	root rootBlock

	buf             []byte
	prev            string
	entries, chunks int64
}

func (e *encoder) add(x *Entry) error {
	if e.buf == nil {
		e.start()
	}
	flags := byte(x.Kind)
	if x.Opaque {
		flags |= flagOpaque
	}
	if len(x.Xattrs) > 0 {
		flags |= flagXattrs
	}
	shared := commonPrefix(e.prev, x.Path)
	e.buf = append(e.buf, flags)
	e.num(uint64(shared))
	e.text(x.Path[shared:])
	e.prev = x.Path
	e.entries++

	switch x.Kind {
	case File, Dir, Symlink:
		e.num(uint64(x.Mode))
		e.num(uint64(x.UID))
		e.num(uint64(x.GID))
		e.buf = binary.AppendVarint(e.buf, x.MTime)
	}
	if flags&flagXattrs != 0 {
		// Before the digests, which may go on in the next segment.
		e.num(uint64(len(x.Xattrs)))
		for _, a := range x.Xattrs {
			e.text(a.Name)
			e.text(string(a.Value))
		}
	}
	switch x.Kind {
	case File:
		e.root.files++
		e.root.bytes += x.Size
		e.num(uint64(x.Size))
		rest := e.digests(x.Chunks)
		for len(rest) > 0 {
			if err := e.cut(); err != nil {
				return err
			}
			e.start()
			e.buf = append(e.buf, kindMore)
			rest = e.digests(rest)
		}
	case Symlink, Hardlink:
		e.text(x.Target)
	}
	if len(e.buf) >= segMax || (len(e.buf) >= segMin && boundary(x.Path)) {
		return e.cut()
	}
	return nil
}

func (e *encoder) start() {
	e.buf = append(make([]byte, 0, segMin), segMagic...)
	e.prev = ""
}

func (e *encoder) num(n uint64)  { e.buf = binary.AppendUvarint(e.buf, n) }
func (e *encoder) text(s string) { e.num(uint64(len(s))); e.buf = append(e.buf, s...) }

// digests writes one record's worth and returns the rest.
func (e *encoder) digests(list []content.Digest) []content.Digest {
	n := min(len(list), maxRecord)
	e.num(uint64(n))
	for _, d := range list[:n] {
		e.buf = append(e.buf, d[:]...)
	}
	e.chunks += int64(n)
	return list[n:]
}

func (e *encoder) cut() error {
	if e.buf == nil {
		return nil
	}
	if len(e.root.segments) == maxSegments {
		return fmt.Errorf("manifest of more than %d segments: %w", maxSegments, content.ErrLimit)
	}
	d, err := e.put(e.buf)
	if err != nil {
		return err
	}
	e.root.segments = append(e.root.segments, segment{d, int64(len(e.buf)), e.entries, e.chunks})
	e.root.entries += e.entries
	e.root.chunks += e.chunks
	e.buf, e.entries, e.chunks = nil, 0, 0
	return nil
}

func boundary(path string) bool {
	h := fnv.New32a()
	io.WriteString(h, path)
	return h.Sum32()&segMask == 0
}

func commonPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

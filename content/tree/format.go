package tree

import (
	"encoding/binary"
	"fmt"

	"github.com/beammesh/beammesh/content"
)

// The format. Numbers are unsigned varints (mtime: zigzag), digests are 32
// bytes of BLAKE3, text is its length and its bytes.
//
//	root block:    "BMtree1\n" bytes files entries chunks
//	               segments { digest size entries chunks }...
//	segment block: "BMsegm1\n" record...
//	record:        flags                 kind, plus flagOpaque, flagXattrs
//	               shared text           path: bytes kept of the record before, then the rest
//	   File, Dir, Symlink:  mode uid gid mtime
//	   flagXattrs:          count { text text }...  name, value
//	   File:                size n digest...   n < all only at a segment's end
//	   Symlink, Hardlink:   text         target
//	   kindMore:            n digest...  instead of all else: first in a segment,
//	                                     goes on with the File before it
//
// Entries stand in depth-first order: "/" sorts below every other byte. The
// first is the top directory with path "". A segment ends after an entry whose
// path hashes to a boundary, so that sibling trees share segments.
const (
	rootMagic = "BMtree1\n"
	segMagic  = "BMsegm1\n"

	kindMask   = 0x07
	kindMore   = 0x07
	flagOpaque = 0x08
	flagXattrs = 0x10

	segMin    = 64 << 10  // no boundary before this many bytes
	segMax    = 512 << 10 // a boundary after the entry that reaches it
	segMask   = 0x1ff     // one path in 512 is a boundary
	maxRecord = 8192      // digests in one record: 256 KiB
)

type segment struct {
	digest          content.Digest
	size            int64
	entries, chunks int64
}

type rootBlock struct {
	bytes, files, entries, chunks int64
	segments                      []segment
}

func (r *rootBlock) encode() []byte {
	b := []byte(rootMagic)
	for _, n := range []int64{r.bytes, r.files, r.entries, r.chunks, int64(len(r.segments))} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	for _, s := range r.segments {
		b = append(b, s.digest[:]...)
		for _, n := range []int64{s.size, s.entries, s.chunks} {
			b = binary.AppendUvarint(b, uint64(n))
		}
	}
	return b
}

func malformed(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, content.ErrMalformed)...)
}

// reader decodes with one error at the end: after a failure all values are zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = malformed("%s", what)
	}
	r.b = nil
}

// number reads a varint of at most limit. Only the shortest form is taken, so
// that a tree has one encoding.
func (r *reader) number(what string, limit uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > limit || (n > 1 && r.b[n-1] == 0) {
		r.fail(what)
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes(what string, n int) []byte {
	if n > len(r.b) {
		r.fail(what)
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) text(what string, limit int) []byte {
	return r.bytes(what, int(r.number(what, uint64(limit))))
}

func (r *reader) digest(what string) (d content.Digest) {
	copy(d[:], r.bytes(what, len(d)))
	return d
}

func (r *reader) magic(m string) {
	if string(r.bytes("magic", len(m))) != m {
		r.fail("magic")
	}
}

const maxTreeBytes = MaxChunks * content.ChunkSize

func decodeRoot(data []byte) (*rootBlock, error) {
	r := &reader{b: data}
	r.magic(rootMagic)
	t := &rootBlock{
		bytes:   int64(r.number("bytes", maxTreeBytes)),
		files:   int64(r.number("files", MaxEntries)),
		entries: int64(r.number("entries", MaxEntries)),
		chunks:  int64(r.number("chunks", MaxChunks)),
	}
	n := r.number("segments", maxSegments)
	if n > uint64(len(r.b)) {
		r.fail("segments")
		n = 0
	}
	t.segments = make([]segment, 0, n)
	var entries, chunks int64
	for range n {
		s := segment{
			digest:  r.digest("segment"),
			size:    int64(r.number("segment size", content.MaxBlock)),
			entries: int64(r.number("segment entries", MaxEntries)),
			chunks:  int64(r.number("segment chunks", MaxChunks)),
		}
		entries, chunks = entries+s.entries, chunks+s.chunks
		t.segments = append(t.segments, s)
	}
	switch {
	case r.err != nil:
		return nil, r.err
	case len(r.b) > 0:
		return nil, malformed("%d bytes after the root block", len(r.b))
	case entries != t.entries || chunks != t.chunks:
		return nil, malformed("the segments' counts do not add up")
	case t.entries < 1:
		return nil, malformed("no top directory")
	}
	return t, nil
}

package exchange

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/beammesh/beammesh/content"
)

// FuzzFrames reads frames as either side does: whatever comes, no panic, no
// body above its limit, and what was taken is what would be sent.
func FuzzFrames(f *testing.F) {
	d := content.DigestOf([]byte("x"))
	f.Add(appendNumber(nil, frameOpen, 1<<20))
	f.Add(appendWant(nil, want{id: 7, priority: 1, root: d, digests: []content.Digest{d, d}}))
	f.Add(append(appendAnswer(appendNumber(nil, frameCredit, 9), frameBlock, 1, 2, 3), "abc"...))
	f.Add(appendRefuse(appendAnswer(nil, frameLack, 1, 2, 0), "busy"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		var buf, again []byte
		for {
			kind, n, err := readHeader(r)
			if err != nil {
				break
			}
			if n > blockHead+content.MaxBlock {
				t.Fatalf("frame of %d bytes was taken", n)
			}
			if buf, err = readBody(r, n, buf); err != nil {
				break
			}
			switch kind {
			case frameWant:
				w, err := decodeWant(buf)
				if err != nil {
					return
				}
				if len(w.digests) < 1 || len(w.digests) > maxWant {
					t.Fatalf("want of %d digests", len(w.digests))
				}
				again = appendWant(again, w)
			case frameBlock, frameLack:
				id, index, body := decodeAnswer(buf)
				again = append(appendAnswer(again, kind, id, index, len(body)), body...)
			case frameRefuse:
				again = appendRefuse(again, string(buf))
			default:
				again = append(appendHeader(again, kind, n), buf...)
			}
		}
		if !bytes.HasPrefix(data, again) {
			t.Fatalf("read\n%x\nwould send\n%x", data, again)
		}
	})
}

func TestBadHeaders(t *testing.T) {
	for name, h := range map[string][]byte{
		"type 0":            {0, 0, 0, 0, 0},
		"unknown type":      {7, 0, 0, 0, 0},
		"huge block":        {frameBlock, 0xff, 0xff, 0xff, 0xff},
		"block above limit": {frameBlock, 0, 0x10, 0, blockHead + 1},
		"want without any":  {frameWant, 0, 0, 0, wantHead},
		"short credit":      {frameCredit, 0, 0, 0, 3},
	} {
		if _, _, err := readHeader(bytes.NewReader(h)); !errors.Is(err, errProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := readHeader(bytes.NewReader([]byte{1, 0})); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut short: %v", err)
	}
	if _, err := decodeWant(make([]byte, wantHead+33)); !errors.Is(err, errProtocol) {
		t.Errorf("want of an odd length: %v", err)
	}
}

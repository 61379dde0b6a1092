package exchange

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/beammesh/beammesh/content"
)

// The wire of protocol blocks/1. Numbers are big-endian. A frame is
//
//	type u8 · length of the body u32 · body
//
// and the bodies are
//
//	asker → holder
//	  1 open     window u32                       first frame; block bytes that may be on their way
//	  2 want     id u32 · priority u8 · root 32 · digest 32 ...  1 to 512 digests; higher priority first
//	  3 credit   bytes u32                        so many block bytes were dealt with
//	holder → asker
//	  4 block    id u32 · index u16 · bytes       the index-th digest of want id
//	  5 lack     id u32 · index u16               it is not here
//	  6 refuse   text                             last frame: why the stream ends
//
// Each wanted digest is answered exactly once, by block or lack, in any order.
// A holder keeps at most maxQueued unanswered digests per stream and ends the
// stream of who asks for more. Digests are BLAKE3; blocks have at most 1 MiB.
const (
	frameOpen   = 1
	frameWant   = 2
	frameCredit = 3
	frameBlock  = 4
	frameLack   = 5
	frameRefuse = 6

	headerLen  = 5
	blockHead  = 6
	wantHead   = 4 + 1 + 32
	maxWant    = 512  // digests in one want
	maxQueued  = 2048 // unanswered digests on a stream
	maxRefuse  = 512  // bytes of text
	minWindow  = content.MaxBlock
	hashLength = len(content.Digest{})
)

// errProtocol is what a peer that breaks the rules gets.
var errProtocol = errors.New("block stream: protocol error")

func protocolError(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errProtocol}, args...)...)
}

// bodyLimit gives the shortest and longest body of each frame.
func bodyLimit(kind byte) (lo, hi int) {
	switch kind {
	case frameOpen, frameCredit:
		return 4, 4
	case frameWant:
		return wantHead + hashLength, wantHead + maxWant*hashLength
	case frameBlock:
		return blockHead, blockHead + content.MaxBlock
	case frameLack:
		return blockHead, blockHead
	case frameRefuse:
		return 0, maxRefuse
	}
	return 0, -1
}

// readHeader reads a frame's type and body length and checks both.
func readHeader(r io.Reader) (kind byte, n int, err error) {
	var h [headerLen]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, 0, err
	}
	size := binary.BigEndian.Uint32(h[1:])
	lo, hi := bodyLimit(h[0])
	if hi < 0 {
		return 0, 0, protocolError("frame type %d", h[0])
	}
	if int64(size) < int64(lo) || int64(size) > int64(hi) {
		return 0, 0, protocolError("frame type %d of %d bytes", h[0], size)
	}
	return h[0], int(size), nil
}

// readBody reads n bytes into buf[:0], growing it when it is too small.
func readBody(r io.Reader, n int, buf []byte) ([]byte, error) {
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return buf, nil
}

func appendHeader(b []byte, kind byte, n int) []byte {
	b = append(b, kind)
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

func appendNumber(b []byte, kind byte, v uint32) []byte {
	return binary.BigEndian.AppendUint32(appendHeader(b, kind, 4), v)
}

// want is a decoded want frame.
type want struct {
	id       uint32
	priority uint8
	root     content.Digest
	digests  []content.Digest
}

func appendWant(b []byte, w want) []byte {
	b = appendHeader(b, frameWant, wantHead+len(w.digests)*hashLength)
	b = binary.BigEndian.AppendUint32(b, w.id)
	b = append(b, w.priority)
	b = append(b, w.root[:]...)
	for _, d := range w.digests {
		b = append(b, d[:]...)
	}
	return b
}

func decodeWant(body []byte) (want, error) {
	if (len(body)-wantHead)%hashLength != 0 {
		return want{}, protocolError("want of %d bytes", len(body))
	}
	w := want{id: binary.BigEndian.Uint32(body), priority: body[4], root: content.Digest(body[5:])}
	for list := body[wantHead:]; len(list) > 0; list = list[hashLength:] {
		w.digests = append(w.digests, content.Digest(list))
	}
	return w, nil
}

// appendAnswer makes the head of a block frame with n bytes to follow, or a
// lack frame.
func appendAnswer(b []byte, kind byte, id uint32, index, n int) []byte {
	b = appendHeader(b, kind, blockHead+n)
	b = binary.BigEndian.AppendUint32(b, id)
	return binary.BigEndian.AppendUint16(b, uint16(index))
}

func decodeAnswer(body []byte) (id uint32, index int, data []byte) {
	return binary.BigEndian.Uint32(body), int(binary.BigEndian.Uint16(body[4:])), body[blockHead:]
}

func appendRefuse(b []byte, text string) []byte {
	text = text[:min(len(text), maxRefuse)]
	return append(appendHeader(b, frameRefuse, len(text)), text...)
}

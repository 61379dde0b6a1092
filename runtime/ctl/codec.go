package ctl

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
)

// Bounds of the protocol. Both sides enforce them.
const (
	MaxHeader = 64 << 10
	MaxBody   = 1 << 20 // an Exec's arguments and environment; others stay at Fragment
	// Fragment is the largest body of an Output or Frame message. The size of
	// a full pipe, so one read is one message.
	Fragment = 64 << 10
	// Window bounds the unacknowledged bytes per process and direction. Four
	// full pipes hide the acknowledgement's way; init stays within its 8 MiB
	// with 30 processes that all stand still.
	Window = 256 << 10
	// Overhead is what a message costs beside its body, so that empty
	// messages are bounded too.
	Overhead = 64
	// MaxProcs bounds the processes that init runs at a time.
	MaxProcs = 1024
)

// Cost is what a message with a body of n bytes takes of a Window.
func Cost(n int) int { return Overhead + n }

// ErrProtocol is wrapped by every complaint about the other side's bytes.
var ErrProtocol = errors.New("ctl protocol error")

// Write writes one message. The caller serialises writers.
func Write(w io.Writer, m *Message, body []byte) error {
	h, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s: %w", m.Type, err)
	}
	if len(h) > MaxHeader || len(body) > MaxBody {
		return fmt.Errorf("encode %s: header %d, body %d bytes: above the limit", m.Type, len(h), len(body))
	}
	head := make([]byte, 8, 8+len(h))
	binary.BigEndian.PutUint32(head, uint32(len(h)))
	binary.BigEndian.PutUint32(head[4:], uint32(len(body)))
	bufs := net.Buffers{append(head, h...)}
	if len(body) > 0 {
		bufs = append(bufs, body)
	}
	_, err = bufs.WriteTo(w) // one writev on a socket
	return err
}

// Reader reads messages from one connection. Not safe for concurrent use.
type Reader struct {
	r   *bufio.Reader
	buf []byte
}

// NewReader returns a Reader of r.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 16<<10)} }

// Next reads one message. The body is valid until the next call. It returns
// io.EOF when the connection ended between two messages.
func (r *Reader) Next() (Message, []byte, error) {
	var m Message
	var lens [8]byte
	if _, err := io.ReadFull(r.r, lens[:]); err != nil {
		return m, nil, err
	}
	h, b := binary.BigEndian.Uint32(lens[:4]), binary.BigEndian.Uint32(lens[4:])
	if h > MaxHeader || b > MaxBody {
		return m, nil, fmt.Errorf("%w: header %d, body %d bytes: above the limit", ErrProtocol, h, b)
	}
	n := int(h + b)
	if cap(r.buf) < n {
		r.buf = make([]byte, n)
	}
	buf := r.buf[:n]
	if _, err := io.ReadFull(r.r, buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return m, nil, err
	}
	if err := json.Unmarshal(buf[:h], &m); err != nil {
		return m, nil, fmt.Errorf("%w: header: %v", ErrProtocol, err)
	}
	if m.Type == "" || len(m.Procs) > MaxProcs {
		return m, nil, fmt.Errorf("%w: header without a type or with %d processes", ErrProtocol, len(m.Procs))
	}
	body := buf[h:]
	if n > 2*Fragment { // do not keep the room of a rare large Exec
		r.buf = nil
	}
	return m, body, nil
}

// Package wire reads and writes the messages of peer protocols on a stream:
// each a varint length and a protobuf message. Lengths above Max are refused
// before anything is allocated.
//
// A Conn may be read by one goroutine and written by several.
package wire

import (
	"bufio"
	"fmt"
	"io"
	"sync"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
)

// Max bounds one message: arguments and results may be 16 MiB, plus envelope.
const Max = 17 << 20

// Conn frames messages on a stream. The caller closes the stream.
type Conn struct {
	r *bufio.Reader

	mu sync.Mutex // guards w
	w  *bufio.Writer
}

// New frames rw.
func New(rw io.ReadWriter) *Conn {
	return &Conn{r: bufio.NewReaderSize(rw, 32<<10), w: bufio.NewWriterSize(rw, 32<<10)}
}

// Read fills m with the next message. io.EOF means a clean end.
func (c *Conn) Read(m proto.Message) error {
	err := protodelim.UnmarshalOptions{MaxSize: Max}.UnmarshalFrom(c.r, m)
	if err == io.EOF {
		return err
	}
	if err != nil {
		return fmt.Errorf("read message: %w", err)
	}
	return nil
}

// Write sends the messages and flushes once.
func (c *Conn) Write(ms ...proto.Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range ms {
		if n := proto.Size(m); n > Max {
			return fmt.Errorf("write message: %d bytes, at most %d", n, Max)
		}
		if _, err := protodelim.MarshalTo(c.w, m); err != nil {
			return fmt.Errorf("write message: %w", err)
		}
	}
	if err := c.w.Flush(); err != nil {
		return fmt.Errorf("write message: %w", err)
	}
	return nil
}

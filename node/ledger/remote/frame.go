package remote

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/proto/fault"
)

// The protocol "ledger/1". Every frame is
//
//	uint32 big endian length, then that many bytes of JSON
//
// The client sends requests, each with a sequence number of its own; the voter
// answers in any order, at most maxInFlight at a time (it stops reading above).
// A stream whose first request is a watch carries nothing but that watch: the
// voter sends events as they happen and its revision every heartbeat.
// Unknown fields are ignored, unknown ops answered with "unsupported".
const (
	maxRequest  = ledger.MaxCommandBytes + 64<<10
	maxResponse = 2*ledger.MaxPageBytes + 2*ledger.MaxCommandBytes
	maxInFlight = 64
)

type request struct {
	Seq     uint64          `json:"seq"`
	Op      string          `json:"op"` // get, list, propose, watch
	Key     *ledger.Key     `json:"key,omitempty"`
	Query   *ledger.Query   `json:"query,omitempty"`
	Command json.RawMessage `json:"command,omitempty"`
	Filter  *ledger.Filter  `json:"filter,omitempty"`
	From    uint64          `json:"from,omitempty"`
}

type response struct {
	Seq      uint64          `json:"seq"`
	Record   *ledger.Record  `json:"record,omitempty"`
	Records  []ledger.Record `json:"records,omitempty"`
	Next     string          `json:"next,omitempty"`
	Changed  bool            `json:"changed,omitempty"`
	Event    *ledger.Event   `json:"event,omitempty"`
	Revision uint64          `json:"rev,omitempty"` // of the voter's ledger
	Err      *wireError      `json:"err,omitempty"`
}

type wireError struct {
	Code      fault.Code `json:"code"`
	Message   string     `json:"message"`
	Hint      string     `json:"hint,omitempty"`
	Compacted bool       `json:"compacted,omitempty"`
}

func (e *wireError) fault() error {
	f := fault.New(e.Code, e.Message, e.Hint)
	if e.Compacted {
		f.Err = ledger.ErrCompacted
	}
	return f
}

func writeFrame(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	buf := make([]byte, 4, 4+len(b))
	binary.BigEndian.PutUint32(buf, uint32(len(b)))
	_, err = w.Write(append(buf, b...))
	return err
}

func readFrame(r io.Reader, max uint32, v any) error {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(n[:])
	if size > max {
		return fmt.Errorf("frame is %d bytes, at most %d are taken", size, max)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode frame: %w", err)
	}
	return nil
}

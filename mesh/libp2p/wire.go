package libp2p

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"
)

// Frames are a uvarint length and a protobuf message. The bounds are those of
// the messages' own limits with room for the envelope.
const (
	maxHelloFrame    = 64 << 10
	maxGreetingFrame = maxPayload + 256<<10 // the payload and 256 member records
	maxJoinFrame     = 256 << 10
	maxKeyFrame      = 1 << 10
)

// writeFrame sends m as one write.
func writeFrame(w io.Writer, m proto.Message, limit int) error {
	n := proto.Size(m)
	if n > limit {
		return fmt.Errorf("send %s: %d bytes, at most %d", m.ProtoReflect().Descriptor().Name(), n, limit)
	}
	b := binary.AppendUvarint(make([]byte, 0, n+binary.MaxVarintLen32), uint64(n))
	b, err := proto.MarshalOptions{}.MarshalAppend(b, m)
	if err != nil {
		return fmt.Errorf("send %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	_, err = w.Write(b)
	return err
}

// readFrame receives one frame into m. It allocates what has arrived, never
// what a length claims.
func readFrame(r *bufio.Reader, m proto.Message, limit int) error {
	name := m.ProtoReflect().Descriptor().Name()
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return fmt.Errorf("receive %s: %w", name, err)
	}
	if n > uint64(limit) {
		return fmt.Errorf("receive %s: %d bytes, at most %d", name, n, limit)
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && uint64(len(b)) < n {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("receive %s: %w", name, err)
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return fmt.Errorf("receive %s: %w", name, err)
	}
	return nil
}

package fsm

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/beammesh/beammesh/node/ledger"
)

var headKey = []byte("m")

func (h head) encode() []byte {
	var b [24]byte
	binary.BigEndian.PutUint64(b[0:], h.applied)
	binary.BigEndian.PutUint64(b[8:], h.revision)
	binary.BigEndian.PutUint64(b[16:], uint64(h.time.UnixMilli()))
	return b[:]
}

func readHead(r pebble.Reader) (head, error) {
	h := head{time: time.UnixMilli(0).UTC()}
	v, err := read(r, headKey)
	if err != nil || v == nil {
		return h, err
	}
	if len(v) != 24 {
		return h, fmt.Errorf("ledger head is %d bytes", len(v))
	}
	h.applied = binary.BigEndian.Uint64(v[0:])
	h.revision = binary.BigEndian.Uint64(v[8:])
	h.time = time.UnixMilli(int64(binary.BigEndian.Uint64(v[16:]))).UTC()
	return h, nil
}

// Keys are joined with NUL, which ledger.CheckKey keeps out of every part, so
// their order is that of (kind, workspace, id) and no two keys collide.

func recordKey(k ledger.Key) []byte {
	return []byte("r" + string(k.Kind) + "\x00" + k.Workspace + "\x00" + k.ID)
}

func countKey(k ledger.Key) []byte { return []byte("n" + string(k.Kind) + "\x00" + k.Workspace) }

func eventKey(rev uint64) []byte { return binary.BigEndian.AppendUint64([]byte("e"), rev) }

func expiryKey(at time.Time, k ledger.Key) []byte {
	b := binary.BigEndian.AppendUint64([]byte("x"), uint64(at.UnixMilli()))
	return append(b, recordKey(k)...)
}

// parseRecordKey is the inverse of recordKey.
func parseRecordKey(b []byte) (ledger.Key, bool) {
	p := bytes.SplitN(b, []byte{0}, 3)
	if len(p) != 3 || len(p[0]) < 2 || p[0][0] != 'r' {
		return ledger.Key{}, false
	}
	return ledger.Key{Kind: ledger.Kind(p[0][1:]), Workspace: string(p[1]), ID: string(p[2])}, true
}

// read copies the value at key; nil when there is none.
func read(r pebble.Reader, key []byte) ([]byte, error) {
	v, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := append([]byte{}, v...)
	return out, closer.Close()
}

func readRecord(r pebble.Reader, k ledger.Key) (*ledger.Record, error) {
	v, err := read(r, recordKey(k))
	if err != nil || v == nil {
		return nil, err
	}
	var rec ledger.Record
	if err := json.Unmarshal(v, &rec); err != nil {
		return nil, fmt.Errorf("record %s %s: %w", k.Kind, k.ID, err)
	}
	return &rec, nil
}

func readCount(r pebble.Reader, k ledger.Key) (uint64, error) {
	v, err := read(r, countKey(k))
	if err != nil || v == nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("count of %s in %s is %d bytes", k.Kind, k.Workspace, len(v))
	}
	return binary.BigEndian.Uint64(v), nil
}

// writeCount removes a count of zero, so that the state does not remember what
// once was there.
func writeCount(b *pebble.Batch, k ledger.Key, n uint64) error {
	if n == 0 {
		return b.Delete(countKey(k), nil)
	}
	return b.Set(countKey(k), binary.BigEndian.AppendUint64(nil, n), nil)
}

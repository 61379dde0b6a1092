package fsm

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/proto/fault"
)

// Get reads one record of the synced state.
func (m *Machine) Get(k ledger.Key) (ledger.Record, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return ledger.Record{}, ledger.Closed()
	}
	rec, err := readRecord(m.view, k)
	if err != nil {
		return ledger.Record{}, fault.Wrap(fault.Internal, err, "read ledger", "the disk may be damaged")
	}
	if rec == nil {
		return ledger.Record{}, ledger.NotFound(k)
	}
	return *rec, nil
}

// List reads a page of the synced state.
func (m *Machine) List(q ledger.Query) (ledger.Page, error) {
	prefix := "r" + string(q.Kind) + "\x00"
	if q.Workspace != ledger.AllWorkspaces {
		prefix += q.Workspace + "\x00"
	}
	lower, upper := []byte(prefix), end([]byte(prefix))
	if q.After != "" {
		lower = append([]byte("r"+string(q.Kind)+"\x00"+q.After), 0)
	}
	if q.Limit <= 0 || q.Limit > ledger.MaxPage {
		q.Limit = ledger.MaxPage
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return ledger.Page{}, ledger.Closed()
	}
	p := ledger.Page{Revision: m.synced.revision}
	size := 0
	err := scan(m.view, lower, upper, func(k, v []byte) (bool, error) {
		if n := len(p.Records); n == q.Limit || size >= ledger.MaxPageBytes {
			last := p.Records[n-1]
			p.Next = last.Workspace + "\x00" + last.ID
			return false, nil
		}
		var rec ledger.Record
		if err := json.Unmarshal(v, &rec); err != nil {
			return false, err
		}
		size += len(v)
		p.Records = append(p.Records, rec)
		return true, nil
	})
	if err != nil {
		return ledger.Page{}, fault.Wrap(fault.Internal, err, "list ledger", "the disk may be damaged")
	}
	return p, nil
}

// Events gives up to limit changes after revision from, oldest first, and the
// revision up to which it looked. It wraps ledger.ErrCompacted when the first
// of them is gone.
func (m *Machine) Events(from uint64, limit int) ([]ledger.Event, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return nil, ledger.Closed()
	}
	rev := m.synced.revision
	if from >= rev {
		return nil, nil
	}
	if rev > ledger.MaxEvents && from < rev-ledger.MaxEvents {
		return nil, ledger.Compacted(from, rev-ledger.MaxEvents)
	}
	var out []ledger.Event
	err := scan(m.view, eventKey(from+1), end([]byte("e")), func(_, v []byte) (bool, error) {
		var e ledger.Event
		if err := json.Unmarshal(v, &e); err != nil {
			return false, err
		}
		out = append(out, e)
		return len(out) < limit, nil
	})
	if err == nil && (len(out) == 0 || out[0].Revision != from+1) {
		err = fmt.Errorf("event %d is missing", from+1)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "read ledger events", "the disk may be damaged")
	}
	return out, nil
}

// Expiring gives up to limit keys that fall out of the ledger, soonest first,
// with the time of the first; the zero time when nothing ever does.
func (m *Machine) Expiring(limit int) (keys []ledger.Key, times []time.Time, err error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return nil, nil, ledger.Closed()
	}
	err = scan(m.view, []byte("x"), end([]byte("x")), func(k, _ []byte) (bool, error) {
		if len(k) < 9 {
			return false, errors.New("expiry key is short")
		}
		rec, ok := parseRecordKey(k[9:])
		if !ok {
			return false, errors.New("expiry key is malformed")
		}
		keys = append(keys, rec)
		times = append(times, time.UnixMilli(int64(binary.BigEndian.Uint64(k[1:9]))).UTC())
		return len(keys) < limit, nil
	})
	return keys, times, err
}

// scan calls fn for each pair in [lower, upper) until it says stop. The slices
// are reused.
func scan(r pebble.Reader, lower, upper []byte, fn func(k, v []byte) (bool, error)) error {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return errors.Join(err, it.Close())
		}
		more, err := fn(it.Key(), v)
		if err != nil {
			return errors.Join(err, it.Close())
		}
		if !more {
			break
		}
	}
	return it.Close() // carries the iterator's own error
}

// end is the first key after all keys with the prefix.
func end(prefix []byte) []byte {
	b := append([]byte{}, prefix...)
	b[len(b)-1]++ // no prefix of ours ends in 0xff
	return b
}

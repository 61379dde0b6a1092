// Package fsm is the ledger's state machine: entries of a log go in, records
// come out, and the same entries give the same bytes on every replica.
//
//	m, err := fsm.Open(dir, fsm.Options{})
//	out, err := m.Apply([]fsm.Entry{{Index: m.Applied() + 1, Time: now, Command: raw}})
//
// It has no clock, no randomness and no goroutine of its own: time arrives in
// the entries (a record never moves back in time: an entry earlier than the one
// before it counts as that one's time), and what expires is removed by an entry.
// How entries are cut into Apply calls and where the process restarted between
// them leaves no trace in the state.
//
// Apply returns after its one fsync. Reads see only what is synced, never wait
// for a sync, and may run beside Apply; Apply itself is for one caller at a time.
//
// Layout of the store (all integers big endian):
//
//	m                          applied index, revision, time (3 x uint64)
//	r <kind> 0 <ws> 0 <id>     record, JSON
//	e <revision>               event, JSON; the last MaxEvents of them
//	n <kind> 0 <ws>            number of records
//	x <millis> <record key>    when a record falls out
package fsm

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/ledger/kv"
	"github.com/beammesh/beammesh/proto/fault"
)

// Options of Open; see kv.Options.
type Options = kv.Options

// Entry is one position of the log.
type Entry struct {
	Index   uint64
	Time    time.Time // the leader's clock when it took the command
	Command []byte    // ledger.EncodeCommand
}

// Outcome is what one entry did. Err is the command's refusal (a *fault.Error),
// part of the state like any answer: all replicas refuse alike.
type Outcome struct {
	Result ledger.Result
	Err    error
}

// Machine is the state machine on its store.
type Machine struct {
	db *kv.Store

	// applying guards head and is held over Apply, fsync included.
	applying sync.Mutex
	head     head

	// mu guards view, the synced state that reads use; held for moments only.
	mu     sync.RWMutex
	view   *pebble.Snapshot
	synced head
	closed bool
}

// head is the machine's position.
type head struct {
	applied, revision uint64
	time              time.Time
}

// Open opens or makes the machine in dir.
func Open(dir string, o Options) (*Machine, error) {
	if err := finishRestore(dir, o); err != nil {
		return nil, err
	}
	db, err := kv.Open(dir, o)
	if err != nil {
		return nil, err
	}
	h, err := readHead(db)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &Machine{db: db, head: h, synced: h, view: db.NewSnapshot()}, nil
}

// Applied is the index of the last entry that is synced.
func (m *Machine) Applied() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.synced.applied
}

// Revision is the number of the last change that is synced.
func (m *Machine) Revision() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.synced.revision
}

// Time is the leader's time that the state has reached.
func (m *Machine) Time() time.Time {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.synced.time
}

// Apply applies entries with consecutive indexes after Applied, all or none,
// and syncs once. Entries at or below Applied are skipped with a zero Outcome
// (a log replays them after a restart). An error means that nothing of these
// entries may be acknowledged.
func (m *Machine) Apply(entries []Entry) ([]Outcome, error) {
	m.applying.Lock()
	defer m.applying.Unlock()
	if m.isClosed() {
		return nil, ledger.Closed()
	}
	b := m.db.NewIndexedBatch()
	defer func() { _ = b.Close() }()
	h := m.head
	out := make([]Outcome, len(entries))
	for i, e := range entries {
		if e.Index <= m.head.applied {
			continue
		}
		if e.Index != h.applied+1 {
			return nil, fmt.Errorf("apply entry %d: state is at %d", e.Index, h.applied)
		}
		h.applied = e.Index
		if t := time.UnixMilli(e.Time.UnixMilli()).UTC(); t.After(h.time) {
			h.time = t
		}
		var err error
		if out[i], err = step(b, &h, e.Command); err != nil {
			return nil, fmt.Errorf("apply entry %d: %w", e.Index, err)
		}
	}
	if h == m.head {
		return out, nil
	}
	if err := b.Set(headKey, h.encode(), nil); err != nil {
		return nil, fmt.Errorf("apply: %w", err)
	}
	if err := b.Commit(pebble.Sync); err != nil {
		return nil, fmt.Errorf("apply: sync: %w", err)
	}
	m.head = h
	return out, m.publish(h)
}

// publish lets reads see the state as synced.
func (m *Machine) publish(h head) error {
	next := m.db.NewSnapshot()
	m.mu.Lock()
	old := m.view
	m.view, m.synced = next, h
	m.mu.Unlock()
	return old.Close()
}

func (m *Machine) isClosed() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.closed
}

// Close closes the store. It may be called twice.
func (m *Machine) Close() error {
	m.applying.Lock()
	defer m.applying.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	return errors.Join(m.view.Close(), m.db.Close())
}

// step applies one command to the batch.
func step(b *pebble.Batch, h *head, raw []byte) (Outcome, error) {
	cmd, err := ledger.DecodeCommand(raw)
	if err != nil {
		return Outcome{Err: err}, nil
	}
	k := cmd.Target()
	cur, err := readRecord(b, k)
	if err != nil {
		return Outcome{}, err
	}
	count, err := readCount(b, k)
	if err != nil {
		return Outcome{}, err
	}
	o, refused := ledger.Step(cmd, cur, int(count), h.revision+1, h.time)
	if refused != nil {
		return Outcome{Err: refused}, nil
	}
	res := Outcome{Result: ledger.Result{Record: o.Record, Changed: o.Changed}}
	if !o.Changed {
		return res, nil
	}
	h.revision++
	return res, write(b, cur, o, count, h.revision)
}

// write stores a change with its index entries.
func write(b *pebble.Batch, cur *ledger.Record, o ledger.Outcome, count, rev uint64) error {
	k := o.Record.Key
	event, err := json.Marshal(ledger.Event{Revision: rev, Deleted: o.Deleted, Record: o.Record})
	if err != nil {
		return fault.Wrap(fault.Internal, err, "encode event", "")
	}
	if err := b.Set(eventKey(rev), event, nil); err != nil {
		return err
	}
	if rev > ledger.MaxEvents {
		if err := b.Delete(eventKey(rev-ledger.MaxEvents), nil); err != nil {
			return err
		}
	}
	if cur != nil && !cur.RemoveAt().IsZero() {
		if err := b.Delete(expiryKey(cur.RemoveAt(), k), nil); err != nil {
			return err
		}
	}
	if o.Deleted {
		if err := b.Delete(recordKey(k), nil); err != nil {
			return err
		}
		return writeCount(b, k, count-1)
	}
	rec, err := json.Marshal(o.Record)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "encode record", "")
	}
	if err := b.Set(recordKey(k), rec, nil); err != nil {
		return err
	}
	if at := o.Record.RemoveAt(); !at.IsZero() {
		if err := b.Set(expiryKey(at, k), nil, nil); err != nil {
			return err
		}
	}
	if cur == nil {
		return writeCount(b, k, count+1)
	}
	return nil
}

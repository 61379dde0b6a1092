package journal

import (
	"encoding/binary"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// pruneEvery is how often age alone is looked at; the bounds of count and bytes
// wake the loop by themselves.
const pruneEvery = 10 * time.Minute

func (j *Journal) pruneLoop() {
	defer close(j.done)
	t := time.NewTicker(pruneEvery)
	defer t.Stop()
	for {
		if err := j.Prune(); err != nil {
			j.log.Error("prune journal", "err", err)
		}
		select {
		case <-j.full:
		case <-t.C:
		case <-j.stop:
			return
		}
	}
}

// pruneBatch bounds what one look collects.
const pruneBatch = 500

// Prune forgets ended tasks beyond the limits, oldest end first. The journal
// does it by itself; it is exported for tests and for a node short of disk.
func (j *Journal) Prune() error {
	j.pruning.Lock() // two at once would count the same tasks twice
	defer j.pruning.Unlock()
	for {
		more, err := j.pruneSome()
		if err != nil || !more {
			return err
		}
	}
}

func (j *Journal) pruneSome() (more bool, err error) {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return false, nil
	}
	j.work.Add(1)
	ended, bytes := j.ended, j.bytes
	j.mu.Unlock()
	defer j.work.Done()

	oldest := j.now().Add(-j.limits.Age)
	type victim struct {
		id, index string
		size      int64
	}
	var out []victim
	err = j.scan('d', false, nil, func(k, v []byte) (bool, error) {
		at := time.UnixMilli(int64(binary.BigEndian.Uint64(k)))
		if !at.Before(oldest) && ended <= j.limits.Count && bytes <= j.limits.Bytes {
			return false, nil
		}
		size := int64(binary.BigEndian.Uint64(v))
		out = append(out, victim{string(k[8:]), string(k), size})
		ended, bytes = ended-1, bytes-size
		return len(out) < pruneBatch, nil
	})
	if err != nil || len(out) == 0 {
		return false, err
	}
	for _, v := range out {
		if err := j.forget(v.id, append([]byte{'d'}, v.index...), v.size); err != nil {
			return false, err
		}
	}
	return len(out) == pruneBatch, nil
}

// forget removes one ended task. Not synced: what a crash brings back is
// pruned again.
func (j *Journal) forget(id string, index []byte, size int64) error {
	mu := j.lock(id) // or an Ack at this moment would write it back
	mu.Lock()
	defer mu.Unlock()
	b := j.db.NewBatch()
	defer func() { _ = b.Close() }()
	t, err := j.task(id)
	if err == nil {
		err = b.Delete(timeKey('s', t.Submitted, id), nil)
	}
	if err != nil {
		j.log.Error("prune task", "task", id, "err", err)
	}
	for _, k := range [][]byte{key('t', id), key('i', id), key('a', id), key('r', id), index} {
		if err := b.Delete(k, nil); err != nil {
			return err
		}
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return err
	}
	j.mu.Lock()
	j.ended--
	j.bytes -= size
	j.mu.Unlock()
	return nil
}

package remote

import (
	"cmp"
	"container/list"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/ledger/kv"
)

// maxCached bounds the copies on disk; the least recently used one goes first.
// The index costs about 200 bytes each in memory.
const maxCached = 20_000

// confirmedEvery is how often a renewed confirmation of an unchanged copy is
// written down: after a restart an Age may be too large by this much.
const confirmedEvery = time.Minute

// cache keeps copies of records on disk, synced, with the time at which the
// voter last confirmed each.
type cache struct {
	db  *kv.Store
	log *slog.Logger
	max int
	now func() time.Time

	mu    sync.Mutex
	index map[ledger.Key]*list.Element
	order *list.List // of *copied, most recently used first
}

type copied struct {
	key       ledger.Key
	revision  uint64
	confirmed time.Time // in memory
	written   time.Time // on disk
}

// stored is a copy on disk, under kind 0 workspace 0 id.
type stored struct {
	Confirmed int64         `json:"confirmed"` // Unix milliseconds, this node's clock
	Record    ledger.Record `json:"record"`
}

func openCache(dir string, max int, now func() time.Time, log *slog.Logger, fatal func(string)) (*cache, error) {
	db, err := kv.Open(dir, kv.Options{Logger: log, Fatal: fatal})
	if err != nil {
		return nil, err
	}
	c := &cache{db: db, log: log, max: max, now: now, index: map[ledger.Key]*list.Element{}, order: list.New()}
	if err := c.load(); err != nil {
		_ = db.Close()
		return nil, err
	}
	return c, nil
}

// load rebuilds the index. A copy that cannot be read (an older or newer
// version wrote it) is dropped: the voter has the original.
func (c *cache) load() error {
	it, err := c.db.NewIter(nil)
	if err != nil {
		return err
	}
	var all []*copied
	var bad [][]byte
	for ok := it.First(); ok; ok = it.Next() {
		var s stored
		if json.Unmarshal(it.Value(), &s) != nil {
			bad = append(bad, slices.Clone(it.Key()))
			continue
		}
		t := time.UnixMilli(s.Confirmed)
		all = append(all, &copied{s.Record.Key, s.Record.Revision, t, t})
	}
	if err := it.Close(); err != nil {
		return err
	}
	for _, k := range bad {
		if err := c.db.Delete(k, pebble.NoSync); err != nil {
			return err
		}
	}
	slices.SortFunc(all, func(a, b *copied) int { return cmp.Compare(b.confirmed.UnixMilli(), a.confirmed.UnixMilli()) })
	for _, e := range all {
		c.index[e.key] = c.order.PushBack(e)
	}
	return nil
}

func cacheKey(k ledger.Key) []byte {
	return []byte(string(k.Kind) + "\x00" + k.Workspace + "\x00" + k.ID)
}

// put keeps records the voter just gave. An older revision than the one kept
// never replaces it. Trouble with the disk is logged: the records themselves
// were answered.
func (c *cache) put(records ...ledger.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.db.NewBatch()
	defer func() { _ = b.Close() }()
	mode := pebble.NoSync
	now := c.now()
	for _, r := range records {
		if r.Body == nil {
			continue // what we cannot read we cannot keep whole
		}
		el := c.index[r.Key]
		if el != nil && el.Value.(*copied).revision > r.Revision {
			continue
		}
		if el == nil {
			el = c.order.PushFront(&copied{key: r.Key})
			c.index[r.Key] = el
		}
		e := el.Value.(*copied)
		c.order.MoveToFront(el)
		e.confirmed = now
		fresh := e.revision != r.Revision
		if !fresh && now.Sub(e.written) < confirmedEvery {
			continue
		}
		if fresh {
			mode = pebble.Sync
		}
		e.revision, e.written = r.Revision, now
		v, err := json.Marshal(stored{now.UnixMilli(), r})
		if err == nil {
			err = b.Set(cacheKey(r.Key), v, nil)
		}
		if err != nil {
			c.log.Error("keep ledger copy", "key", r.Key, "err", err)
		}
	}
	for c.order.Len() > c.max {
		k := c.order.Remove(c.order.Back()).(*copied).key
		delete(c.index, k)
		if err := b.Delete(cacheKey(k), nil); err != nil {
			c.log.Error("drop ledger copy", "key", k, "err", err)
		}
	}
	if b.Empty() {
		return
	}
	if err := b.Commit(mode); err != nil {
		c.log.Error("keep ledger copies", "err", err)
	}
}

// drop forgets a record that the voter no longer has.
func (c *cache) drop(k ledger.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.index[k]
	if el == nil {
		return
	}
	c.order.Remove(el)
	delete(c.index, k)
	if err := c.db.Delete(cacheKey(k), pebble.Sync); err != nil {
		c.log.Error("drop ledger copy", "key", k, "err", err)
	}
}

// get gives the copy and its age.
func (c *cache) get(k ledger.Key) (ledger.Answer, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.index[k]
	if el == nil {
		return ledger.Answer{}, false
	}
	c.order.MoveToFront(el)
	return c.readLocked(el.Value.(*copied))
}

func (c *cache) readLocked(e *copied) (ledger.Answer, bool) {
	v, closer, err := c.db.Get(cacheKey(e.key))
	if err != nil {
		c.log.Error("read ledger copy", "key", e.key, "err", err)
		return ledger.Answer{}, false
	}
	defer func() { _ = closer.Close() }()
	var s stored
	if err := json.Unmarshal(v, &s); err != nil {
		c.log.Error("read ledger copy", "key", e.key, "err", err)
		return ledger.Answer{}, false
	}
	return ledger.Answer{Record: s.Record, Cached: true, Age: max(c.now().Sub(e.confirmed), 0)}, true
}

// list answers a query from the copies.
func (c *cache) list(q ledger.Query) ledger.Page {
	c.mu.Lock()
	defer c.mu.Unlock()
	cursor := func(k ledger.Key) string { return k.Workspace + "\x00" + k.ID }
	var match []*copied
	for k, el := range c.index {
		if k.Kind == q.Kind && (q.Workspace == ledger.AllWorkspaces || q.Workspace == k.Workspace) && cursor(k) > q.After {
			match = append(match, el.Value.(*copied))
		}
	}
	slices.SortFunc(match, func(a, b *copied) int { return cmp.Compare(cursor(a.key), cursor(b.key)) })
	if q.Limit <= 0 || q.Limit > ledger.MaxPage {
		q.Limit = ledger.MaxPage
	}
	p := ledger.Page{Cached: true}
	if len(match) > q.Limit {
		match = match[:q.Limit]
		p.Next = cursor(match[q.Limit-1].key)
	}
	for _, e := range match {
		if a, ok := c.readLocked(e); ok {
			p.Records = append(p.Records, a.Record)
			p.Age = max(p.Age, a.Age)
		}
	}
	return p
}

func (c *cache) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.order.Len()
}

func (c *cache) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.db.Close()
}

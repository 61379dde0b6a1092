package ledgertest

import (
	"context"
	"sort"
	"sync"
	"time"

	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/proto/fault"
)

// Fake is a Ledger in memory: it decides like the real one and forgets
// everything when it is closed.
type Fake struct {
	now func() time.Time

	mu      sync.Mutex
	records map[ledger.Key]ledger.Record
	events  []ledger.Event // events[i].Revision == first+i
	first   uint64
	rev     uint64
	changed chan struct{} // closed and replaced at each change
	closed  bool
}

var _ ledger.Ledger = (*Fake)(nil)

// NewFake makes an empty Fake with the given clock; nil = time.Now.
func NewFake(now func() time.Time) *Fake {
	if now == nil {
		now = time.Now
	}
	return &Fake{now: now, records: map[ledger.Key]ledger.Record{}, first: 1, changed: make(chan struct{})}
}

// Propose implements ledger.Ledger.
func (f *Fake) Propose(ctx context.Context, cmd ledger.Command) (ledger.Result, error) {
	// Through the codec, so that what the wire could not carry fails here too.
	raw, err := ledger.EncodeCommand(cmd)
	if err != nil {
		return ledger.Result{}, err
	}
	if cmd, err = ledger.DecodeCommand(raw); err != nil {
		return ledger.Result{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ledger.Result{}, ledger.Closed()
	}
	if err := ctx.Err(); err != nil {
		return ledger.Result{}, fault.From(err)
	}
	k := cmd.Target()
	var cur *ledger.Record
	if r, ok := f.records[k]; ok {
		cur = &r
	}
	count := 0
	for o := range f.records {
		if o.Kind == k.Kind && o.Workspace == k.Workspace {
			count++
		}
	}
	o, err := ledger.Step(cmd, cur, count, f.rev+1, f.now())
	if err != nil {
		return ledger.Result{}, err
	}
	if o.Changed {
		f.rev++
		if o.Deleted {
			delete(f.records, k)
		} else {
			f.records[k] = o.Record
		}
		f.events = append(f.events, ledger.Event{Revision: f.rev, Deleted: o.Deleted, Record: o.Record})
		if len(f.events) > ledger.MaxEvents {
			f.events, f.first = f.events[1:], f.first+1
		}
		close(f.changed)
		f.changed = make(chan struct{})
	}
	return ledger.Result{Record: o.Record, Changed: o.Changed}, nil
}

// Get implements ledger.Reader.
func (f *Fake) Get(_ context.Context, k ledger.Key, _ time.Duration) (ledger.Answer, error) {
	if err := ledger.CheckKey(k); err != nil {
		return ledger.Answer{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ledger.Answer{}, ledger.Closed()
	}
	r, ok := f.records[k]
	if !ok {
		return ledger.Answer{}, ledger.NotFound(k)
	}
	return ledger.Answer{Record: r}, nil
}

// List implements ledger.Reader.
func (f *Fake) List(_ context.Context, q ledger.Query) (ledger.Page, error) {
	if err := ledger.CheckQuery(q); err != nil {
		return ledger.Page{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ledger.Page{}, ledger.Closed()
	}
	p := ledger.Page{Revision: f.rev}
	cursor := func(r ledger.Record) string { return r.Workspace + "\x00" + r.ID }
	for _, r := range f.records {
		if r.Kind == q.Kind && (q.Workspace == ledger.AllWorkspaces || r.Workspace == q.Workspace) && cursor(r) > q.After {
			p.Records = append(p.Records, r)
		}
	}
	sort.Slice(p.Records, func(i, j int) bool { return cursor(p.Records[i]) < cursor(p.Records[j]) })
	if q.Limit <= 0 || q.Limit > ledger.MaxPage {
		q.Limit = ledger.MaxPage
	}
	if len(p.Records) > q.Limit {
		p.Records = p.Records[:q.Limit]
		p.Next = cursor(p.Records[q.Limit-1])
	}
	return p, nil
}

// Watch implements ledger.Reader.
func (f *Fake) Watch(ctx context.Context, filter ledger.Filter, from uint64, fn func(ledger.Event) error) error {
	for {
		f.mu.Lock()
		changed, closed := f.changed, f.closed
		var events []ledger.Event
		if from+1 < f.first {
			oldest := f.first
			f.mu.Unlock()
			return ledger.Compacted(from, oldest)
		}
		if from < f.rev {
			events = append(events, f.events[from+1-f.first:]...)
		}
		f.mu.Unlock()
		if closed {
			return ledger.Closed()
		}
		for _, e := range events {
			from = e.Revision
			if !filter.Match(e.Record.Key) {
				continue
			}
			if err := fn(e); err != nil {
				return err
			}
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fault.From(ctx.Err())
		}
	}
}

// Status implements ledger.Ledger.
func (f *Fake) Status() ledger.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return ledger.Status{Role: ledger.RoleVoter, Revision: f.rev, Connected: true}
}

// Close implements ledger.Ledger.
func (f *Fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed = true
		close(f.changed)
		f.changed = make(chan struct{})
	}
	return nil
}

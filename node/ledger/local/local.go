// Package local is the ledger on the node that votes: the state machine of
// ledger/fsm with one writer in front.
//
//	l, err := local.Open(filepath.Join(data, "ledger"), local.Options{Logger: log})
//	defer l.Close()
//
// Proposals that wait while a sync runs share the next one (group commit): the
// cost of honest durability is one fsync per batch, not per write. Raft takes
// the place of this package's loop in a later version, behind the same contract
// and over the same state machine.
package local

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/ledger/fsm"
	"github.com/beammesh/beammesh/proto/fault"
)

// Bounds of the queue in front of the sync.
const (
	maxWaiting = 1024 // proposals; more wait in their callers
	maxBatch   = 256  // entries per sync
	maxBytes   = 4 << 20
	// maxTimer bounds the sleep until the next expiry: the wall clock may jump,
	// and a suspended laptop wakes late.
	maxTimer = time.Hour
)

// Options of Open. The zero value works.
type Options struct {
	Logger *slog.Logger
	Now    func() time.Time // the leader's clock; nil = time.Now
	FS     vfs.FS           // nil = the real one
	Fatal  func(string)     // see kv.Options
}

// Ledger implements ledger.Ledger on this node's disk.
type Ledger struct {
	m    *fsm.Machine
	log  *slog.Logger
	now  func() time.Time
	in   chan *proposal
	stop chan struct{}
	done chan struct{} // the loop has ended
	once sync.Once

	mu      sync.Mutex
	changed chan struct{} // closed, and replaced, after every change
}

type proposal struct {
	command []byte
	out     fsm.Outcome
	err     error
	done    chan struct{}
}

var _ ledger.Ledger = (*Ledger)(nil)

// Open opens or makes the ledger in dir. Close it.
func Open(dir string, o Options) (*Ledger, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	m, err := fsm.Open(dir, fsm.Options{Logger: o.Logger, FS: o.FS, Fatal: o.Fatal})
	if err != nil {
		return nil, err
	}
	l := &Ledger{
		m: m, log: o.Logger, now: o.Now,
		in:      make(chan *proposal, maxWaiting),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
		changed: make(chan struct{}),
	}
	go l.run()
	return l, nil
}

// Propose implements ledger.Ledger.
func (l *Ledger) Propose(ctx context.Context, cmd ledger.Command) (ledger.Result, error) {
	raw, err := ledger.EncodeCommand(cmd)
	if err != nil {
		return ledger.Result{}, err
	}
	p := &proposal{command: raw, done: make(chan struct{})}
	select {
	case <-l.stop:
		return ledger.Result{}, ledger.Closed()
	default:
	}
	select {
	case l.in <- p:
	case <-ctx.Done():
		return ledger.Result{}, fault.From(ctx.Err())
	case <-l.stop:
		return ledger.Result{}, ledger.Closed()
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return ledger.Result{}, fault.From(ctx.Err())
	case <-l.done:
		select {
		case <-p.done: // answered on the way out
		default:
			return ledger.Result{}, ledger.Closed()
		}
	}
	if p.err != nil {
		return ledger.Result{}, p.err
	}
	return p.out.Result, p.out.Err
}

// run is the only caller of Apply.
func (l *Ledger) run() {
	defer close(l.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var batch []*proposal
		select {
		case <-l.stop:
			return
		case <-timer.C:
			batch = l.due()
		case p := <-l.in:
			batch = l.collect(p)
		}
		if len(batch) > 0 {
			l.commit(batch)
		}
		timer.Reset(l.untilNext())
	}
}

// collect takes what waits already; it never waits for more.
func (l *Ledger) collect(first *proposal) []*proposal {
	batch, size := []*proposal{first}, len(first.command)
	for len(batch) < maxBatch && size < maxBytes {
		select {
		case p := <-l.in:
			batch, size = append(batch, p), size+len(p.command)
		default:
			return batch
		}
	}
	return batch
}

func (l *Ledger) commit(batch []*proposal) {
	entries := make([]fsm.Entry, len(batch))
	now, next := l.now(), l.m.Applied()+1
	for i, p := range batch {
		entries[i] = fsm.Entry{Index: next + uint64(i), Time: now, Command: p.command}
	}
	out, err := l.m.Apply(entries)
	if err != nil {
		l.log.Error("ledger write refused", "entries", len(entries), "err", err)
		err = fault.Wrap(fault.Internal, err, "write to the ledger", "see the node's log: the disk may be full or damaged")
	}
	changed := false
	for i, p := range batch {
		if p.err = err; err == nil {
			p.out = out[i]
			changed = changed || out[i].Result.Changed
		}
		close(p.done)
	}
	if changed {
		l.mu.Lock()
		close(l.changed)
		l.changed = make(chan struct{})
		l.mu.Unlock()
	}
}

// due makes the entries that remove what has expired.
func (l *Ledger) due() []*proposal {
	keys, times, err := l.m.Expiring(maxBatch)
	if err != nil {
		l.log.Error("ledger expiry", "err", err)
		return nil
	}
	var batch []*proposal
	now := l.now()
	for i, k := range keys {
		if times[i].After(now) {
			break
		}
		raw, err := ledger.EncodeCommand(ledger.Expire{Key: k})
		if err != nil {
			l.log.Error("ledger expiry", "key", k, "err", err)
			continue
		}
		batch = append(batch, &proposal{command: raw, done: make(chan struct{})})
	}
	return batch
}

func (l *Ledger) untilNext() time.Duration {
	_, times, err := l.m.Expiring(1)
	if err != nil || len(times) == 0 {
		return maxTimer
	}
	// At least a second apart: a clock behind the state's time must not spin.
	return min(max(times[0].Sub(l.now()), time.Second), maxTimer)
}

// Get implements ledger.Reader.
func (l *Ledger) Get(_ context.Context, k ledger.Key, _ time.Duration) (ledger.Answer, error) {
	if err := ledger.CheckKey(k); err != nil {
		return ledger.Answer{}, err
	}
	rec, err := l.m.Get(k)
	return ledger.Answer{Record: rec}, err
}

// List implements ledger.Reader.
func (l *Ledger) List(_ context.Context, q ledger.Query) (ledger.Page, error) {
	if err := ledger.CheckQuery(q); err != nil {
		return ledger.Page{}, err
	}
	return l.m.List(q)
}

// Watch implements ledger.Reader.
func (l *Ledger) Watch(ctx context.Context, f ledger.Filter, from uint64, fn func(ledger.Event) error) error {
	const chunk = 256 // events in memory per watch
	for {
		l.mu.Lock()
		changed := l.changed
		l.mu.Unlock()
		events, err := l.m.Events(from, chunk)
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := ctx.Err(); err != nil {
				return fault.From(err)
			}
			from = e.Revision
			if !f.Match(e.Record.Key) {
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
		case <-l.stop:
			return ledger.Closed()
		}
	}
}

// Status implements ledger.Ledger.
func (l *Ledger) Status() ledger.Status {
	return ledger.Status{Role: ledger.RoleVoter, Revision: l.m.Revision(), Connected: true}
}

// Close implements ledger.Ledger.
func (l *Ledger) Close() error {
	l.once.Do(func() { close(l.stop) })
	<-l.done
	return l.m.Close()
}

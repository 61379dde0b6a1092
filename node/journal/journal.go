// Package journal is the owner's durable record of the tasks that this node
// took: what was asked, which attempts were made, how it ended.
//
//	j, err := journal.Open(filepath.Join(data, "journal"), journal.Options{Logger: log})
//	for t := range open tasks of j.Unfinished() { resume or stop them }
//	err = j.Submit(ctx, journal.Task{ID: id, Workspace: ws, …}, args)   // fsynced when it returns
//	fence, err := j.Attempt(ctx, id, worker)                           // every attempt has a higher fence
//	err = j.Done(ctx, id, fence, journal.Outcome{Status: journal.Complete, Result: b})  // fsynced; once per task
//	j.Ack(id)                                                           // the client has it
//
// A task's life:
//
//	PENDING ──Attempt──▶ RUNNING ──Done──▶ COMPLETE | ERROR | CANCELLED | TIMEOUT | EXPIRED
//	            ▲           │Retry
//	            └── RETRY ◀─┘
//
// An attached call costs two fsyncs (Submit, Done), shared with whatever else
// is written at that moment. The attempts of a headless task are synced too,
// because after a restart its owner must find the worker that runs it. Fences
// carry an epoch that is made durable at Open, so they grow over restarts even
// where an attempt's record was not synced.
//
// Only one result is accepted: Done refuses (Conflict) a fence that is not the
// last one given out, and a task that has ended.
//
// Bounds: MaxOpen unfinished tasks (Submit refuses more), MaxInline bytes of
// arguments and of result (larger ones go by reference), and Limits for what is
// kept of ended tasks, oldest first. Safe for concurrent use.
package journal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/beammesh/beammesh/node/ledger/kv"
	"github.com/beammesh/beammesh/proto/fault"
)

// Status is where a task stands; the words are the API's.
type Status string

const (
	Pending   Status = "PENDING"
	Running   Status = "RUNNING"
	Retry     Status = "RETRY" // an attempt failed, another will be made
	Complete  Status = "COMPLETE"
	Error     Status = "ERROR"
	Cancelled Status = "CANCELLED"
	Timeout   Status = "TIMEOUT"
	Expired   Status = "EXPIRED"
)

// Ended tells whether s is final.
func (s Status) Ended() bool {
	switch s {
	case Complete, Error, Cancelled, Timeout, Expired:
		return true
	}
	return false
}

// Bounds.
const (
	MaxInline = 256 << 10 // bytes of spec, arguments or result kept here
	MaxOpen   = 100_000   // unfinished tasks
	maxText   = 4 << 10   // bytes of each name, URL, reference or error text
	MaxPage   = 1000
)

// Task is what the journal knows of a task, without its large parts.
type Task struct {
	ID          string    `json:"id"`
	Workspace   string    `json:"workspace"`
	Stub        string    `json:"stub,omitempty"`
	Name        string    `json:"name,omitempty"` // the function's, for people
	ArgsRef     string    `json:"args_ref,omitempty"`
	Headless    bool      `json:"headless,omitempty"`
	CallbackURL string    `json:"callback_url,omitempty"`
	Submitted   time.Time `json:"submitted"`

	Status   Status    `json:"status"`
	Attempts int       `json:"attempts,omitempty"` // made so far
	Lost     int       `json:"lost,omitempty"`     // of them ended by a lost node
	Fence    uint64    `json:"fence,omitempty"`    // of the last attempt
	Worker   string    `json:"worker,omitempty"`   // of the last attempt
	Started  time.Time `json:"started,omitzero"`   // the last attempt
	Ended    time.Time `json:"ended,omitzero"`
	ExitCode int       `json:"exit_code,omitempty"`
	// ErrorCode and ErrorText say why it ended badly, or why the last attempt
	// did while Status is RETRY.
	ErrorCode fault.Code `json:"error_code,omitempty"`
	ErrorText string     `json:"error_text,omitempty"`
	ResultRef string     `json:"result_ref,omitempty"`
	Acked     bool       `json:"acked,omitempty"` // its client has the result
	Size      int64      `json:"size,omitempty"`  // bytes kept of it here
}

// Input is the large part of a submission.
type Input struct {
	Spec []byte // demand and settings, opaque here
	Args []byte // inline arguments; else Task.ArgsRef
}

// Outcome is how a task ended.
type Outcome struct {
	Status    Status // an ended one
	ExitCode  int
	ErrorCode fault.Code
	ErrorText string
	Result    []byte // inline result; else ResultRef
	ResultRef string
	// Worker and Started are those of the attempt that ended it, where no
	// Attempt told them; zero leaves what is known.
	Worker  string
	Started time.Time
}

// Limits bound what is kept of ended tasks. Zero fields take the default.
type Limits struct {
	Count int           // 50,000
	Bytes int64         // 256 MiB
	Age   time.Duration // 24 h
}

// Options of Open. The zero value works.
type Options struct {
	Logger *slog.Logger
	Now    func() time.Time // nil = time.Now
	Limits Limits
	FS     vfs.FS       // nil = the real one
	Fatal  func(string) // see kv.Options
}

// Journal is an open journal. Close it.
type Journal struct {
	db     *kv.Store
	log    *slog.Logger
	now    func() time.Time
	limits Limits
	epoch  uint64
	seq    atomic.Uint32 // low half of the last fence

	// locks serialise changes of one task, by hash of its id. Reads take none.
	locks [256]sync.Mutex
	// pruning is held over a whole Prune.
	pruning sync.Mutex

	mu     sync.Mutex
	open   int
	ended  int
	bytes  int64 // of ended tasks
	hot    map[string]Task
	closed bool
	work   sync.WaitGroup // calls in progress

	stop chan struct{}
	done chan struct{}
	// full wakes the pruner; capacity 1.
	full chan struct{}
}

// Keys of the store:
//
//	m                      epoch
//	t <id>                 Task, JSON
//	i <id> / a <id>        Input.Spec / Input.Args
//	r <id>                 Outcome.Result
//	s <millis> <id>        by time of submission
//	d <millis> <id>        ended, by time of end; value = size
//	u <id>                 unfinished
var epochKey = []byte("m")

func key(p byte, id string) []byte { return append([]byte{p}, id...) }

func timeKey(p byte, t time.Time, id string) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{p}, uint64(t.UnixMilli())), id...)
}

// Open opens or makes the journal in dir and begins a new epoch of fences.
func Open(dir string, o Options) (*Journal, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Limits.Count == 0 {
		o.Limits.Count = 50_000
	}
	if o.Limits.Bytes == 0 {
		o.Limits.Bytes = 256 << 20
	}
	if o.Limits.Age == 0 {
		o.Limits.Age = 24 * time.Hour
	}
	db, err := kv.Open(dir, kv.Options{Logger: o.Logger, FS: o.FS, Fatal: o.Fatal})
	if err != nil {
		return nil, err
	}
	j := &Journal{
		db: db, log: o.Logger, now: o.Now, limits: o.Limits, hot: map[string]Task{},
		stop: make(chan struct{}), done: make(chan struct{}), full: make(chan struct{}, 1),
	}
	if err := j.begin(); err != nil {
		return nil, errors.Join(fault.Wrap(fault.Internal, err, "open journal "+dir, "the disk may be damaged"), db.Close())
	}
	go j.pruneLoop()
	return j, nil
}

// begin counts what is there and makes the next epoch durable.
func (j *Journal) begin() error {
	v, err := j.read(epochKey)
	if err != nil {
		return err
	}
	if v != nil {
		if len(v) != 8 {
			return fmt.Errorf("epoch is %d bytes", len(v))
		}
		j.epoch = binary.BigEndian.Uint64(v)
	}
	j.epoch++
	if err := j.db.Set(epochKey, binary.BigEndian.AppendUint64(nil, j.epoch), pebble.Sync); err != nil {
		return err
	}
	err = j.scan('u', false, nil, func([]byte, []byte) (bool, error) { j.open++; return true, nil })
	if err != nil {
		return err
	}
	return j.scan('d', false, nil, func(_, v []byte) (bool, error) {
		j.ended++
		j.bytes += int64(binary.BigEndian.Uint64(v))
		return true, nil
	})
}

// Epoch is the number of times the journal was opened.
func (j *Journal) Epoch() uint64 { return j.epoch }

// Close waits for calls in progress and may be called twice.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	j.mu.Unlock()
	close(j.stop)
	<-j.done
	j.work.Wait()
	return j.db.Close()
}

func (j *Journal) enter() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return fault.New(fault.Unreachable, "journal is closed", "the node is stopping")
	}
	j.work.Add(1)
	return nil
}

// lock serialises changes of one task.
func (j *Journal) lock(id string) *sync.Mutex {
	h := uint32(2166136261) // FNV-1a
	for i := range len(id) {
		h = (h ^ uint32(id[i])) * 16777619
	}
	return &j.locks[h%uint32(len(j.locks))]
}

// read copies a value; nil when there is none.
func (j *Journal) read(k []byte) ([]byte, error) {
	v, closer, err := j.db.Get(k)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := append([]byte{}, v...)
	return out, closer.Close()
}

func (j *Journal) task(id string) (Task, error) {
	v, err := j.read(key('t', id))
	if err != nil {
		return Task{}, fault.Wrap(fault.Internal, err, "read task "+id, "the disk may be damaged")
	}
	if v == nil {
		return Task{}, fault.New(fault.NotFound, "task "+id+" is not in this node's journal",
			"it may have ended more than a day ago, or belong to another node: 'beam task list' shows all")
	}
	var t Task
	if err := json.Unmarshal(v, &t); err != nil {
		return Task{}, fault.Wrap(fault.Internal, err, "read task "+id, "the disk may be damaged")
	}
	return t, nil
}

// scan calls fn for the keys with the one-byte prefix, in order or reversed,
// beyond after (nil = all), until it says stop. The slices are reused; the key
// comes without its prefix.
func (j *Journal) scan(prefix byte, reverse bool, after []byte, fn func(k, v []byte) (bool, error)) error {
	lower, upper := []byte{prefix}, []byte{prefix + 1}
	if after != nil && reverse {
		upper = append([]byte{prefix}, after...)
	} else if after != nil {
		lower = append(append([]byte{prefix}, after...), 0)
	}
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	first, next := it.First, it.Next
	if reverse {
		first, next = it.Last, it.Prev
	}
	for ok := first(); ok; ok = next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return errors.Join(err, it.Close())
		}
		more, err := fn(it.Key()[1:], v)
		if err != nil {
			return errors.Join(err, it.Close())
		}
		if !more {
			break
		}
	}
	return it.Close()
}

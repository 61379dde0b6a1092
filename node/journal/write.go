package journal

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/beammesh/beammesh/proto/fault"
)

// Submit records a task and returns when it is synced: from then on the task
// is this node's to finish. Submitted and Status are set here. Repeating it
// with the same id gives Conflict.
func (j *Journal) Submit(ctx context.Context, t Task, in Input) error {
	if err := check(t, in); err != nil {
		return err
	}
	if err := j.enter(); err != nil {
		return err
	}
	defer j.work.Done()
	if err := ctx.Err(); err != nil {
		return fault.From(err)
	}
	mu := j.lock(t.ID)
	mu.Lock()
	defer mu.Unlock()
	if _, ok := j.recall(t.ID); ok {
		return fault.New(fault.Conflict, "task "+t.ID+" was submitted already", "")
	} else if v, err := j.read(key('t', t.ID)); err != nil {
		return fault.Wrap(fault.Internal, err, "read task "+t.ID, "the disk may be damaged")
	} else if v != nil {
		return fault.New(fault.Conflict, "task "+t.ID+" was submitted already", "")
	}
	if !j.reserve() {
		return fault.Newf(fault.NoCapacity, "this node has %d unfinished tasks and takes no more", MaxOpen)
	}
	t = Task{ // only what a submission may say
		ID: t.ID, Workspace: t.Workspace, Stub: t.Stub, Name: t.Name, ArgsRef: t.ArgsRef, Headless: t.Headless,
		CallbackURL: t.CallbackURL, Submitted: stamp(j.now()), Status: Pending,
		Size: int64(len(in.Spec)+len(in.Args)) + overhead,
	}
	b := j.db.NewBatch()
	defer func() { _ = b.Close() }()
	err := putTask(b, t)
	for _, p := range []struct {
		k byte
		v []byte
	}{{'i', in.Spec}, {'a', in.Args}} {
		if err == nil && len(p.v) > 0 {
			err = b.Set(key(p.k, t.ID), p.v, nil)
		}
	}
	if err == nil {
		err = b.Set(timeKey('s', t.Submitted, t.ID), nil, nil)
	}
	if err == nil {
		err = b.Set(key('u', t.ID), nil, nil)
	}
	if err == nil {
		err = b.Commit(pebble.Sync)
	}
	if err != nil {
		j.release()
		return writeErr(t.ID, err)
	}
	j.remember(t)
	return nil
}

// overhead is what a task costs beside its large parts, roughly.
const overhead = 1 << 10

func (j *Journal) reserve() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.open >= MaxOpen {
		return false
	}
	j.open++
	return true
}

func (j *Journal) release() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.open--
}

// Attempt records that the task is about to run on worker and gives the
// attempt's fence, higher than every one given before. A headless task's
// attempt is synced.
func (j *Journal) Attempt(ctx context.Context, id, worker string) (fence uint64, err error) {
	err = j.change(ctx, id, func(t *Task, b *pebble.Batch) (bool, error) {
		if t.Status.Ended() {
			return false, endedErr(t)
		}
		fence = j.epoch<<32 | uint64(j.seq.Add(1))
		t.Status, t.Worker, t.Fence, t.Started = Running, clip(worker), fence, stamp(j.now())
		t.Attempts++
		return t.Headless, nil
	})
	return fence, err
}

// Retry records that the attempt with this fence failed and another will be
// made. lost tells that its node was lost, which does not count against the
// user's retries. It is not synced: what is lost with it is only the reason.
func (j *Journal) Retry(ctx context.Context, id string, fence uint64, code fault.Code, text string, lost bool) error {
	return j.change(ctx, id, func(t *Task, b *pebble.Batch) (bool, error) {
		if err := current(t, fence); err != nil {
			return false, err
		}
		t.Status, t.ErrorCode, t.ErrorText = Retry, code, clip(text)
		if lost {
			t.Lost++
		}
		return false, nil
	})
}

// Done records the end and returns when it is synced. fence is that of the
// attempt that ended it; 0 ends a task whatever runs (cancel, expiry, no
// attempt made). Exactly one Done per task succeeds; the others get Conflict.
func (j *Journal) Done(ctx context.Context, id string, fence uint64, o Outcome) error {
	if !o.Status.Ended() {
		return fault.Newf(fault.Internal, "task cannot end as %s", o.Status)
	}
	if len(o.Result) > MaxInline || len(o.ResultRef) > maxText {
		return fault.Newf(fault.TooLarge, "result of %d bytes does not fit inline, at most %d do", len(o.Result), MaxInline)
	}
	var size int64
	err := j.change(ctx, id, func(t *Task, b *pebble.Batch) (bool, error) {
		if fence != 0 {
			if err := current(t, fence); err != nil {
				return false, err
			}
		} else if t.Status.Ended() {
			return false, endedErr(t)
		}
		t.Status, t.ExitCode, t.ErrorCode, t.ErrorText = o.Status, o.ExitCode, o.ErrorCode, clip(o.ErrorText)
		t.ResultRef, t.Ended = o.ResultRef, stamp(j.now())
		if o.Worker != "" {
			t.Worker = clip(o.Worker)
		}
		if !o.Started.IsZero() {
			t.Started = stamp(o.Started)
		}
		t.Size += int64(len(o.Result))
		size = t.Size
		if len(o.Result) > 0 {
			if err := b.Set(key('r', id), o.Result, nil); err != nil {
				return false, err
			}
		}
		if err := b.Delete(key('u', id), nil); err != nil {
			return false, err
		}
		return true, b.Set(timeKey('d', t.Ended, id), binary.BigEndian.AppendUint64(nil, uint64(size)), nil)
	})
	if err != nil {
		return err
	}
	j.mu.Lock()
	j.open--
	j.ended++
	j.bytes += size
	over := j.ended > j.limits.Count || j.bytes > j.limits.Bytes
	j.mu.Unlock()
	if over {
		select {
		case j.full <- struct{}{}:
		default: // it is awake already
		}
	}
	return nil
}

// Ack records that the client has the result. It is not synced: losing it
// means offering the result again.
func (j *Journal) Ack(ctx context.Context, id string) error {
	return j.change(ctx, id, func(t *Task, b *pebble.Batch) (bool, error) {
		if !t.Status.Ended() {
			return false, fault.New(fault.Conflict, "task "+id+" has not ended", "")
		}
		t.Acked = true
		return false, nil
	})
}

// change rewrites a task; fn says whether that must be synced.
func (j *Journal) change(ctx context.Context, id string, fn func(*Task, *pebble.Batch) (bool, error)) error {
	if err := j.enter(); err != nil {
		return err
	}
	defer j.work.Done()
	if err := ctx.Err(); err != nil {
		return fault.From(err)
	}
	mu := j.lock(id)
	mu.Lock()
	defer mu.Unlock()
	t, ok := j.recall(id)
	if !ok {
		var err error
		if t, err = j.task(id); err != nil {
			return err
		}
	}
	b := j.db.NewBatch()
	defer func() { _ = b.Close() }()
	sync, err := fn(&t, b)
	if err != nil {
		return fault.From(err)
	}
	if err := putTask(b, t); err != nil {
		return writeErr(id, err)
	}
	mode := pebble.NoSync
	if sync {
		mode = pebble.Sync
	}
	if err := b.Commit(mode); err != nil {
		j.cool(id)
		return writeErr(id, err)
	}
	j.remember(t)
	return nil
}

// maxHot bounds the unfinished tasks kept in memory, some 600 bytes each:
// reading one back for every change costs more than writing it.
const maxHot = 8192

// remember keeps a task as it was just written, while it is unfinished. The
// task's lock is held; so it is for cool and recall.
func (j *Journal) remember(t Task) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if t.Status.Ended() {
		delete(j.hot, t.ID)
		return
	}
	if _, ok := j.hot[t.ID]; ok || len(j.hot) < maxHot {
		j.hot[t.ID] = t
	}
}

func (j *Journal) cool(id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.hot, id)
}

func (j *Journal) recall(id string) (Task, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	t, ok := j.hot[id]
	return t, ok
}

func putTask(b *pebble.Batch, t Task) error {
	v, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return b.Set(key('t', t.ID), v, nil)
}

func current(t *Task, fence uint64) error {
	if t.Status.Ended() {
		return endedErr(t)
	}
	if t.Fence != fence || t.Status != Running {
		return fault.Newf(fault.Conflict, "attempt of task %s is not the current one", t.ID)
	}
	return nil
}

func endedErr(t *Task) error {
	return fault.Newf(fault.Conflict, "task %s has ended as %s", t.ID, t.Status)
}

func writeErr(id string, err error) error {
	return fault.Wrap(fault.Internal, err, "write task "+id, "see the node's log: the disk may be full or damaged")
}

func check(t Task, in Input) error {
	switch {
	case t.ID == "" || t.Workspace == "":
		return fault.New(fault.Invalid, "a task needs an id and a workspace", "")
	case len(t.ID) > 128 || len(t.Workspace) > 128:
		return fault.New(fault.TooLarge, "task or workspace id is longer than 128 bytes", "")
	case len(in.Spec) > MaxInline || len(in.Args) > MaxInline:
		return fault.Newf(fault.TooLarge, "arguments of %d bytes do not fit inline, at most %d do", len(in.Args), MaxInline)
	}
	for _, s := range []string{t.Stub, t.Name, t.ArgsRef, t.CallbackURL} {
		if len(s) > maxText {
			return fault.Newf(fault.TooLarge, "a name, reference or callback URL is longer than %d bytes", maxText)
		}
	}
	return nil
}

// clip bounds texts that come from peers; the whole one is in the task's log.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	const mark = " …"
	return s[:maxText-len(mark)] + mark
}

// stamp is a time as the journal keeps it.
func stamp(t time.Time) time.Time { return time.UnixMilli(t.UnixMilli()).UTC() }

package journal

import (
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"

	"github.com/beammesh/beammesh/proto/fault"
)

// Get gives one task.
func (j *Journal) Get(id string) (Task, error) {
	if err := j.enter(); err != nil {
		return Task{}, err
	}
	defer j.work.Done()
	return j.task(id)
}

// Input gives what was submitted with the task.
func (j *Journal) Input(id string) (Input, error) {
	if err := j.enter(); err != nil {
		return Input{}, err
	}
	defer j.work.Done()
	if _, err := j.task(id); err != nil {
		return Input{}, err
	}
	spec, err := j.read(key('i', id))
	if err != nil {
		return Input{}, fault.Wrap(fault.Internal, err, "read task "+id, "the disk may be damaged")
	}
	args, err := j.read(key('a', id))
	if err != nil {
		return Input{}, fault.Wrap(fault.Internal, err, "read task "+id, "the disk may be damaged")
	}
	return Input{Spec: spec, Args: args}, nil
}

// Result gives the inline result of an ended task; nil when it has none or it
// went by reference.
func (j *Journal) Result(id string) ([]byte, error) {
	if err := j.enter(); err != nil {
		return nil, err
	}
	defer j.work.Done()
	if _, err := j.task(id); err != nil {
		return nil, err
	}
	r, err := j.read(key('r', id))
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "read task "+id, "the disk may be damaged")
	}
	return r, nil
}

// Unfinished calls fn for every task that has not ended, in no stated order,
// until it returns false. It is what a node does first after a restart; tasks
// submitted meanwhile may be missed. fn may call the journal.
func (j *Journal) Unfinished(fn func(Task) bool) error {
	if err := j.enter(); err != nil {
		return err
	}
	defer j.work.Done()
	err := j.scan('u', false, nil, func(k, _ []byte) (bool, error) {
		t, err := j.task(string(k))
		if fault.CodeOf(err) == fault.NotFound {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		return t.Status.Ended() || fn(t), nil
	})
	if err != nil {
		return fault.From(err)
	}
	return nil
}

// Query selects tasks for a listing, newest submission first. Zero fields
// match everything.
type Query struct {
	Workspace string
	Stub      string
	Statuses  []Status
	IDPrefix  string // of the task id
	Name      string // part of the function's name
	After     string // a previous Next; "" starts
	Limit     int    // 0 or above MaxPage = MaxPage
}

func (q Query) match(t Task) bool {
	return (q.Workspace == "" || q.Workspace == t.Workspace) &&
		(q.Stub == "" || q.Stub == t.Stub) &&
		(len(q.Statuses) == 0 || slices.Contains(q.Statuses, t.Status)) &&
		strings.HasPrefix(t.ID, q.IDPrefix) && strings.Contains(t.Name, q.Name)
}

// maxScan bounds the tasks that one List looks at, so that a filter which
// matches nothing does not read the whole journal in one call.
const maxScan = 10_000

// List gives tasks and the cursor for the next page; "" = that was all. A page
// may be short although more follow.
func (j *Journal) List(q Query) (tasks []Task, next string, err error) {
	if err := j.enter(); err != nil {
		return nil, "", err
	}
	defer j.work.Done()
	if q.Limit <= 0 || q.Limit > MaxPage {
		q.Limit = MaxPage
	}
	var after []byte
	if q.After != "" {
		if after, err = hex.DecodeString(q.After); err != nil || len(after) < 9 {
			return nil, "", fault.New(fault.Invalid, "cursor of the task list is malformed", "start the listing again")
		}
	}
	seen := 0
	err = j.scan('s', true, after, func(k, _ []byte) (bool, error) {
		if seen++; len(tasks) == q.Limit || seen > maxScan {
			return false, nil // next is the key before this one
		}
		next = hex.EncodeToString(k)
		v, err := j.read(key('t', string(k[8:])))
		if err != nil || v == nil { // pruned meanwhile
			return err == nil, err
		}
		var t Task
		if err := json.Unmarshal(v, &t); err != nil {
			return false, err
		}
		if q.match(t) {
			tasks = append(tasks, t)
		}
		return true, nil
	})
	if err != nil {
		return nil, "", fault.Wrap(fault.Internal, err, "list tasks", "the disk may be damaged")
	}
	if len(tasks) < q.Limit && seen <= maxScan {
		next = ""
	}
	return tasks, next, nil
}

// Stats is for health and status pages.
type Stats struct {
	Open, Ended int
	EndedBytes  int64
}

// Stats gives the numbers of the moment.
func (j *Journal) Stats() Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	return Stats{j.open, j.ended, j.bytes}
}

package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/beammesh/beammesh/node/journal"
	"github.com/beammesh/beammesh/node/owner"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"google.golang.org/protobuf/proto"
)

// taskStore joins the owner to its journal. What is too large for the journal
// lies beside it, one durable file per hash.
type taskStore struct {
	j     *journal.Journal
	blobs string

	mu    sync.Mutex
	bytes int64     // of blobs, about
	swept time.Time // when they were looked at last
}

const (
	// blobAge is how long the journal keeps ended tasks.
	blobAge = 24 * time.Hour
	// maxBlobBytes bounds the blobs, except the arguments of open tasks; half of
	// it is left when it is passed.
	maxBlobBytes = 8 << 30
	// sweepEvery is how often their age is looked at.
	sweepEvery = time.Hour
)

var _ owner.Journal = (*taskStore)(nil)

var blobName = regexp.MustCompile(`^[0-9a-f]{64}$`)

// spec is the part of a task record that the journal does not look into.
type spec struct {
	Format string `json:"format"`
}

func openTaskStore(dir string, o journal.Options) (*taskStore, error) {
	s := &taskStore{blobs: filepath.Join(dir, "blobs")}
	if err := os.MkdirAll(s.blobs, 0o700); err != nil {
		return nil, fmt.Errorf("make journal folder: %w", err)
	}
	var err error
	if s.j, err = journal.Open(filepath.Join(dir, "log"), o); err != nil {
		return nil, err
	}
	s.swept = time.Now()
	s.sweep(blobAge)
	return s, nil
}

// sweep removes blobs older than anything the journal keeps of ended tasks, and
// the oldest beyond maxBlobBytes. Arguments of open tasks stay.
func (s *taskStore) sweep(age time.Duration) {
	open := map[string]bool{}
	_ = s.j.Unfinished(func(t journal.Task) bool {
		open[t.ArgsRef] = true
		return true
	})
	entries, err := os.ReadDir(s.blobs)
	if err != nil {
		return
	}
	var infos []os.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			infos = append(infos, info)
		}
	}
	slices.SortFunc(infos, func(a, b os.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	var kept int64
	for _, info := range infos {
		old := time.Since(info.ModTime()) > age || kept+info.Size() > maxBlobBytes/2
		if !open[info.Name()] && old && os.Remove(filepath.Join(s.blobs, info.Name())) == nil {
			continue
		}
		kept += info.Size()
	}
	s.mu.Lock()
	s.bytes = kept
	s.mu.Unlock()
}

// grown counts a new blob and sweeps when it is time.
func (s *taskStore) grown(bytes int) {
	s.mu.Lock()
	s.bytes += int64(bytes)
	due := s.bytes > maxBlobBytes || time.Since(s.swept) > sweepEvery
	if due {
		s.swept = time.Now()
	}
	s.mu.Unlock()
	if due {
		s.sweep(blobAge)
	}
}

func (s *taskStore) put(b []byte) (ref string, err error) {
	sum := sha256.Sum256(b)
	ref = hex.EncodeToString(sum[:])
	if err := writeDurably(filepath.Join(s.blobs, ref), b, 0o600); err != nil {
		return "", fmt.Errorf("keep large value: %w", err)
	}
	s.grown(len(b))
	return ref, nil
}

func (s *taskStore) get(ref string) ([]byte, error) {
	if !blobName.MatchString(ref) {
		return nil, fmt.Errorf("read large value: bad name %q", ref)
	}
	b, err := os.ReadFile(filepath.Join(s.blobs, ref))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.Wrap(fault.NotFound, err, "the value is no longer kept", "large arguments and results are kept for a day")
	}
	if err != nil {
		return nil, fmt.Errorf("read large value: %w", err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != ref {
		return nil, fmt.Errorf("read large value %s: damaged", ref)
	}
	return b, nil
}

// Submitted implements owner.Journal.
func (s *taskStore) Submitted(ctx context.Context, r owner.TaskRecord) error {
	t := journal.Task{ID: r.ID, Workspace: r.Workspace, Stub: r.StubID, Name: r.StubName, Headless: r.Headless,
		CallbackURL: r.CallbackURL, Submitted: time.UnixMicro(r.CreatedUnixMicro), Status: journal.Pending}
	sp, err := json.Marshal(spec{Format: r.Format})
	if err != nil {
		return err
	}
	in := journal.Input{Spec: sp, Args: r.Args}
	if len(r.Args)+len(sp) > journal.MaxInline {
		if t.ArgsRef, err = s.put(r.Args); err != nil {
			return err
		}
		in.Args = nil
	}
	return s.j.Submit(ctx, t, in)
}

// Attempted implements owner.Journal.
func (s *taskStore) Attempted(ctx context.Context, task string, a owner.AttemptRecord) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	_, err = s.j.Attempt(ctx, task, string(b))
	return err
}

// Ended implements owner.Journal.
func (s *taskStore) Ended(ctx context.Context, task string, e owner.EndRecord) error {
	o := journal.Outcome{Status: journal.Status(e.Status), Result: e.Outcome}
	if e.StartedUnixMicro != 0 {
		o.Started = time.UnixMicro(e.StartedUnixMicro)
	}
	if e.Node != "" {
		// An attached task's attempts are not journalled one by one: lists say
		// from here where it ran.
		b, err := json.Marshal(owner.AttemptRecord{Number: e.Attempt, Lease: e.Lease, Node: e.Node})
		if err != nil {
			return err
		}
		o.Worker = string(b)
	}
	if len(e.Outcome) > journal.MaxInline {
		ref, err := s.put(e.Outcome)
		if err != nil {
			return err
		}
		o.Result, o.ResultRef = nil, ref
	}
	err := s.j.Done(ctx, task, 0, o)
	if fault.CodeOf(err) == fault.Conflict {
		return nil // it was ended before a crash, by the same answer
	}
	return err
}

// Get implements owner.Journal.
func (s *taskStore) Get(id string) (owner.StoredTask, bool, error) {
	t, err := s.j.Get(id)
	if fault.CodeOf(err) == fault.NotFound {
		return owner.StoredTask{}, false, nil
	}
	if err != nil {
		return owner.StoredTask{}, false, err
	}
	st := stored(t)
	if st.End != nil {
		if st.End.Outcome, err = s.outcome(t); err != nil {
			return st, true, err
		}
		out := new(beamv1.Outcome)
		if proto.Unmarshal(st.End.Outcome, out) == nil {
			st.End.Node, st.End.Lease, st.End.Attempt = out.NodeId, out.ContainerId, out.Attempt
		}
	}
	return st, true, nil
}

func (s *taskStore) outcome(t journal.Task) ([]byte, error) {
	if t.ResultRef != "" {
		return s.get(t.ResultRef)
	}
	b, err := s.j.Result(t.ID)
	if fault.CodeOf(err) == fault.NotFound {
		return nil, nil
	}
	return b, err
}

// List implements owner.Journal.
func (s *taskStore) List(workspace string, limit int) ([]owner.StoredTask, error) {
	tasks, _, err := s.j.List(journal.Query{Workspace: workspace, Limit: limit})
	if err != nil {
		return nil, err
	}
	out := make([]owner.StoredTask, len(tasks))
	for i, t := range tasks {
		out[i] = stored(t)
	}
	return out, nil
}

// Open implements owner.Journal.
func (s *taskStore) Open() ([]owner.StoredTask, error) {
	var out []owner.StoredTask
	err := s.j.Unfinished(func(t journal.Task) bool {
		st := stored(t)
		in, err := s.j.Input(t.ID)
		if err == nil && t.ArgsRef != "" {
			in.Args, err = s.get(t.ArgsRef)
		}
		var sp spec
		if err == nil {
			err = json.Unmarshal(in.Spec, &sp)
		}
		// One that cannot be read must not keep the node from starting.
		st.Args, st.Format, st.Damaged = in.Args, sp.Format, err
		out = append(out, st)
		return true
	})
	return out, err
}

func stored(t journal.Task) owner.StoredTask {
	st := owner.StoredTask{TaskRecord: owner.TaskRecord{ID: t.ID, Workspace: t.Workspace, StubID: t.Stub, StubName: t.Name,
		CallbackURL: t.CallbackURL, Headless: t.Headless, CreatedUnixMicro: t.Submitted.UnixMicro()}}
	var a owner.AttemptRecord
	if t.Worker != "" && json.Unmarshal([]byte(t.Worker), &a) == nil {
		st.Attempt = &a
		st.Attempt.Number = max(a.Number, 1)
	}
	if t.Status.Ended() {
		st.End = &owner.EndRecord{Status: string(t.Status), EndedUnixMicro: t.Ended.UnixMicro()}
		if !t.Started.IsZero() {
			st.End.StartedUnixMicro = t.Started.UnixMicro()
		}
		if st.Attempt != nil {
			st.End.Node, st.End.Lease, st.End.Attempt = a.Node, a.Lease, a.Number
		}
	}
	return st
}

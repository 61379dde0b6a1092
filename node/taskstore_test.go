package node

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/beammesh/beammesh/node/journal"
	"github.com/beammesh/beammesh/node/owner"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"google.golang.org/protobuf/proto"
)

func openStore(t *testing.T, dir string) *taskStore {
	t.Helper()
	s, err := openTaskStore(dir, journal.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.j.Close() })
	return s
}

func taskRecord(id string, args []byte) owner.TaskRecord {
	return owner.TaskRecord{ID: id, Workspace: "ws", StubID: "stub", StubName: "f", Format: "pickle", Args: args, Headless: true,
		CreatedUnixMicro: time.Now().UnixMicro()}
}

func TestTaskStoreKeepsTasks(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	small, large := []byte("small"), bytes.Repeat([]byte("large"), 200_000)
	at := owner.AttemptRecord{Number: 2, Lease: "offer-1", Offer: "offer", Node: "node", Epoch: 7}
	for id, args := range map[string][]byte{"t-small": small, "t-large": large} {
		if err := s.Submitted(t.Context(), taskRecord(id, args)); err != nil {
			t.Fatal(err)
		}
		if err := s.Attempted(t.Context(), id, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.j.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	open, err := s.Open()
	if err != nil || len(open) != 2 {
		t.Fatalf("%d tasks, %v", len(open), err)
	}
	for _, st := range open {
		want := small
		if st.ID == "t-large" {
			want = large
		}
		if !bytes.Equal(st.Args, want) || st.Format != "pickle" || !st.Headless || st.Damaged != nil || st.Attempt == nil || *st.Attempt != at || st.End != nil {
			t.Errorf("%s: %d bytes, attempt %+v, damaged %v", st.ID, len(st.Args), st.Attempt, st.Damaged)
		}
	}
	for id, result := range map[string][]byte{"t-small": small, "t-large": large} {
		out, err := proto.Marshal(&beamv1.Outcome{TaskId: id, Status: owner.Complete, Result: result, NodeId: "node", ContainerId: "offer-1", Attempt: 2})
		if err != nil {
			t.Fatal(err)
		}
		e := owner.EndRecord{Status: owner.Complete, Outcome: out, EndedUnixMicro: time.Now().UnixMicro()}
		if err := s.Ended(t.Context(), id, e); err != nil {
			t.Fatal(err)
		}
		if err := s.Ended(t.Context(), id, e); err != nil {
			t.Errorf("the same end again: %v", err)
		}
		st, ok, err := s.Get(id)
		if err != nil || !ok || st.End == nil || !bytes.Equal(st.End.Outcome, out) || st.End.Node != "node" || st.End.Attempt != 2 {
			t.Errorf("%s: %v %v %+v", id, ok, err, st.End)
		}
	}
	if open, err := s.Open(); err != nil || len(open) != 0 {
		t.Errorf("%d are open, %v", len(open), err)
	}
	if _, ok, err := s.Get("nobody"); ok || err != nil {
		t.Errorf("nobody: %v, %v", ok, err)
	}
	if l, err := s.List("ws", 10); err != nil || len(l) != 2 {
		t.Errorf("%d are listed, %v", len(l), err)
	}
	if l, err := s.List("another", 10); err != nil || len(l) != 0 {
		t.Errorf("%d of another workspace, %v", len(l), err)
	}
}

// The attempts of attached tasks are not journalled; where they ran and when
// they started is listed all the same, also in the node's next life.
func TestTaskStoreListsWhereAttachedTasksRan(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	r := taskRecord("attached", []byte("args"))
	r.Headless = false
	cut := taskRecord("cut-off", []byte("args"))
	cut.Headless = false
	for _, r := range []owner.TaskRecord{r, cut} {
		if err := s.Submitted(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	started := time.UnixMilli(r.CreatedUnixMicro/1000 + 1234)
	e := owner.EndRecord{Status: owner.Complete, Outcome: []byte{}, StartedUnixMicro: started.UnixMicro(), EndedUnixMicro: time.Now().UnixMicro(),
		Node: "node", Lease: "offer-1", Attempt: 3}
	if err := s.Ended(t.Context(), "attached", e); err != nil {
		t.Fatal(err)
	}
	if err := s.Ended(t.Context(), "cut-off", owner.EndRecord{Status: owner.Cancelled}); err != nil {
		t.Fatal(err)
	}
	if err := s.j.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	l, err := s.List("ws", 10)
	if err != nil || len(l) != 2 {
		t.Fatalf("%d are listed, %v", len(l), err)
	}
	for _, st := range l {
		if st.ID == "cut-off" {
			if st.End == nil || st.End.Node != "" || st.End.StartedUnixMicro != 0 {
				t.Errorf("one of which nothing is known ended as %+v", st.End)
			}
			continue
		}
		if st.End == nil || st.End.Node != "node" || st.End.Lease != "offer-1" || st.End.Attempt != 3 || st.End.StartedUnixMicro != started.UnixMicro() {
			t.Errorf("listed with end %+v, want %+v", st.End, e)
		}
	}
}

// A damaged or missing blob is that task's trouble, not the node's.
func TestTaskStoreDamage(t *testing.T) {
	s := openStore(t, t.TempDir())
	for i, id := range []string{"whole", "flipped", "gone"} {
		if err := s.Submitted(t.Context(), taskRecord(id, bytes.Repeat([]byte{byte(i)}, 1<<20))); err != nil {
			t.Fatal(err)
		}
	}
	ref := func(id string) string {
		task, err := s.j.Get(id)
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(s.blobs, task.ArgsRef)
	}
	b, err := os.ReadFile(ref("flipped"))
	if err != nil {
		t.Fatal(err)
	}
	b[1000] ^= 1
	if err := os.WriteFile(ref("flipped"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(ref("gone")); err != nil {
		t.Fatal(err)
	}
	open, err := s.Open()
	if err != nil || len(open) != 3 {
		t.Fatalf("%d tasks, %v", len(open), err)
	}
	for _, st := range open {
		if (st.Damaged == nil) != (st.ID == "whole") {
			t.Errorf("%s: %v", st.ID, st.Damaged)
		}
	}
	for _, bad := range []string{"", "../x", "zz"} {
		if _, err := s.get(bad); err == nil {
			t.Errorf("read a value called %q", bad)
		}
	}
}

func TestTaskStoreSweep(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	if err := s.Submitted(t.Context(), taskRecord("open", bytes.Repeat([]byte("o"), 1<<20))); err != nil {
		t.Fatal(err)
	}
	old, err := s.put(bytes.Repeat([]byte("old"), 100))
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := s.put(bytes.Repeat([]byte("fresh"), 100))
	if err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-blobAge - time.Hour)
	entries, err := os.ReadDir(s.blobs)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries { // the arguments of the open task are old as well
		if e.Name() != fresh {
			if err := os.Chtimes(filepath.Join(s.blobs, e.Name()), past, past); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.swept = past // an hour has passed
	if _, err := s.put([]byte("trigger")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.get(old); fault.CodeOf(err) != fault.NotFound {
		t.Errorf("the old value: %v", err)
	}
	if _, err := s.get(fresh); err != nil {
		t.Errorf("the fresh value: %v", err)
	}
	if open, err := s.Open(); err != nil || len(open) != 1 || open[0].Damaged != nil {
		t.Errorf("the open task: %v, %v", open, err)
	}
}

package call

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/beammesh/beammesh/node/owner"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
)

// unread makes a map with n items under way.
func unread(t *testing.T, sh *shelf, n int) *calls {
	t.Helper()
	c := newCalls("m", "ws", "stub", false, "", n, sh)
	c.expireAfter(time.Hour, func() {})
	if _, _, err := c.take(0, make([][]byte, n), true); err != nil {
		t.Fatal(err)
	}
	c.last()
	if err := c.attach(0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

func result(i uint64, bytes int) *beamv1.Outcome {
	b := make([]byte, bytes)
	copy(b, fmt.Sprint(i))
	return &beamv1.Outcome{TaskId: fmt.Sprint("task-", i), Status: owner.Complete, Result: b}
}

// readAll reads a map to its end.
func readAll(t *testing.T, c *calls) (out []*beamv1.ResultEvent) {
	t.Helper()
	for {
		evs, err := c.next(t.Context(), uint64(len(out)), patience)
		if err != nil || len(evs) == 0 {
			t.Fatalf("after %d events: %v, %v", len(out), evs, err)
		}
		size := 0
		for _, ev := range evs {
			size += sizeOf(ev)
		}
		if len(evs) > 1 && size > batchBytes {
			t.Errorf("%d bytes in one batch", size)
		}
		out = append(out, evs...)
		c.sent(uint64(len(out)))
		if out[len(out)-1].GetEnd() {
			return out
		}
	}
}

func files(t *testing.T, dir string) int {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// Results that nobody reads take a bounded part of memory, of a map and of a
// node; the rest lies in files until it is read, and nothing is left then.
func TestUnreadResultsAreBoundedInMemory(t *testing.T) {
	const items, size = 200, 1 << 20
	sh := newShelf(t.TempDir())
	sh.maxMemory, sh.mapMemory = 24<<20, 16<<20
	maps := []*calls{unread(t, sh, items), unread(t, sh, items)}
	for i := range uint64(items) {
		for _, c := range maps {
			c.finish(i, "", result(i, size))
		}
	}
	for _, c := range maps {
		if c.memory > sh.mapMemory {
			t.Errorf("a map keeps %d bytes in memory, at most %d are allowed", c.memory, sh.mapMemory)
		}
	}
	if over := 2 * 1 << 10; sh.memory > sh.maxMemory+over { // the end events are kept in any case
		t.Errorf("the node keeps %d bytes in memory, at most %d are allowed", sh.memory, sh.maxMemory)
	}
	if n := files(t, sh.dir); n < 2*items-sh.maxMemory/size {
		t.Errorf("%d files", n)
	}
	for _, c := range maps {
		evs := readAll(t, c)
		if len(evs) != items+1 {
			t.Fatalf("%d events", len(evs))
		}
		for i, ev := range evs[:items] {
			want := result(ev.Index, size)
			if ev.Event != uint64(i) || ev.GetOutcome().GetTaskId() != want.TaskId || !bytes.Equal(ev.GetOutcome().GetResult(), want.Result) {
				t.Fatalf("event %d is %d, of %s, with %d bytes", i, ev.Event, ev.GetOutcome().GetTaskId(), len(ev.GetOutcome().GetResult()))
			}
		}
		c.close()
	}
	if sh.memory != 0 || sh.disk != 0 || files(t, sh.dir) != 0 {
		t.Errorf("%d bytes in memory, %d on disk and %d files are left", sh.memory, sh.disk, files(t, sh.dir))
	}
}

// With no room on disk either a result waits until something was read.
func TestUnreadResultsWaitForRoom(t *testing.T) {
	sh := newShelf("")
	sh.mapMemory = 2 << 20
	c := unread(t, sh, 3)
	c.finish(0, "", result(0, 1<<20))
	done := make(chan uint64, 2)
	for i := range uint64(2) {
		go func() { c.finish(i+1, "", result(i+1, 1<<20)); done <- i }()
	}
	select {
	case i := <-done:
		t.Fatalf("result %d found room", i+1)
	case <-time.After(20 * time.Millisecond):
	}
	if evs := readAll(t, c); len(evs) != 4 {
		t.Errorf("%d events", len(evs))
	}
	<-done
	<-done
}

// A client that takes nothing does not hold results for ever: the item ends with
// an error that says why.
func TestUnreadResultIsGivenUp(t *testing.T) {
	sh := newShelf("")
	sh.mapMemory = 2 << 20
	c := unread(t, sh, 2)
	c.stall = 10 * time.Millisecond
	c.finish(0, "", result(0, 1<<20))
	c.finish(1, "", result(1, 1<<20))
	evs := readAll(t, c)
	if len(evs) != 3 || evs[0].GetOutcome().GetStatus() != owner.Complete {
		t.Fatalf("%d events", len(evs))
	}
	o := evs[1].GetOutcome()
	if o.GetStatus() != owner.Error || o.GetError().GetCode() != string(fault.NoCapacity) || o.GetError().GetHint() == "" || len(o.Result) != 0 || o.TaskId != "task-1" {
		t.Errorf("the result without room ended as %v", o)
	}
}

func TestUnreadResultOnAFullDisk(t *testing.T) {
	sh := newShelf(t.TempDir() + "/not-there")
	sh.mapMemory = 1 << 10
	c := unread(t, sh, 1)
	c.finish(0, "", result(0, 1<<20))
	if o := readAll(t, c)[0].GetOutcome(); o.GetStatus() != owner.Error || o.GetError().GetCode() != string(fault.Internal) {
		t.Errorf("ended as %v", o)
	}
	if sh.disk != 0 || c.disk != 0 {
		t.Errorf("%d bytes are counted", sh.disk)
	}
}

// A map that ends while a result waits for room lets it go.
func TestClosedMapLetsWaitingResultsGo(t *testing.T) {
	sh := newShelf("")
	sh.mapMemory = 1 << 10
	c := unread(t, sh, 1)
	done := make(chan struct{})
	go func() { c.finish(0, "", result(0, 1<<20)); close(done) }()
	c.close()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("it waits on")
	}
	if sh.memory != 0 {
		t.Errorf("%d bytes are counted", sh.memory)
	}
}

package marketlog_test

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/beammesh/beammesh/node/marketlog"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/record"
)

func read(t *testing.T, dir string) (rs []record.Record, bytesOnDisk int64) {
	t.Helper()
	names, err := marketlog.Segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		bytesOnDisk += int64(len(b))
		for line := range bytes.Lines(b) {
			r, err := record.Parse(line)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			rs = append(rs, r)
		}
	}
	return rs, bytesOnDisk
}

func open(t *testing.T, dir string, bytes int64) *marketlog.Log {
	t.Helper()
	l, err := marketlog.Open(dir, marketlog.Options{Bytes: bytes})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func up(i int) record.Record {
	return record.Record{At: time.Duration(i), Machine: record.Owner, Event: market.NodeUp{Node: scheduler.NodeID(fmt.Sprint("box", i))}}
}

func TestEverythingIsThereAfterClose(t *testing.T) {
	dir := t.TempDir()
	for life := range 2 {
		l := open(t, dir, marketlog.MinBytes)
		for i := range 100 {
			l.Record(up(life*100 + i))
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		// The name of a segment has the millisecond of its life's begin.
		time.Sleep(2 * time.Millisecond)
	}
	rs, _ := read(t, dir)
	if len(rs) != 200 {
		t.Fatalf("got %d records", len(rs))
	}
	for i, r := range rs {
		if r.At != time.Duration(i) {
			t.Fatalf("record %d is of %d", i, r.At)
		}
	}
}

// TestOldestGoFirst: whatever is recorded, the journal stays below its bound, and
// what is left is the newest, or a gap says how many are missing.
func TestOldestGoFirst(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, marketlog.MinBytes)
	const n = 60_000 // of about 60 bytes each
	for i := range n {
		l.Record(up(i))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	rs, size := read(t, dir)
	if size > marketlog.MinBytes {
		t.Errorf("%d bytes on disk, bound %d", size, int64(marketlog.MinBytes))
	}
	if len(rs) == n {
		t.Error("nothing was dropped: the test proves nothing")
	}
	last := rs[len(rs)-1]
	if _, gap := last.Event.(record.Gap); !gap && last.At != n-1 {
		t.Errorf("the last record is of %d", last.At)
	}
}

func TestTooSmallABoundIsRefused(t *testing.T) {
	if _, err := marketlog.Open(t.TempDir(), marketlog.Options{Bytes: 10}); err == nil {
		t.Error("accepted")
	}
}

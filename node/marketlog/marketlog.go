// Package marketlog keeps the market's journal of a node on disk: the records of
// package scheduler/record, in segments of JSON lines below a bound.
//
//	l, err := marketlog.Open(dir, marketlog.Options{Bytes: 64 << 20})
//	l.Record(r)  // never blocks
//	l.Close()
//
// It is there to be looked at and replayed ("beam sim replay"), not to recover
// from: nothing is fsynced, and what the disk cannot take is left out and counted
// in a Gap record. The oldest segment goes when a new one would exceed the bound.
// Arguments, results and error texts of tasks are not in it.
package marketlog

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/beammesh/beammesh/scheduler/record"
)

const (
	// maxQueued bounds the records that wait to be written.
	maxQueued = 16384
	// segments is how many files share the bound.
	segments = 4
	// flushAfter is how long a record may wait in memory.
	flushAfter = time.Second
	prefix     = "market-"
	suffix     = ".jsonl"
)

// MinBytes is the least a journal may be bounded to.
const MinBytes = 1 << 20

// Options of a Log.
type Options struct {
	Bytes int64 // of all segments together, at least MinBytes
	Log   *slog.Logger
}

// Log is the journal of one node. Record may be called from any goroutine.
type Log struct {
	dir   string
	max   int64 // of one segment
	log   *slog.Logger
	queue chan record.Record
	lost  atomic.Int64
	end   chan struct{}
	done  chan struct{}
	once  sync.Once

	// Of the writing goroutine alone.
	file    *os.File
	out     *bufio.Writer
	size    int64
	started int64 // in the names of this life's segments
	number  int
	failed  bool // said once
	buf     []byte
}

// Open makes dir and begins a new segment there.
func Open(dir string, o Options) (*Log, error) {
	if o.Bytes < MinBytes {
		return nil, fmt.Errorf("market journal: a bound of %d bytes is below %d", o.Bytes, MinBytes)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make market journal: %w", err)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l := &Log{dir: dir, max: o.Bytes / segments, log: o.Log, started: time.Now().UnixMilli(),
		queue: make(chan record.Record, maxQueued), end: make(chan struct{}), done: make(chan struct{})}
	if err := l.rotate(); err != nil {
		return nil, err
	}
	go l.run()
	return l, nil
}

// Record queues r. It does not block; when the queue is full r is counted as lost.
func (l *Log) Record(r record.Record) {
	select {
	case l.queue <- r:
	default:
		l.lost.Add(1)
	}
}

// Close writes what is queued. What is recorded after it is lost.
func (l *Log) Close() error {
	l.once.Do(func() { close(l.end) })
	<-l.done
	return nil
}

func (l *Log) run() {
	defer close(l.done)
	flush := time.NewTimer(flushAfter)
	defer flush.Stop()
	armed := true
	for {
		select {
		case r := <-l.queue:
			l.write(r)
			if !armed {
				flush.Reset(flushAfter)
				armed = true
			}
		case <-flush.C:
			armed = false
			l.check(l.out.Flush())
		case <-l.end:
			for {
				select {
				case r := <-l.queue:
					l.write(r)
					continue
				default:
				}
				break
			}
			l.gap(0)
			l.check(errors.Join(l.out.Flush(), l.file.Close()))
			return
		}
	}
}

// write appends r, behind a Gap if something was lost before it.
func (l *Log) write(r record.Record) {
	// Lost before r: the queue was full then, so everything in it is older.
	if len(l.queue) == 0 {
		l.gap(r.At)
	}
	l.append(&r)
}

func (l *Log) gap(at time.Duration) {
	if n := l.lost.Swap(0); n > 0 {
		l.append(&record.Record{At: at, Event: record.Gap{Lost: n}})
	}
}

func (l *Log) append(r *record.Record) {
	b, err := record.Append(l.buf[:0], r)
	if err != nil {
		l.log.Error("encode market record", "err", err)
		l.lost.Add(1)
		return
	}
	l.buf = b
	if l.size > 0 && l.size+int64(len(b)) > l.max {
		if err := l.rotate(); err != nil {
			l.check(err)
			return
		}
	}
	l.size += int64(len(b))
	_, err = l.out.Write(b)
	l.check(err)
}

// check says the first failure of the disk; the node goes on without a journal.
func (l *Log) check(err error) {
	if err != nil && !l.failed {
		l.failed = true
		l.log.Warn("the market journal is incomplete from here on", "dir", l.dir, "err", err)
	}
}

// rotate begins the next segment and removes those beyond the bound.
func (l *Log) rotate() error {
	names, err := Segments(l.dir)
	if err != nil {
		return err
	}
	for len(names) >= segments {
		if err := os.Remove(names[0]); err != nil {
			return fmt.Errorf("remove old market journal: %w", err)
		}
		names = names[1:]
	}
	l.number++
	f, err := os.OpenFile(filepath.Join(l.dir, fmt.Sprintf("%s%013d-%06d%s", prefix, l.started, l.number, suffix)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("begin market journal: %w", err)
	}
	if l.file != nil {
		l.check(errors.Join(l.out.Flush(), l.file.Close()))
	}
	l.file, l.out, l.size = f, bufio.NewWriterSize(f, 64<<10), 0
	return nil
}

// Segments lists the files of a journal, oldest first.
func Segments(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list market journal: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && strings.HasSuffix(e.Name(), suffix) {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(names)
	return names, nil
}

// Package kv opens pebble stores the way every durable store of the node wants
// them: small (a lent desktop pays for it), synced, and loud about a broken disk.
//
//	db, err := kv.Open(dir, kv.Options{Logger: log})
//
// A directory that another process holds gives a fault.Conflict; one written by
// a newer or damaged store a fault.Internal that names it. When the disk fails
// under an open store pebble cannot know what is on it, so the process ends
// (Options.Fatal): acknowledged data is read back at the next start.
package kv

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/beammesh/beammesh/proto/fault"
)

// Options of Open. The zero value is right outside tests.
type Options struct {
	Logger *slog.Logger // nil = discard
	FS     vfs.FS       // nil = the real one
	// Fatal is called when the store cannot go on; it must not return. nil = panic.
	Fatal func(msg string)
}

// Store is an open pebble store that owns its directory.
type Store struct {
	*pebble.DB
	lock *pebble.Lock
}

// Open opens or makes the store in dir.
func Open(dir string, o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Fatal == nil {
		o.Fatal = func(msg string) { panic("durable store: " + msg) }
	}
	if err := o.FS.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "make store "+dir, "check the data directory's owner and file system")
	}
	lock, err := pebble.LockDirectory(dir, o.FS)
	if err != nil {
		return nil, fault.Wrap(fault.Conflict, err, "data directory "+dir+" is in use",
			"another node runs on it: stop that one or give this one its own --data")
	}
	cache := pebble.NewCache(8 << 20)
	defer cache.Unref() // the store keeps its own reference
	opts := &pebble.Options{
		FS:                          o.FS,
		Lock:                        lock,
		Cache:                       cache,
		MemTableSize:                4 << 20,
		MemTableStopWritesThreshold: 4,
		MaxOpenFiles:                256,
		FormatMajorVersion:          pebble.FormatNewest,
		Logger:                      logger{o.Logger.With("store", dir), o.Fatal},
	}
	for i := range opts.Levels {
		// Most keys that are looked up are not in most tables: 10 bits a key
		// spare 99 % of those reads.
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	db, err := pebble.Open(dir, opts)
	if err != nil {
		return nil, errors.Join(fault.Wrap(fault.Internal, err, "open store "+dir,
			"the disk may be damaged or full: 'beam node doctor' tests it"), lock.Close())
	}
	return &Store{DB: db, lock: lock}, nil
}

// Close closes the store, then gives its directory free. Call it once, after
// every read and write has returned.
func (s *Store) Close() error { return errors.Join(s.DB.Close(), s.lock.Close()) }

// logger passes pebble's words on. Info is its compaction chatter.
type logger struct {
	log   *slog.Logger
	fatal func(string)
}

func (l logger) Infof(format string, args ...any) {
	l.log.Debug("store", "msg", fmt.Sprintf(format, args...))
}

func (l logger) Errorf(format string, args ...any) {
	l.log.Error("store", "msg", fmt.Sprintf(format, args...))
}

func (l logger) Fatalf(format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	l.log.Error("store cannot go on", "msg", msg)
	l.fatal(msg)
}

// Package blocks keeps content-addressed blocks as plain files.
//
//	s, err := blocks.Open(dir, blocks.Options{FloorBytes: 2 << 30})
//	...
//	err = s.Commit(ctx, root)           // fsync, list root as a whole tree
//	err = s.Pin(ctx, root, "image/abc") // keep it until Unpin
//	st, err := s.GC(ctx, 50<<30, tree.Blocks)
//
// Store has the methods of boxo's Blockstore. A block is written under a
// temporary name and renamed; it is durable after Sync or Commit. A block that
// a power cut tore is found by its hash when it is read, removed, and from then
// on reported as missing, so the next fetch brings it back.
//
// On disk, below the directory given to Open:
//
//	lock                  flock of the one process that may use it
//	format                "1"
//	tmp/                  blocks being written; emptied by Open
//	data/XX/<multihash>   blocks, base32, at most 1024 folders
//	roots/<cid>           complete trees; mtime = last use
//	pins/<cid>~<owner>    pins; owner in base32
//
// Store is safe for concurrent use.
package blocks

import (
	"encoding/base32"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/content"
)

// Options of a Store. Zero fields take the defaults.
type Options struct {
	FloorBytes   int64         // Put gives content.ErrDiskFull when less would be free; default 1 GiB, <0 none
	CacheEntries int           // digests remembered as present; default 262,144 (about 16 MiB)
	OrphanAge    time.Duration // blocks of no tree are collected when older; default 1 h, <0 at once
	VerifyPuts   bool          // hash every block on Put (for writers that are not trusted)
	TrustDisk    bool          // do not hash blocks when they are read
	Log          *slog.Logger

	// Free tells the bytes free on the disk; nil asks the kernel.
	Free func() (int64, error)
}

const (
	defaultFloor = 1 << 30
	defaultCache = 1 << 18
	stripes      = 256
	maxBlockFile = 2 << 20 // boxo's own bound for a block
	maxHashLen   = 128     // so that a file name stays below 255 bytes
)

// key stands for a block in memory: its own digest, or the digest of a foreign
// multihash.
type key = content.Digest

// Store keeps blocks as files.
type Store struct {
	dir     string
	o       Options
	log     *slog.Logger
	lock    *os.File
	tmpSeq  atomic.Uint64
	known   present
	disk    floor
	dirty   dirty
	roots   rootSet
	live    touched
	gcMu    sync.Mutex // one collection at a time
	closed  sync.Once
	damaged atomic.Int64

	// stripe orders Put, Has and removal of one block. Held over at most one
	// block's file operations, never over fsync.
	stripe [stripes]sync.Mutex
}

// Open opens or makes the store in dir. It fails when another process has it
// open.
func Open(dir string, o Options) (*Store, error) {
	if o.FloorBytes == 0 {
		o.FloorBytes = defaultFloor
	}
	if o.CacheEntries <= 0 {
		o.CacheEntries = defaultCache
	}
	if o.OrphanAge == 0 {
		o.OrphanAge = time.Hour
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Free == nil {
		o.Free = func() (int64, error) { return freeBytes(dir) }
	}
	s := &Store{dir: dir, o: o, log: o.Log}
	s.known.max = o.CacheEntries
	s.disk = floor{min: o.FloorBytes, free: o.Free}
	s.roots.init()
	if err := s.open(); err != nil {
		if s.lock != nil {
			s.lock.Close()
		}
		return nil, fmt.Errorf("open block store %s: %w", dir, err)
	}
	return s, nil
}

func (s *Store) open() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	s.lock = lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return errors.New("in use by another process")
		}
		return err
	}
	if err := s.format(); err != nil {
		return err
	}
	// What a killed process was writing is of no use to anyone.
	left, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := os.Remove(filepath.Join(s.dir, "tmp", e.Name())); err != nil {
			return err
		}
	}
	return s.loadRoots()
}

// format makes the folders once. The format file is written last, so that a
// half-made store is finished by the next Open.
func (s *Store) format() error {
	name := filepath.Join(s.dir, "format")
	switch text, err := os.ReadFile(name); {
	case err == nil && string(text) == "1\n":
		return nil
	case err == nil:
		return fmt.Errorf("format %q is not known to this version", text)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	for _, d := range []string{"tmp", "data", "roots", "pins"} {
		if err := mkdir(filepath.Join(s.dir, d)); err != nil {
			return err
		}
	}
	tmp := name + ".new"
	if err := os.WriteFile(tmp, []byte("1\n"), 0o600); err != nil {
		return err
	}
	if err := syncPath(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, name); err != nil {
		return err
	}
	return syncDir(s.dir)
}

func mkdir(name string) error {
	if err := os.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// Close ends the use of the directory; it does not sync. May be called twice.
func (s *Store) Close() error {
	var err error
	s.closed.Do(func() { err = s.lock.Close() })
	return err
}

// Damaged counts the blocks found damaged (and removed) since Open.
func (s *Store) Damaged() int64 { return s.damaged.Load() }

const alphabet = "abcdefghijklmnopqrstuvwxyz234567"

var encoding = base32.NewEncoding(alphabet).WithPadding(base32.NoPadding)

// place is where a block lives.
type place struct {
	key    key
	shard  string
	name   string
	stripe int
}

func placeOf(c cid.Cid) (place, error) {
	if !c.Defined() {
		return place{}, errors.New("undefined CID")
	}
	h := c.Hash()
	if len(h) < 4 || len(h) > maxHashLen {
		return place{}, fmt.Errorf("block %s: hash of %d bytes", c, len(h))
	}
	p := place{name: encoding.EncodeToString(h)}
	// The very last letter of base32 carries two bits only.
	p.shard = p.name[len(p.name)-3 : len(p.name)-1]
	d, ok := content.DigestFrom(c)
	if !ok {
		d = keyOf(h)
	}
	p.key, p.stripe = d, int(d[0])
	return p, nil
}

// keyOf gives the key of a multihash.
func keyOf(h []byte) key {
	if len(h) == 34 && h[0] == 0x1e && h[1] == 32 {
		return key(h[2:])
	}
	return content.DigestOf(h)
}

func (s *Store) path(p place) string { return filepath.Join(s.dir, "data", p.shard, p.name) }

// notFound is content.ErrNotFound, and go-ipld-format's for boxo's callers.
type notFound struct {
	c      cid.Cid
	reason string
}

func (e notFound) Error() string   { return fmt.Sprintf("block %s: %s", e.c, e.reason) }
func (e notFound) Unwrap() []error { return []error{content.ErrNotFound, ipld.ErrNotFound{Cid: e.c}} }

func absent(c cid.Cid) error  { return notFound{c, content.ErrNotFound.Error()} }
func removed(c cid.Cid) error { return notFound{c, "was damaged on disk and is removed"} }

package fsm

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/ledger/kv"
)

// A snapshot is the whole state as bytes; equal states give equal bytes:
//
//	"BMLEDGER" version(1)
//	{ keyLen uint32 > 0, valueLen uint32, key, value }…   in key order
//	0 uint32, number of pairs uint64, CRC-32C of all before uint32
//
// Keys are at most 1 KiB, values at most maxValue.
var magic = []byte("BMLEDGER\x01")

const (
	maxSnapshotKey = 1 << 10
	maxValue       = 4 << 20 // a record is at most MaxCommandBytes and its event little more
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Snapshot writes the synced state to w. It does not hold up Apply.
func (m *Machine) Snapshot(w io.Writer) error {
	m.applying.Lock()
	if m.isClosed() {
		m.applying.Unlock()
		return ledger.Closed()
	}
	view := m.db.NewSnapshot()
	m.applying.Unlock()

	sum := crc32.New(castagnoli)
	bw := bufio.NewWriterSize(w, 64<<10)
	n, err := writePairs(io.MultiWriter(bw, sum), view)
	if cerr := view.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	var tail [12]byte
	binary.BigEndian.PutUint64(tail[4:], n)
	_, _ = sum.Write(tail[:]) // a hash never fails
	if _, err := bw.Write(binary.BigEndian.AppendUint32(tail[:], sum.Sum32())); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	if err := bw.Flush(); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

func writePairs(w io.Writer, r pebble.Reader) (n uint64, err error) {
	if _, err := w.Write(magic); err != nil {
		return 0, err
	}
	err = scan(r, []byte{0}, []byte{0xff}, func(k, v []byte) (bool, error) {
		var lens [8]byte
		binary.BigEndian.PutUint32(lens[0:], uint32(len(k)))
		binary.BigEndian.PutUint32(lens[4:], uint32(len(v)))
		for _, p := range [][]byte{lens[:], k, v} {
			if _, err := w.Write(p); err != nil {
				return false, err
			}
		}
		n++
		return true, nil
	})
	return n, err
}

// Restore makes the machine's directory from a snapshot: everything that was
// in dir is replaced, or, when the snapshot is damaged or the process dies,
// nothing. No Machine may be open on dir.
func Restore(dir string, r io.Reader, o Options) error {
	fs := fsOf(o)
	next := dir + ".restoring"
	if err := fs.RemoveAll(next); err != nil {
		return fmt.Errorf("restore %s: %w", dir, err)
	}
	db, err := kv.Open(next, o)
	if err != nil {
		return err
	}
	err = readPairs(r, db)
	if err = errors.Join(err, db.Close()); err != nil {
		return errors.Join(fmt.Errorf("restore %s: %w", dir, err), fs.RemoveAll(next))
	}
	// From this mark on a restart finishes the job; before it, undoes it.
	mark, err := fs.Create(fs.PathJoin(next, completeMark), vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("restore %s: %w", dir, err)
	}
	if err := errors.Join(mark.Sync(), mark.Close(), syncDir(fs, next), syncDir(fs, fs.PathDir(dir))); err != nil {
		return fmt.Errorf("restore %s: %w", dir, err)
	}
	return finishRestore(dir, o)
}

const completeMark = "RESTORED"

// finishRestore completes or undoes a Restore that a dying process left.
func finishRestore(dir string, o Options) error {
	fs := fsOf(o)
	next := dir + ".restoring"
	if _, err := fs.Stat(next); err != nil {
		return nil
	}
	var err error
	if _, serr := fs.Stat(fs.PathJoin(next, completeMark)); serr != nil {
		err = fs.RemoveAll(next)
	} else {
		err = errors.Join(fs.RemoveAll(dir))
		if err == nil {
			err = fs.Rename(next, dir)
		}
	}
	if err == nil {
		err = syncDir(fs, fs.PathDir(dir))
	}
	if err != nil {
		return fmt.Errorf("finish restore of %s: %w", dir, err)
	}
	return nil
}

func readPairs(r io.Reader, db *kv.Store) error {
	sum := crc32.New(castagnoli)
	br := bufio.NewReaderSize(r, 64<<10)
	in := &summed{br, sum}
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(in, head); err != nil || string(head) != string(magic) {
		return fmt.Errorf("not a ledger snapshot of this version: %w", errors.Join(err, ErrDamaged))
	}
	b := db.NewBatch()
	defer func() { _ = b.Close() }()
	var n uint64
	var last []byte
	for {
		var word [4]byte
		if _, err := io.ReadFull(in, word[:]); err != nil {
			return fmt.Errorf("snapshot ends early: %w", errors.Join(err, ErrDamaged))
		}
		kl := binary.BigEndian.Uint32(word[:])
		if kl == 0 {
			break
		}
		if _, err := io.ReadFull(in, word[:]); err != nil {
			return fmt.Errorf("snapshot ends early: %w", errors.Join(err, ErrDamaged))
		}
		vl := binary.BigEndian.Uint32(word[:])
		if kl > maxSnapshotKey || vl > maxValue {
			return fmt.Errorf("pair %d has %d+%d bytes: %w", n, kl, vl, ErrDamaged)
		}
		pair := make([]byte, kl+vl)
		if _, err := io.ReadFull(in, pair); err != nil {
			return fmt.Errorf("snapshot ends early: %w", errors.Join(err, ErrDamaged))
		}
		if string(pair[:kl]) <= string(last) {
			return fmt.Errorf("pair %d is out of order: %w", n, ErrDamaged)
		}
		last = pair[:kl]
		if err := b.Set(pair[:kl], pair[kl:], nil); err != nil {
			return err
		}
		n++
		if b.Len() > 1<<20 {
			if err := b.Commit(pebble.NoSync); err != nil {
				return err
			}
			b.Reset()
		}
	}
	var count [8]byte
	if _, err := io.ReadFull(in, count[:]); err != nil {
		return fmt.Errorf("snapshot ends early: %w", errors.Join(err, ErrDamaged))
	}
	want := sum.Sum32()
	var crc [4]byte
	if _, err := io.ReadFull(br, crc[:]); err != nil {
		return fmt.Errorf("snapshot ends early: %w", errors.Join(err, ErrDamaged))
	}
	if binary.BigEndian.Uint64(count[:]) != n || binary.BigEndian.Uint32(crc[:]) != want {
		return fmt.Errorf("checksum over %d pairs does not match: %w", n, ErrDamaged)
	}
	return b.Commit(pebble.Sync)
}

// ErrDamaged tells that a snapshot is cut short or altered.
var ErrDamaged = errors.New("snapshot is damaged")

// summed adds everything read to a checksum.
type summed struct {
	r   io.Reader
	sum hash.Hash32
}

func (s *summed) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	_, _ = s.sum.Write(p[:n])
	return n, err
}

func fsOf(o Options) vfs.FS {
	if o.FS == nil {
		return vfs.Default
	}
	return o.FS
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

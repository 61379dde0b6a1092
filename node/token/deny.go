package token

import (
	"bufio"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
)

// MaxDenied bounds a deny set: about 6 MiB on disk and in memory. Revocations
// of tokens that have expired anyway make room first.
const MaxDenied = 10_000

// DenySet is the revoked ids that this node knows, on disk. Only grow it with
// what Issuer.Revoke made, here or elsewhere: Add verifies every one.
//
// Nodes bring their sets together by sending each new revocation (one fits a
// gossip message) and, where a peer's Digest differs, by asking it with Marks
// for what is Missing.
type DenySet struct {
	mesh string
	root ed25519.PublicKey
	path string
	now  func() time.Time

	mu     sync.RWMutex
	denied map[string]denied // by id
	digest [32]byte          // XOR of the hashes of the ids
	file   *os.File          // appended and synced; nil = in memory
	torn   bool              // the file may end in half a line
}

type denied struct {
	until time.Time // zero = for ever
	raw   string
}

// OpenDenySet reads the set kept at path, "" = in memory only. Lines that do
// not verify are left out: the file may have been cut by a crash, and another
// node has them.
func OpenDenySet(path, mesh string, root ed25519.PublicKey) (*DenySet, error) {
	s := &DenySet{mesh: mesh, root: root, path: path, now: time.Now, denied: map[string]denied{}}
	if path == "" {
		return s, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "open deny set", "")
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "open deny set", "check the data directory's owner")
	}
	lines := bufio.NewScanner(f)
	lines.Buffer(make([]byte, 0, MaxBytes), 2*MaxBytes)
	for lines.Scan() {
		if r, err := s.open(lines.Text()); err == nil {
			s.keepLocked(r, lines.Text())
		}
	}
	err = lines.Err()
	if err == nil || errors.Is(err, bufio.ErrTooLong) {
		err = s.rewrite()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "read deny set "+path, "the disk may be damaged")
	}
	return s, nil
}

// open verifies a revocation.
func (s *DenySet) open(raw string) (revocation, error) {
	if len(raw) > MaxBytes {
		return revocation{}, errMalformed(nil)
	}
	var r revocation
	del, err := unseal(s.mesh, s.root, raw, purposeRevoke, &r)
	if err != nil {
		return revocation{}, err
	}
	if r.ID == "" || len(r.ID) > maxText || outside(r.At, del.NotBefore, del.NotAfter) {
		return revocation{}, errMalformed(nil)
	}
	return r, nil
}

// Add takes a revocation. It gives true when it was news that should be passed
// on; then it is on disk.
func (s *DenySet) Add(raw string) (bool, error) {
	n, err := s.AddAll([]string{raw})
	return n == 1, err
}

// AddAll takes several revocations with one write, and gives how many were
// news. Those that do not verify, or do not fit any more, are left out; the
// error is that of the first.
func (s *DenySet) AddAll(raws []string) (news int, err error) {
	type opened struct {
		revocation
		raw string
	}
	list := make([]opened, 0, len(raws))
	for _, raw := range raws {
		r, bad := s.open(raw)
		if bad != nil {
			err = cmp.Or(err, bad)
			continue
		}
		list = append(list, opened{r, raw})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines strings.Builder
	again := map[string]bool{}
	list = slices.DeleteFunc(list, func(o opened) bool {
		if again[o.ID] {
			return true
		}
		old, known := s.denied[o.ID]
		// A longer revocation of the same id replaces a shorter one.
		if known && (old.until.IsZero() || !o.Until.IsZero() && !o.Until.After(old.until)) || s.past(o.Until) {
			return true
		}
		if !known && len(s.denied)+news >= MaxDenied && !s.pruneLocked() {
			err = cmp.Or(err, error(fault.Newf(fault.TooLarge, "%d tokens are revoked, no more fit", MaxDenied)))
			return true
		}
		news++
		again[o.ID] = true
		lines.WriteString(o.raw + "\n")
		return false
	})
	if news == 0 {
		return 0, err
	}
	if werr := s.writeLocked(lines.String()); werr != nil {
		return 0, werr
	}
	for _, o := range list {
		s.keepLocked(o.revocation, o.raw)
	}
	return news, err
}

// writeLocked appends lines to the file and syncs it.
func (s *DenySet) writeLocked(lines string) error {
	if s.file == nil {
		return nil
	}
	if s.torn {
		lines = "\n" + lines
	}
	if _, err := s.file.WriteString(lines); err != nil {
		s.torn = true
		return fault.Wrap(fault.Internal, err, "write deny set", "the disk may be full")
	}
	s.torn = false
	if err := s.file.Sync(); err != nil {
		return fault.Wrap(fault.Internal, err, "sync deny set", "the disk may be damaged")
	}
	return nil
}

func (s *DenySet) keepLocked(r revocation, raw string) {
	if _, ok := s.denied[r.ID]; !ok {
		s.mixLocked(r.ID)
	}
	s.denied[r.ID] = denied{r.Until, raw}
}

// mixLocked adds or removes an id's share of the digest.
func (s *DenySet) mixLocked(id string) {
	sum := sha256.Sum256([]byte(id))
	for i := range sum {
		s.digest[i] ^= sum[i]
	}
}

// past tells whether a revocation until t is no longer needed: the token
// itself is refused as expired.
func (s *DenySet) past(t time.Time) bool {
	return !t.IsZero() && s.now().After(t.Add(2*Leeway))
}

func (s *DenySet) pruneLocked() bool {
	before := len(s.denied)
	for id, d := range s.denied {
		if s.past(d.until) {
			delete(s.denied, id)
			s.mixLocked(id)
		}
	}
	return len(s.denied) < before
}

// rewrite writes the set anew without what is no longer needed and opens it
// for appending. It runs before the set is shared.
func (s *DenySet) rewrite() error {
	s.pruneLocked()
	next := s.path + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for _, d := range s.denied {
		if _, err := fmt.Fprintln(w, d.raw); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if err := errors.Join(w.Flush(), f.Sync(), os.Rename(next, s.path)); err != nil {
		return errors.Join(err, f.Close())
	}
	dir, err := os.Open(filepath.Dir(s.path))
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return errors.Join(err, f.Close())
	}
	s.file = f
	return nil
}

// Denied tells whether id (of a token or an issuer's key) is revoked. A nil
// set denies nothing.
func (s *DenySet) Denied(id string) bool {
	if s == nil {
		return false
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.denied[id]
	return ok
}

// Digest is equal on two nodes that know the same revocations.
func (s *DenySet) Digest() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pruneLocked() // else sets of the same use differ for ever
	return hex.EncodeToString(s.digest[:8])
}

// markBytes of the hash of an id stand for it in Marks.
const markBytes = 8

func mark(id string) (m [markBytes]byte) {
	sum := sha256.Sum256([]byte(id))
	copy(m[:], sum[:])
	return m
}

// Marks is a short form of the ids that this node knows, for Missing of another.
func (s *DenySet) Marks() []byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]byte, 0, markBytes*len(s.denied))
	for id := range s.denied {
		m := mark(id)
		out = append(out, m[:]...)
	}
	return out
}

// Missing gives the revocations that a node with these Marks does not know.
func (s *DenySet) Missing(marks []byte) []string {
	have := make(map[[markBytes]byte]bool, len(marks)/markBytes)
	for m := range slices.Chunk(marks, markBytes) {
		if len(m) == markBytes {
			have[[markBytes]byte(m)] = true
		}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []string
	for id, d := range s.denied {
		if !have[mark(id)] && !s.past(d.until) {
			out = append(out, d.raw)
		}
	}
	return out
}

// All gives every revocation.
func (s *DenySet) All() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]string, 0, len(s.denied))
	for _, d := range s.denied {
		out = append(out, d.raw)
	}
	return out
}

// Close closes the file. It may be called twice.
func (s *DenySet) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	f := s.file
	s.file = nil
	return f.Close()
}

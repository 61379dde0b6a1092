package libp2p

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"google.golang.org/protobuf/proto"

	"github.com/beammesh/beammesh/mesh/membership"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/proto/fault"
)

// Files of the data directory. All are written whole: a temporary file, fsync,
// rename, fsync of the directory, so kill -9 leaves the old or the new one.
const (
	fileLock       = "lock"            // flock, held while open
	fileIdentity   = "identity.key"    // hex seed of the peer's Ed25519 key, 0600
	fileRoot       = "root.key"        // hex seed of the mesh's root key; founder only, 0600
	fileMembership = "membership.json" // root public key, chain, issuer certificate
	fileTickets    = "tickets.json"    // membership.Ledger
	fileMembers    = "members.json"    // the member table
	fileLeft       = "left.json"       // farewells of members that left
	filePort       = "port"            // the port chosen for ":0", tried first next time
)

// store is the open, locked data directory.
type store struct {
	dir  string
	lock *os.File
}

func openStore(dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, fileLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fault.New(fault.Conflict, "the data directory "+dir+" is in use by another process",
				"stop the node that runs on it, or give this one its own directory with --data")
		}
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	return &store{dir: dir, lock: f}, nil
}

func (s *store) close() error { return s.lock.Close() }

// read gives a file's bytes, nil when there is none.
func (s *store) read(name string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

func (s *store) write(name string, b []byte) error {
	tmp, err := os.CreateTemp(s.dir, name+".tmp-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), filepath.Join(s.dir, name)); err != nil {
		return err
	}
	return s.syncDir()
}

func (s *store) remove(names ...string) error {
	for _, n := range names {
		if err := os.Remove(filepath.Join(s.dir, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return s.syncDir()
}

func (s *store) syncDir() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// sweep removes what a kill during write left behind.
func (s *store) sweep() {
	left, _ := filepath.Glob(filepath.Join(s.dir, "*.tmp-*"))
	for _, f := range left {
		os.Remove(f)
	}
}

// key reads an Ed25519 seed, or makes it when create is set. nil, nil means
// there is none.
func (s *store) key(name string, create bool) (ed25519.PrivateKey, error) {
	path := filepath.Join(s.dir, name)
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !create:
		return nil, nil
	case errors.Is(err, fs.ErrNotExist):
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make %s: %w", name, err)
		}
		if err := s.write(name, []byte(hex.EncodeToString(key.Seed())+"\n")); err != nil {
			return nil, fmt.Errorf("make %s: %w", name, err)
		}
		return key, nil
	case err != nil:
		return nil, err
	case st.Mode().Perm()&0o077 != 0:
		return nil, fault.New(fault.Forbidden, fmt.Sprintf("the key %s can be read by others (mode %04o)", path, st.Mode().Perm()),
			"run: chmod 600 "+path)
	}
	b, err := s.read(name)
	if err != nil {
		return nil, err
	}
	seed, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fault.New(fault.Invalid, "the key "+path+" is damaged",
			"restore it from a backup; a new key makes this a new machine that needs a new ticket")
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// port gives the remembered listen port, 0 for none.
func (s *store) port() int {
	b, _ := s.read(filePort)
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || n < 1 || n > 65535 {
		return 0
	}
	return n
}

// credentials are this node's membership. Values are never changed in place.
type credentials struct {
	root   ed25519.PublicKey
	secret ed25519.PrivateKey // the root key itself, founder only
	chain  *peerv1.Chain
	issuer *peerv1.Certificate // nil: cannot invite
	member membership.Member   // what chain says; may be expired
}

type storedMembership struct {
	Root   []byte `json:"root"`
	Chain  []byte `json:"chain"`
	Issuer []byte `json:"issuer,omitempty"`
}

// credentials reads the membership without judging its times; nil when this
// machine has not joined.
func (m *Mesh) loadCredentials() (*credentials, error) {
	b, err := m.store.read(fileMembership)
	if b == nil || err != nil {
		return nil, err
	}
	damaged := func(err error) error {
		return fault.Wrap(fault.Invalid, err, "the stored membership is damaged", "run 'beam node leave', then join again with a new ticket")
	}
	var st storedMembership
	if err := json.Unmarshal(b, &st); err != nil {
		return nil, damaged(err)
	}
	c := &credentials{root: st.Root, chain: new(peerv1.Chain)}
	if err := proto.Unmarshal(st.Chain, c.chain); err != nil {
		return nil, damaged(err)
	}
	if len(st.Issuer) > 0 {
		c.issuer = new(peerv1.Certificate)
		if err := proto.Unmarshal(st.Issuer, c.issuer); err != nil {
			return nil, damaged(err)
		}
	}
	if c.member, err = membership.Verify(c.root, c.chain, m.self, m.cfg.Clock()); err != nil &&
		!errors.Is(err, membership.ErrExpired) && !errors.Is(err, membership.ErrNotYetValid) {
		return nil, damaged(err)
	}
	if c.secret, err = m.store.key(fileRoot, false); err != nil {
		return nil, err
	}
	return c, nil
}

func (m *Mesh) saveCredentials(c *credentials) error {
	st := storedMembership{Root: c.root}
	var err error
	if st.Chain, err = proto.Marshal(c.chain); err == nil && c.issuer != nil {
		st.Issuer, err = proto.Marshal(c.issuer)
	}
	var b []byte
	if err == nil {
		b, err = json.Marshal(st)
	}
	if err == nil {
		err = m.store.write(fileMembership, b)
	}
	if err != nil {
		return fmt.Errorf("store membership: %w", err)
	}
	return nil
}

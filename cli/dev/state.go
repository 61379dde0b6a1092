package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/proto/fault"
)

// Mesh is a dev mesh as the state file has it.
type Mesh struct {
	Root      string       `json:"root"`
	Name      string       `json:"name"`
	Created   time.Time    `json:"created"`
	Options   string       `json:"options"` // fingerprint: what was asked for
	Binary    string       `json:"binary"`
	Subnet    netip.Prefix `json:"subnet"`
	Bridge    string       `json:"bridge"`
	Table     string       `json:"table"` // nft, family ip
	Foreign   []chain      `json:"foreign,omitempty"`
	Legacy    bool         `json:"legacy,omitempty"`     // rules in iptables-legacy too
	IPForward string       `json:"ip_forward,omitempty"` // value before us
	Ready     bool         `json:"ready"`
	GRPC      string       `json:"grpc,omitempty"` // node 1's on this host's loopback
	HTTP      string       `json:"http,omitempty"`
	Nodes     []*Node      `json:"nodes"`
}

// Node is one node of the mesh.
type Node struct {
	Index   int             `json:"index"` // from 1
	Name    string          `json:"name"`
	Dir     string          `json:"dir"` // its data directory
	Log     string          `json:"log"` // what it printed
	NetNS   string          `json:"netns"`
	Veth    string          `json:"veth"`
	Addr    netip.Addr      `json:"addr"`
	Cgroup  string          `json:"cgroup"` // path below each hierarchy
	GPUs    string          `json:"gpus,omitempty"`
	Args    []string        `json:"args"` // without up/join and the descriptor
	Env     []string        `json:"env,omitempty"`
	CPUs    float64         `json:"cpus"`
	PID     int             `json:"pid,omitempty"`
	Start   uint64          `json:"start,omitempty"` // of that pid, clock ticks since boot
	Started json.RawMessage `json:"started,omitempty"`
	GRPC    string          `json:"grpc,omitempty"` // reachable from the host
	HTTP    string          `json:"http,omitempty"`
	ID      string          `json:"id,omitempty"`
	Token   string          `json:"token,omitempty"`
	Ticket  string          `json:"ticket,omitempty"`
}

// Alive tells whether the node's process runs.
func (n *Node) Alive() bool { return n.PID != 0 && startTime(n.PID) == n.Start && n.Start != 0 }

func statePath(root string) string { return filepath.Join(root, "state.json") }

// save writes the state, synced: after it whatever it names may be made.
func (m *Mesh) save() error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err == nil {
		err = writeSynced(statePath(m.Root), append(b, '\n'))
	}
	if err != nil {
		return fault.Wrap(fault.Internal, err, "write the dev mesh's state", "check free space and owner of "+m.Root)
	}
	return nil
}

func writeSynced(path string, b []byte) error {
	next := path + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Load reads the mesh kept at root, "" = DefaultRoot; NotFound when there is none.
func Load(root string) (*Mesh, error) {
	if root == "" {
		root = DefaultRoot
	}
	b, err := os.ReadFile(statePath(root))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "no dev mesh is up", "start one: 'beam dev up'")
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, fault.Wrap(fault.Forbidden, err, "read the dev mesh's state", "it belongs to root: use sudo")
	}
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "read the dev mesh's state", "")
	}
	var m Mesh
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "read "+statePath(root), "")
	}
	return &m, nil
}

// node finds node i.
func (m *Mesh) node(i int) (*Node, error) {
	if i < 1 || i > len(m.Nodes) {
		return nil, fault.Newf(fault.NotFound, "the dev mesh has nodes 1 to %d, not %d", len(m.Nodes), i)
	}
	return m.Nodes[i-1], nil
}

// Env gives KEY=VALUE lines with which clients find node i of the mesh at
// root. Node 1 is reached over the host's loopback.
func Env(root string, i int) ([]string, error) {
	m, err := Load(root)
	if err != nil {
		return nil, err
	}
	n, err := m.node(i)
	if err != nil {
		return nil, err
	}
	if !m.Ready {
		return nil, fault.New(fault.Unreachable, "the dev mesh did not come up", "clean up and try again: 'beam dev down', 'beam dev up'")
	}
	if !n.Alive() {
		return nil, fault.Newf(fault.Unreachable, "node %d of the dev mesh is not running", i)
	}
	grpc, http := n.GRPC, n.HTTP
	if i == 1 {
		grpc, http = m.GRPC, m.HTTP
	}
	g, err := netip.ParseAddrPort(grpc)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "address of node "+n.Name, "")
	}
	h, err := netip.ParseAddrPort(http)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "address of node "+n.Name, "")
	}
	token := n.Token
	if token == "" {
		token = m.Nodes[0].Token // one mesh: a token of any node is good at all
	}
	return []string{
		"GATEWAY_HOST=" + g.Addr().String(), fmt.Sprint("GATEWAY_PORT=", g.Port()),
		"API_HOST=" + h.Addr().String(), fmt.Sprint("API_PORT=", h.Port()),
		"BEAM_TOKEN=" + token,
	}, nil
}

// lockRoot keeps two commands from working on one mesh at a time. The lock
// ends with the process.
func lockRoot(root string) (unlock func(), err error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "make folder "+root, "run it as root, or give another --dir")
	}
	path := root + ".lock" // beside the folder, because Down removes that
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "open "+path, "")
		}
		if err := flock(f); err != nil {
			return nil, fault.Wrap(fault.Conflict, err, "another command works on the dev mesh in "+root, "wait until it is done")
		}
		// Down removes the file at its end: a lock on the removed one is none.
		ours, err1 := f.Stat()
		now, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(ours, now) {
			return func() { _ = f.Close() }, nil
		}
		_ = f.Close()
	}
}

// lockWait is how long a lock is waited for. A child that a killed command was
// just forking holds its lock until it execs.
const lockWait = 5 * time.Second

// flock locks f, or closes it and gives up.
func flock(f *os.File) error {
	got := make(chan error, 1)
	go func() {
		for {
			err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
			if !errors.Is(err, unix.EINTR) {
				got <- err
				return
			}
		}
	}()
	select {
	case err := <-got:
		if err != nil {
			_ = f.Close()
		}
		return err
	case <-time.After(lockWait):
		go func() { // whoever holds it lets go one day
			<-got
			_ = f.Close()
		}()
		return errors.New("its lock is held")
	}
}

// removeRoot removes the folder and its lock, unless something else lies in it.
func removeRoot(root string) {
	if os.Remove(root) == nil {
		_ = os.Remove(root + ".lock")
	}
}

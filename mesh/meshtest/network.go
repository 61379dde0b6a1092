package meshtest

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/membership"
)

var (
	errReset = errors.New("stream reset")
	errBroke = errors.New("connection broke")
)

// Network is a mesh in memory: its nodes and which of them can talk.
type Network struct {
	mu      sync.Mutex
	nodes   map[mesh.PeerID]*Node // started, not closed
	cut     map[pair]bool
	quiet   bool // gossip is lost
	streams map[*end]pair
	id      string
}

// pair is two peers in order of id.
type pair struct{ a, b mesh.PeerID }

func pairOf(a, b mesh.PeerID) pair {
	if b < a {
		a, b = b, a
	}
	return pair{a, b}
}

// NewNetwork makes an empty mesh.
func NewNetwork() *Network {
	root := sha256.Sum256([]byte("meshtest"))
	return &Network{nodes: map[mesh.PeerID]*Node{}, cut: map[pair]bool{}, streams: map[*end]pair{}, id: membership.MeshID(root[:])}
}

// An Option changes one node before it starts.
type Option func(*Node)

// WithHello sets the handshake hook.
func WithHello(h mesh.Hello) Option { return func(n *Node) { n.hello = h } }

// WithoutDirectory and WithoutGossip switch a part off.
func WithoutDirectory(n *Node) { n.noDirectory = true }

// WithoutGossip switches gossip off.
func WithoutGossip(n *Node) { n.noGossip = true }

// Join makes a node; the same name always gives the same identity. It is
// reachable after its Start.
func (w *Network) Join(name string, opts ...Option) *Node {
	seed := sha256.Sum256([]byte("meshtest " + name))
	key := ed25519.NewKeyFromSeed(seed[:])
	n := newNode(w, name, key)
	for _, o := range opts {
		o(n)
	}
	return n
}

// Cut stops all packets between two nodes: their streams break and each sees
// the other go down.
func (w *Network) Cut(a, b *Node) { w.setCut(a, b, true) }

// Heal undoes Cut; hello runs again.
func (w *Network) Heal(a, b *Node) { w.setCut(a, b, false) }

func (w *Network) setCut(a, b *Node, cut bool) {
	p := pairOf(a.self, b.self)
	w.mu.Lock()
	was := w.cut[p]
	if cut {
		w.cut[p] = true
	} else {
		delete(w.cut, p)
	}
	up := w.nodes[a.self] != nil && w.nodes[b.self] != nil
	w.mu.Unlock()
	switch {
	case cut && !was && up:
		w.breakStreams(func(q pair) bool { return q == p })
		a.down(b.self, "packets are lost")
		b.down(a.self, "packets are lost")
	case !cut && was && up:
		w.greet(a, b)
	}
}

// DropGossip loses every gossip message while on.
func (w *Network) DropGossip(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.quiet = on
}

// BreakStreams breaks what is open between two nodes, which stay connected.
func (w *Network) BreakStreams(a, b *Node) {
	w.breakStreams(func(p pair) bool { return p == pairOf(a.self, b.self) })
}

func (w *Network) breakStreams(of func(pair) bool) {
	w.mu.Lock()
	var broken []*end
	for e, p := range w.streams {
		if of(p) {
			broken = append(broken, e)
			delete(w.streams, e)
		}
	}
	w.mu.Unlock()
	for _, e := range broken {
		e.breakWith(errBroke)
	}
}

// greet runs hello between two nodes and makes them see each other.
func (w *Network) greet(a, b *Node) {
	a.meet(b)
	b.meet(a)
}

// reach gives the node behind an id if a can talk to it.
func (w *Network) reach(from *Node, to mesh.PeerID) (*Node, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.nodes[to]
	if n == nil || w.nodes[from.self] == nil || w.cut[pairOf(from.self, to)] || to == from.self {
		return nil, mesh.ErrUnreachable
	}
	return n, nil
}

// others are the nodes that from can talk to, in order of id.
func (w *Network) others(from *Node) []*Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*Node
	for id, n := range w.nodes {
		if id != from.self && !w.cut[pairOf(from.self, id)] {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b *Node) int { return strings.Compare(string(a.self), string(b.self)) })
	return out
}

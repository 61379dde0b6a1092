package meshtest

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/membership"
)

// Node is one in-memory mesh.Mesh.
type Node struct {
	net    *Network
	key    ed25519.PrivateKey
	self   mesh.PeerID
	name   string
	hello  mesh.Hello
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	noDirectory, noGossip bool

	mu       sync.Mutex
	handlers map[string]mesh.Handler
	members  map[mesh.PeerID]mesh.Member
	keys     map[string]bool
	watchers map[*queue[mesh.Event]]bool
	topics   map[string]map[*queue[gossipMessage]]bool
	boot     string
	started  bool
	closed   bool
}

type gossipMessage struct {
	from mesh.PeerID
	data []byte
}

var _ mesh.Mesh = (*Node)(nil)

func newNode(w *Network, name string, key ed25519.PrivateKey) *Node {
	n := &Node{net: w, key: key, self: membership.PeerOf(key.Public().(ed25519.PublicKey)), name: name, boot: rand.Text(),
		handlers: map[string]mesh.Handler{}, members: map[mesh.PeerID]mesh.Member{}, keys: map[string]bool{},
		watchers: map[*queue[mesh.Event]]bool{}, topics: map[string]map[*queue[gossipMessage]]bool{}}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n
}

// Start connects the node to all others that are not cut off.
func (n *Node) Start() {
	n.mu.Lock()
	n.started = true
	n.mu.Unlock()
	n.net.mu.Lock()
	n.net.nodes[n.self] = n
	n.net.mu.Unlock()
	for _, o := range n.net.others(n) {
		n.net.greet(n, o)
	}
}

// Close takes the node off the network; the others see it go down.
func (n *Node) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	n.mu.Unlock()
	others := n.net.others(n)
	n.net.mu.Lock()
	delete(n.net.nodes, n.self)
	n.net.mu.Unlock()
	n.cancel()
	n.net.breakStreams(func(p pair) bool { return p.a == n.self || p.b == n.self })
	for _, o := range others {
		o.down(n.self, "the connection broke")
	}
	n.mu.Lock()
	for w := range n.watchers {
		w.stop()
	}
	for _, t := range n.topics {
		for q := range t {
			q.stop()
		}
	}
	n.mu.Unlock()
	n.wg.Wait()
	return nil
}

// ID is mesh.Mesh's.
func (n *Node) ID() string { return n.net.id }

// PeerID is the node's identity.
func (n *Node) PeerID() mesh.PeerID { return n.self }

// Sign is mesh.Signer's.
func (n *Node) Sign(data []byte) ([]byte, error) { return membership.SignData(n.key, data), nil }

// Verify is mesh.Signer's.
func (n *Node) Verify(by mesh.PeerID, data, sig []byte) error {
	return membership.VerifyData(by, data, sig)
}

// Handle is mesh.Dialer's.
func (n *Node) Handle(protocol string, h mesh.Handler) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.started || n.handlers[protocol] != nil {
		panic(fmt.Sprintf("meshtest: Handle(%q) after Start or twice", protocol))
	}
	n.handlers[protocol] = h
}

// OpenBulk is Open: there is one kind of connection here.
func (n *Node) OpenBulk(ctx context.Context, to mesh.PeerID, protocol string) (mesh.Stream, error) {
	return n.Open(ctx, to, protocol)
}

// Open is mesh.Dialer's.
func (n *Node) Open(ctx context.Context, to mesh.PeerID, protocol string) (mesh.Stream, error) {
	fail := func(err error) (mesh.Stream, error) {
		return nil, fmt.Errorf("open %s to %s: %w", protocol, to, err)
	}
	if n.ctx.Err() != nil {
		return fail(mesh.ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		return fail(fmt.Errorf("%w: %w", mesh.ErrUnreachable, err))
	}
	o, err := n.net.reach(n, to)
	if err != nil {
		return fail(err)
	}
	out, in := newPipe(), newPipe()
	near := &end{peer: to, in: in, out: out}
	far := &end{peer: n.self, in: out, out: in}
	w := n.net
	w.mu.Lock()
	if w.cut[pairOf(n.self, to)] || w.nodes[to] != o {
		w.mu.Unlock()
		return fail(mesh.ErrUnreachable)
	}
	for _, e := range []*end{near, far} {
		e.forget = func() {
			w.mu.Lock()
			delete(w.streams, e)
			w.mu.Unlock()
		}
		w.streams[e] = pairOf(n.self, to)
	}
	w.mu.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	h := o.handlers[protocol]
	if h == nil || o.closed {
		far.breakWith(fmt.Errorf("%s: %w", protocol, mesh.ErrNotServed))
		far.forget()
		return near, nil // as on a network: the opener learns it from its first read
	}
	o.wg.Go(func() { h(o.ctx, far) })
	return near, nil
}

// Publish is mesh.Gossip's.
func (n *Node) Publish(_ context.Context, topic string, data []byte) error {
	switch {
	case n.ctx.Err() != nil:
		return mesh.ErrClosed
	case n.noGossip:
		return fmt.Errorf("publish on %s: %w", topic, mesh.ErrDisabled)
	case len(data) > mesh.MaxGossip:
		return fmt.Errorf("publish on %s: %w", topic, mesh.ErrTooLarge)
	}
	n.net.mu.Lock()
	quiet := n.net.quiet
	n.net.mu.Unlock()
	if quiet {
		return nil
	}
	for _, o := range n.net.others(n) {
		o.mu.Lock()
		for q := range o.topics[topic] {
			q.push(gossipMessage{n.self, slices.Clone(data)})
		}
		o.mu.Unlock()
	}
	return nil
}

// Subscribe is mesh.Gossip's.
func (n *Node) Subscribe(topic string, fn func(mesh.PeerID, []byte)) (func(), error) {
	if n.noGossip {
		return nil, fmt.Errorf("subscribe to %s: %w", topic, mesh.ErrDisabled)
	}
	q := newQueue(func(m gossipMessage) { fn(m.from, m.data) })
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, mesh.ErrClosed
	}
	if n.topics[topic] == nil {
		n.topics[topic] = map[*queue[gossipMessage]]bool{}
	}
	n.topics[topic][q] = true
	return func() {
		n.mu.Lock()
		delete(n.topics[topic], q)
		n.mu.Unlock()
		q.stop()
	}, nil
}

// Provide is mesh.Directory's.
func (n *Node) Provide(_ context.Context, key string) error {
	if n.noDirectory {
		return fmt.Errorf("provide %s: %w", key, mesh.ErrDisabled)
	}
	if n.ctx.Err() != nil {
		return mesh.ErrClosed
	}
	if key == "" || len(key) > mesh.MaxKey {
		return fmt.Errorf("provide: key of %d bytes, want 1 to %d", len(key), mesh.MaxKey)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.keys[key] = true
	return nil
}

// Withdraw is mesh.Directory's.
func (n *Node) Withdraw(key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.keys, key)
}

func (n *Node) provides(key string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.keys[key]
}

// Find is mesh.Directory's.
func (n *Node) Find(_ context.Context, key string, limit int) ([]mesh.PeerID, error) {
	if n.noDirectory {
		return nil, fmt.Errorf("find %s: %w", key, mesh.ErrDisabled)
	}
	if n.ctx.Err() != nil {
		return nil, mesh.ErrClosed
	}
	var out []mesh.PeerID
	for _, o := range append([]*Node{n}, n.net.others(n)...) {
		if len(out) < max(limit, 1) && o.provides(key) {
			out = append(out, o.self)
		}
	}
	return out, nil
}

// Self is mesh.Members'.
func (n *Node) Self() mesh.Member {
	return mesh.Member{ID: n.self, Name: n.name, Tier: membership.Own, Connected: true, Path: mesh.PathSelf, BootID: n.boot, LastSeen: time.Now()}
}

// Members is mesh.Members'.
func (n *Node) Members() []mesh.Member {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := []mesh.Member{n.Self()}
	for _, m := range n.members {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b mesh.Member) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

// Watch is mesh.Members'.
func (n *Node) Watch(fn func(mesh.Event)) func() {
	q := newQueue(fn)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		q.stop()
		return func() {}
	}
	ids := make([]mesh.PeerID, 0, len(n.members))
	for id, m := range n.members {
		if m.Connected {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		q.push(mesh.Event{Type: mesh.MemberUp, Member: n.members[id]})
	}
	n.watchers[q] = true
	return func() {
		n.mu.Lock()
		delete(n.watchers, q)
		n.mu.Unlock()
		q.stop()
	}
}

// meet runs our half of hello with o.
func (n *Node) meet(o *Node) {
	var payload []byte
	if o.hello != nil {
		payload = o.hello.Local(n.self)
	}
	if n.hello != nil {
		n.hello.Remote(o.self, mesh.ViaMember, payload)
	}
	m := o.Self()
	m.Path, m.RTT = mesh.PathDirect, time.Microsecond
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || n.members[o.self].Connected {
		return
	}
	n.members[o.self] = m
	n.emitLocked(mesh.Event{Type: mesh.MemberUp, Member: m})
}

func (n *Node) down(p mesh.PeerID, reason string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	m, ok := n.members[p]
	if !ok || !m.Connected {
		return
	}
	m.Connected, m.Path, m.LastSeen = false, mesh.PathNone, time.Now()
	n.members[p] = m
	n.emitLocked(mesh.Event{Type: mesh.MemberDown, Member: m, Reason: reason})
}

func (n *Node) emitLocked(e mesh.Event) {
	for w := range n.watchers {
		w.push(e)
	}
}

package libp2p

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sync/singleflight"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/membership"
	"github.com/beammesh/beammesh/proto/fault"
)

// Mesh is one node's place in a mesh; see the package comment for its use. All
// methods are safe for concurrent use, but Handle comes before Start.
type Mesh struct {
	cfg   Config
	log   *slog.Logger
	store *store
	key   ed25519.PrivateKey
	self  mesh.PeerID
	boot  string // random per process start
	table *table

	// ctx is the life of the mesh, from New to Close: what runs in the
	// background ends with it. wg counts those goroutines.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	renew  chan struct{} // capacity 1: look at the certificates now

	host     host.Host // bare: identify, ping, hello, join
	gate     *gate     // everything else
	ready    atomic.Bool
	tcp      *beside // nil when switched off
	quic     *beside
	besides  singleflight.Group
	ifaces   ifaces
	joins    chan struct{} // join requests being served
	canaries chan struct{} // peers that only QUIC reaches, being watched
	tickets  *membership.Ledger
	dir      directory
	gossip   gossip

	saving sync.Mutex // held while files of the membership are written

	mu       sync.Mutex
	creds    *credentials  // nil until joined
	adopted  chan struct{} // closed and replaced when creds change
	handlers map[string]mesh.Handler
	started  bool
	closed   bool
	left     bool // Leave ran: nothing of the membership is written any more
	// unanswered are transport and peer of further dials that failed, with the
	// time to try again; at most maxMembers.
	unanswered map[string]time.Time
}

var _ mesh.Mesh = (*Mesh)(nil)

// New opens and locks the data directory, reads or makes the identity and
// builds the host. Nothing listens and nothing is dialled before Join or Start.
// A directory in use is a *fault.Error.
func New(_ context.Context, cfg Config) (_ *Mesh, err error) {
	cfg, err = cfg.complete()
	if err != nil {
		return nil, err
	}
	st, err := openStore(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	m := &Mesh{cfg: cfg, store: st, boot: rand.Text(), adopted: make(chan struct{}), renew: make(chan struct{}, 1), joins: make(chan struct{}, maxJoins), canaries: make(chan struct{}, maxCanaries),
		handlers: map[string]mesh.Handler{}, unanswered: map[string]time.Time{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	st.sweep()
	if m.key, err = st.key(fileIdentity, true); err != nil {
		return nil, err
	}
	m.self = membership.PeerOf(m.key.Public().(ed25519.PublicKey))
	m.log = cfg.Log.With("self", m.self)
	if m.creds, err = m.loadCredentials(); err != nil {
		return nil, err
	}
	stored, err := st.read(fileTickets)
	if err != nil {
		return nil, err
	}
	if m.tickets, err = membership.NewLedger(stored, func(b []byte) error { return st.write(fileTickets, b) }); err != nil {
		return nil, err
	}
	m.table = newTable(mesh.Member{ID: m.self, Name: cfg.Name, Connected: true, Path: mesh.PathSelf, Version: cfg.Version, BootID: m.boot})
	known, err := st.read(fileMembers)
	if err != nil {
		return nil, err
	}
	if err := m.table.restore(known, cfg.Clock()); err != nil {
		m.log.Warn("member table is damaged, starting without it", "err", err)
	}
	said, err := st.read(fileLeft)
	if err != nil {
		return nil, err
	}
	if err := m.restoreLeft(said); err != nil {
		m.log.Warn("the list of members that left is damaged, starting without it", "err", err)
	}
	if m.host, err = m.newHost(); err != nil {
		return nil, err
	}
	m.gate = newGate(m.host, m)
	return m, nil
}

// Joined says whether this machine has a membership.
func (m *Mesh) Joined() bool { return m.credentials() != nil }

func (m *Mesh) credentials() *credentials {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.creds
}

func (m *Mesh) setCredentials(c *credentials) error {
	if err := m.saveCredentials(c); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.creds = c
	close(m.adopted)
	m.adopted = make(chan struct{})
	return nil
}

// certified gives a channel that closes at the next change of our certificates.
func (m *Mesh) certified() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.adopted
}

// Handle is mesh.Dialer's. It panics after Start or on a second handler: both
// are mistakes of the program.
func (m *Mesh) Handle(protocol string, h mesh.Handler) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.started || m.handlers[protocol] != nil || len(m.handlers) >= maxProtocols {
		panic(fmt.Sprintf("mesh: Handle(%q) after Start, twice, or beyond %d protocols", protocol, maxProtocols))
	}
	m.handlers[protocol] = h
}

// protocolID is the wire name of one of our protocols.
func (m *Mesh) protocolID(name string) protocol.ID {
	return protocol.ID("/beammesh/" + m.ID() + "/" + name)
}

// Start registers the handlers, listens, and keeps the mesh connected until
// Close. It does not wait for any member.
func (m *Mesh) Start(ctx context.Context) (err error) {
	m.mu.Lock()
	switch {
	case m.closed:
		m.mu.Unlock()
		return mesh.ErrClosed
	case m.creds == nil:
		m.mu.Unlock()
		return fault.New(fault.Invalid, "this machine is in no mesh", "make one with 'beam node up', or join with 'beam node join <ticket>'")
	case m.started:
		m.mu.Unlock()
		return errors.New("start mesh: started already")
	}
	m.started = true
	m.mu.Unlock()

	m.refreshOwn()
	m.host.SetStreamHandler(m.protocolID(protoHello), m.serveHello)
	m.host.SetStreamHandler(m.protocolID(protoJoin), m.serveJoin)
	m.gate.SetStreamHandler(m.protocolID(protoLeft), m.serveLeft)
	for name, h := range m.handlers {
		m.gate.SetStreamHandler(m.protocolID(name), m.serve(h))
	}
	if err := m.dir.start(m); err != nil {
		return fmt.Errorf("start directory: %w", err)
	}
	if err := m.gossip.start(m); err != nil {
		return fmt.Errorf("start gossip: %w", err)
	}
	m.host.Network().Notify(notifiee{m})
	if err := m.listen(); err != nil {
		return err
	}
	if err := m.dir.run(); err != nil {
		return fmt.Errorf("start directory: %w", err)
	}
	m.ready.Store(true)
	m.table.mu.Lock()
	m.table.self.Tier = m.Tier()
	m.table.self.Addrs, m.table.self.Features = m.addrTexts(maxAddrs), m.features()
	m.table.mu.Unlock()
	m.spawn(m.keepConnected)
	m.spawn(m.keepSaved)
	m.spawn(m.keepCertified)
	if !m.cfg.NoMDNS {
		m.spawn(m.keepFindable)
	}
	m.log.Info("mesh started", "mesh", m.ID(), "addrs", m.addrTexts(maxAddrs))
	return ctx.Err()
}

var errNotStarted = errors.New("mesh is not started")

// usable is asked first by everything that needs a running mesh.
func (m *Mesh) usable() error {
	switch {
	case m.ctx.Err() != nil:
		return mesh.ErrClosed
	case !m.ready.Load():
		return errNotStarted
	}
	return nil
}

// spawn runs fn until the mesh closes; Close waits for it.
func (m *Mesh) spawn(fn func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.wg.Go(fn)
}

// closeWait bounds how long Close waits for handlers that ignore their context.
const closeWait = 5 * time.Second

// Close ends every stream and goroutine and releases the data directory.
func (m *Mesh) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	var errs []error
	if m.table != nil {
		m.table.close()
	}
	errs = append(errs, m.dir.close())
	if m.host != nil {
		errs = append(errs, m.host.Close())
	}
	done := make(chan struct{})
	go func() { m.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(closeWait):
		m.log.Warn("some stream handlers did not end", "waited", closeWait)
	}
	if m.table != nil && m.Joined() {
		errs = append(errs, m.saveTable())
	}
	errs = append(errs, m.store.close())
	return errors.Join(errs...)
}

func (m *Mesh) hasLeft() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.left
}

// ID is mesh.Mesh's; "" before Found or Join.
func (m *Mesh) ID() string {
	if c := m.credentials(); c != nil {
		return membership.MeshID(c.root)
	}
	return ""
}

// Founder is the node that made the mesh, by the root key's word.
func (m *Mesh) Founder() mesh.PeerID {
	if c := m.credentials(); c != nil {
		return c.member.Founder
	}
	return ""
}

// Tier is this node's own tier.
func (m *Mesh) Tier() string {
	if c := m.credentials(); c != nil {
		return c.member.Tier
	}
	return ""
}

// PeerID is this node's identity; it exists before any membership.
func (m *Mesh) PeerID() mesh.PeerID { return m.self }

// Addrs are the multiaddrs this node announces, without its peer id.
func (m *Mesh) Addrs() []string { return m.addrTexts(maxAddrs) }

// Self is mesh.Members'.
func (m *Mesh) Self() mesh.Member {
	m.table.mu.Lock()
	s := clone(m.table.self)
	m.table.mu.Unlock()
	if s.Tier = m.Tier(); s.Tier != "" {
		s.Addrs = m.addrTexts(maxAddrs)
	}
	s.LastSeen = m.cfg.Clock()
	return s
}

// Learn tells of a member and its addresses (multiaddrs without its id), where
// neither ticket, member nor discovery did. It is dialled when needed, or by
// itself while fewer than Config.WantConnected are.
func (m *Mesh) Learn(id mesh.PeerID, addrs []string) {
	m.table.learn(id, "", "", addrs, mesh.ViaUnknown, m.cfg.Clock())
}

// Members is mesh.Members'.
func (m *Mesh) Members() []mesh.Member { return m.table.list() }

// Watch is mesh.Members'.
func (m *Mesh) Watch(fn func(mesh.Event)) (cancel func()) { return m.table.watch(fn) }

// Sign is mesh.Signer's.
func (m *Mesh) Sign(data []byte) ([]byte, error) { return membership.SignData(m.key, data), nil }

// Verify is mesh.Signer's.
func (m *Mesh) Verify(by mesh.PeerID, data, sig []byte) error {
	return membership.VerifyData(by, data, sig)
}

// Expel closes the connections of a peer that Config.Deny refuses now.
func (m *Mesh) Expel(p mesh.PeerID, reason string) {
	m.log.Info("expelling a peer", "peer", p, "reason", reason)
	m.table.down(p, reason, m.cfg.Clock())
	m.gate.closePeer(p)
}

// features are the words told in hello: the node's own and ours.
func (m *Mesh) features() []string {
	f := slices.Clone(m.cfg.Features)
	c := m.credentials()
	for word, on := range map[string]bool{
		featTCP: !m.cfg.NoTCP, featQUIC: !m.cfg.NoQUIC, featDirectory: !m.cfg.NoDirectory, featGossip: !m.cfg.NoGossip,
		featRoot: c != nil && c.secret != nil, featIssuer: c != nil && c.issuer != nil,
	} {
		if on && !slices.Contains(f, word) && len(f) < maxFeatures {
			f = append(f, word)
		}
	}
	slices.Sort(f)
	return f
}

// Feature words of this package.
const (
	featTCP       = "tcp"
	featQUIC      = "quic"
	featDirectory = "directory"
	featGossip    = "gossip"
	featRoot      = "root"   // holds the root key
	featIssuer    = "issuer" // can redeem and renew
)

// notifiee tells us of connections.
type notifiee struct{ m *Mesh }

func (n notifiee) Connected(_ network.Network, c network.Conn)    { n.m.connected(c) }
func (n notifiee) Disconnected(_ network.Network, c network.Conn) { n.m.disconnected(c) }
func (notifiee) Listen(network.Network, ma.Multiaddr)             {}
func (notifiee) ListenClose(network.Network, ma.Multiaddr)        {}

func mustPeer(p mesh.PeerID) peer.ID {
	id, _ := peer.Decode(string(p)) // "" on error: unknown to every table
	return id
}

// tenantPrefixes are interface names that never carry mesh discovery, whatever
// the node's own filter says.
var tenantPrefixes = []string{"veth", "docker", "br-", "cni", "virbr"}

func mdnsInterface(i net.Interface) bool {
	if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagMulticast == 0 {
		return false
	}
	return !slices.ContainsFunc(tenantPrefixes, func(p string) bool { return strings.HasPrefix(i.Name, p) })
}

package libp2p

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	mh "github.com/multiformats/go-multihash"

	"github.com/beammesh/beammesh/mesh"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
)

// Times and bounds of the directory.
const (
	recordLife     = 10 * time.Minute // a provider record is believed
	reprovideEvery = 4 * time.Minute  // two chances before a record runs out
	provideTimeout = 30 * time.Second
	verifyTimeout  = 5 * time.Second
	maxKeys        = 256 // keys one node provides
	maxFind        = 64
	findAtOnce     = 8 // providers verified at a time
)

// protoKey asks a member whether it still provides a key.
const protoKey = "key/1"

// directory is the Kademlia DHT under the mesh's own protocol prefix. The DHT
// answers "who said so in the last minutes"; Find asks each of them, so a
// withdrawn key or a dead node is never in an answer.
type directory struct {
	m   *Mesh
	dht *dht.IpfsDHT // nil when switched off

	listening atomic.Bool

	mu   sync.Mutex
	keys map[string]*provided
}

// provided is one key of ours.
type provided struct {
	stop   context.CancelFunc
	again  chan struct{} // capacity 1: announce now, the mesh has grown
	stored bool          // at another node at least once
}

func (d *directory) start(m *Mesh) error {
	d.m, d.keys = m, map[string]*provided{}
	if m.cfg.NoDirectory {
		return nil
	}
	m.gate.SetStreamHandler(m.protocolID(protoKey), d.serveKey)
	var err error
	d.dht, err = dht.New(m.gate,
		dht.Mode(dht.ModeServer),
		dht.ProtocolPrefix(protocol.ID("/beammesh/"+m.ID())),
		dht.DisableValues(),
		dht.ProviderManagerOpts(records.ProvideValidity(recordLife)),
		dht.AddressFilter(nil),
		dht.RoutingTablePeerDiversityFilter(nil), // a mesh is one site more often than not
		dht.RoutingTableFilter(func(_ any, p peer.ID) bool { return m.gate.member(mesh.PeerID(p.String())) }),
		dht.BootstrapPeersFunc(d.bootstrap))
	if err != nil {
		return err
	}
	return nil
}

// run begins to look for other nodes, once we listen: connections made before
// would not come from our port.
func (d *directory) run() error {
	if d.dht == nil {
		return nil
	}
	d.listening.Store(true)
	return d.dht.Bootstrap(d.m.ctx)
}

// bootstrap is asked by the DHT when its table runs empty.
func (d *directory) bootstrap() []peer.AddrInfo {
	if !d.listening.Load() {
		return nil
	}
	var out []peer.AddrInfo
	for _, k := range d.m.table.all() {
		if len(out) < 8 && len(k.Addrs) > 0 {
			out = append(out, peer.AddrInfo{ID: mustPeer(k.ID), Addrs: parseAddrs(k.Addrs)})
		}
	}
	return out
}

func (d *directory) close() error {
	if d.dht == nil {
		return nil
	}
	return d.dht.Close()
}

// memberUp puts a proven member into the routing table: the DHT looked at it
// before hello was done and turned it down.
func (d *directory) memberUp(p peer.ID, serves bool) {
	if d.dht == nil || !serves {
		return
	}
	if _, err := d.dht.RoutingTable().TryAddPeer(p, false, true); err != nil && !errors.Is(err, kb.ErrPeerRejectedNoCapacity) {
		d.m.log.Debug("routing table", "peer", p, "err", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.keys {
		if !k.stored {
			select {
			case k.again <- struct{}{}:
			default:
			}
		}
	}
}

func (d *directory) memberDown(p peer.ID) {
	if d.dht != nil {
		d.dht.RoutingTable().RemovePeer(p)
	}
}

// keyCID maps a key into the DHT's key space.
func keyCID(key string) cid.Cid {
	sum := sha256.Sum256([]byte("beammesh key 1\x00" + key))
	h, err := mh.Encode(sum[:], mh.SHA2_256)
	if err != nil {
		panic("mesh: encode a SHA-256 multihash: " + err.Error()) // a constant code and length
	}
	return cid.NewCidV1(cid.Raw, h)
}

// Provide is mesh.Directory's. In a mesh of one there is nobody to store the
// record; it is announced when the first member comes.
func (m *Mesh) Provide(ctx context.Context, key string) error {
	d := &m.dir
	if err := m.usable(); err != nil {
		return fmt.Errorf("provide %s: %w", key, err)
	}
	switch {
	case d.dht == nil:
		return fmt.Errorf("provide %s: directory: %w", key, mesh.ErrDisabled)
	case key == "" || len(key) > mesh.MaxKey:
		return fmt.Errorf("provide: key of %d bytes, want 1 to %d", len(key), mesh.MaxKey)
	}
	kctx, stop := context.WithCancel(m.ctx)
	d.mu.Lock()
	if d.keys[key] != nil {
		d.mu.Unlock()
		stop()
		return nil
	}
	if len(d.keys) >= maxKeys {
		d.mu.Unlock()
		stop()
		return fmt.Errorf("provide %s: %d keys already", key, maxKeys)
	}
	k := &provided{stop: stop, again: make(chan struct{}, 1)}
	d.keys[key] = k
	d.mu.Unlock()
	if err := d.announce(ctx, key, k); err != nil {
		m.Withdraw(key)
		return fmt.Errorf("provide %s: %w", key, err)
	}
	m.spawn(func() { d.keep(kctx, key, k) })
	return nil
}

// announce stores the record once; having nobody to store it at is no error.
func (d *directory) announce(ctx context.Context, key string, k *provided) error {
	ctx, cancel := context.WithTimeout(ctx, provideTimeout)
	defer cancel()
	err := d.dht.Provide(ctx, keyCID(key), true)
	if errors.Is(err, kb.ErrLookupFailure) {
		return nil
	}
	if err == nil {
		d.mu.Lock()
		k.stored = d.dht.RoutingTable().Size() > 0
		d.mu.Unlock()
	}
	return err
}

// keep announces again and again until the key is withdrawn.
func (d *directory) keep(ctx context.Context, key string, k *provided) {
	t := time.NewTimer(reprovideEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-k.again:
		case <-ctx.Done():
			return
		}
		if err := d.announce(ctx, key, k); err != nil && ctx.Err() == nil {
			d.m.log.Warn("cannot announce to the directory", "key", key, "err", err)
		}
		t.Reset(reprovideEvery)
	}
}

// Withdraw is mesh.Directory's. Records at other nodes live out their time, but
// Find asks us and we say no.
func (m *Mesh) Withdraw(key string) {
	m.dir.mu.Lock()
	defer m.dir.mu.Unlock()
	if k := m.dir.keys[key]; k != nil {
		k.stop()
		delete(m.dir.keys, key)
	}
}

func (d *directory) provides(key string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.keys[key] != nil
}

// Find is mesh.Directory's.
func (m *Mesh) Find(ctx context.Context, key string, limit int) ([]mesh.PeerID, error) {
	d := &m.dir
	if err := m.usable(); err != nil {
		return nil, fmt.Errorf("find %s: %w", key, err)
	}
	if d.dht == nil {
		return nil, fmt.Errorf("find %s: directory: %w", key, mesh.ErrDisabled)
	}
	limit = min(max(limit, 1), maxFind)
	ctx, cancel := context.WithTimeout(ctx, provideTimeout)
	defer cancel()
	var mu sync.Mutex
	var found []mesh.PeerID
	if d.provides(key) {
		found = append(found, m.self)
	}
	full := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(found) >= limit
	}
	if full() {
		return found, nil
	}
	room := make(chan struct{}, findAtOnce)
	var wg sync.WaitGroup
	for p := range d.dht.FindProvidersAsync(ctx, keyCID(key), 0) {
		id := mesh.PeerID(p.ID.String())
		if id == m.self || full() {
			continue
		}
		m.table.learn(id, "", "", addrTexts(p), mesh.ViaLookup, m.cfg.Clock())
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			if !d.verify(ctx, id, key) {
				return
			}
			mu.Lock()
			if len(found) < limit {
				found = append(found, id)
			}
			enough := len(found) >= limit
			mu.Unlock()
			if enough {
				cancel()
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); errors.Is(err, context.DeadlineExceeded) && len(found) == 0 {
		return nil, fmt.Errorf("find %s: %w", key, err)
	}
	return found, nil
}

func addrTexts(p peer.AddrInfo) []string {
	var out []string
	for _, a := range p.Addrs {
		if len(out) < maxAddrs {
			out = append(out, a.String())
		}
	}
	return out
}

// verify asks a provider itself.
func (d *directory) verify(ctx context.Context, p mesh.PeerID, key string) bool {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	s, err := d.m.Open(ctx, p, protoKey)
	if err != nil {
		return false
	}
	defer s.Close()
	t, _ := ctx.Deadline()
	s.SetDeadline(t)
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	defer stop()
	if err := writeFrame(s, &peerv1.KeyRequest{Key: key}, maxKeyFrame); err != nil {
		return false
	}
	var resp peerv1.KeyResponse
	return readFrame(bufio.NewReader(s), &resp, maxKeyFrame) == nil && resp.Provided
}

func (d *directory) serveKey(s network.Stream) {
	s.SetDeadline(time.Now().Add(verifyTimeout))
	var req peerv1.KeyRequest
	err := readFrame(bufio.NewReader(s), &req, maxKeyFrame)
	if err == nil {
		err = writeFrame(s, &peerv1.KeyResponse{Provided: d.provides(req.Key)}, maxKeyFrame)
	}
	finish(s, err)
}

// Package node puts a BeamMesh node together: the mesh, content, the ledger,
// the market's two sides, containers and the API, in one process.
//
//	n, err := node.New(ctx, node.Config{DataDir: dir, ...})
//	err = n.Found(ctx)            // or n.Join(ctx, ticket); neither when restarted
//	info, err := n.Start(ctx)     // serves from here on
//	err = n.Wait(ctx)             // until ctx ends or something fails for good
//	err = n.Close()
//
// It is the one package that knows all others. Node lists every subsystem with
// what it is for, and Start wires them in one straight line.
package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/content/blocks"
	"github.com/beammesh/beammesh/content/exchange"
	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/libp2p"
	"github.com/beammesh/beammesh/node/api"
	"github.com/beammesh/beammesh/node/journal"
	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/ledger/local"
	"github.com/beammesh/beammesh/node/ledger/remote"
	"github.com/beammesh/beammesh/node/link"
	"github.com/beammesh/beammesh/node/loopback"
	"github.com/beammesh/beammesh/node/marketlog"
	"github.com/beammesh/beammesh/node/marketwire"
	"github.com/beammesh/beammesh/node/owner"
	"github.com/beammesh/beammesh/node/prefetch"
	"github.com/beammesh/beammesh/node/service/call"
	"github.com/beammesh/beammesh/node/tasks"
	"github.com/beammesh/beammesh/node/worker"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/runtime/assets"
	"github.com/beammesh/beammesh/runtime/build"
	"github.com/beammesh/beammesh/runtime/containerd"
	"github.com/beammesh/beammesh/runtime/gpu"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/record"
	"google.golang.org/protobuf/proto"
)

// Node is every subsystem of a running node.
type Node struct {
	cfg   Config
	log   *slog.Logger
	began time.Time // the zero of the machines' clock
	boot  string

	mesh    *libp2p.Mesh     // identity, members, streams, gossip, directory
	dialer  *loopback.Dialer // streams to peers and to self
	blocks  *blocks.Store    // content on disk
	fetcher *exchange.Fetcher
	serving *exchange.Server
	ledger  ledger.Ledger
	store   *taskStore // journal of tasks
	tokens  *tokens
	adverts *adverts
	puller  *puller
	links   *link.Links
	owner   *owner.Owner
	mix     *mixer
	record  func(record.Record) // into the market's journal; nil = none is kept
	worker  *worker.Worker      // nil: this node runs no containers
	engine  *containerd.Engine  // nil with it
	gpus    gpu.Inventory
	images  *images
	builder *build.Builder // nil with the engine
	// prefetch keeps images ready; nil with the engine, or switched off.
	prefetch *prefetch.Prefetcher
	router   *tasks.Router
	maps     *call.Service
	api      *api.Server // TCP ports
	inner    *api.Server // sockets in containers

	grpcAddr, httpAddr string
	refusals           refusals // members that turn this node away

	ctx      context.Context // of everything in the background
	cancel   context.CancelCauseFunc
	wg       sync.WaitGroup
	draining atomic.Bool
	notes    []string // why it is less than it could be
	closers  []func() error
}

// Info is what is known once the node can take work.
type Info struct {
	ID, Name, MeshID string
	Members          int
	Ticket, Token    string
	GRPC, HTTP       string
	Worker           bool
	Notes            []string
}

// New opens the data directory and the identity. Nothing is served yet.
func New(ctx context.Context, cfg Config) (*Node, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o755); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	n := &Node{cfg: cfg, log: cfg.Log, began: time.Now()}
	n.ctx, n.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	// The mesh asks these for its handshake; they are filled in by Start.
	n.adverts = newAdverts("", cfg.Log)
	n.adverts.mute = cfg.NoGossip
	n.mesh, err = libp2p.New(ctx, libp2p.Config{
		DataDir: n.dir("mesh"), Listen: cfg.Listen, Name: cfg.Name, Version: cfg.Version,
		NoGossip: cfg.NoGossip, NoDirectory: cfg.NoDHT, NoMDNS: cfg.NoMDNS,
		DialKnownOnly: cfg.Faults.KnownOnly, Clock: cfg.Faults.clock(), Interface: notTenant, Hello: n.adverts, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	n.adverts.self = n.mesh.PeerID()
	return n, nil
}

// notTenant keeps mDNS and announced addresses off the bridge that containers
// are on: its devices carry the engine's prefix.
func notTenant(i net.Interface) bool { return len(i.Name) < 2 || i.Name[:2] != "bm" }

func (n *Node) dir(parts ...string) string {
	return filepath.Join(append([]string{n.cfg.DataDir}, parts...)...)
}

// Joined says whether this machine has a membership.
func (n *Node) Joined() bool { return n.mesh.Joined() }

// Found makes a mesh of one.
func (n *Node) Found(ctx context.Context) error { return n.mesh.Found(ctx) }

// Join redeems a ticket.
func (n *Node) Join(ctx context.Context, ticket string) error { return n.mesh.Join(ctx, ticket) }

func (n *Node) clock() time.Duration { return time.Since(n.began) }

func (n *Node) onClose(fn func() error) { n.closers = append(n.closers, fn) }

func (n *Node) spawn(fn func(ctx context.Context)) {
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		fn(n.ctx)
	}()
}

// Start builds every subsystem and serves. When it fails, Close cleans up.
func (n *Node) Start(ctx context.Context) (*Info, error) {
	steps := []struct {
		what string
		do   func(context.Context) error
	}{
		{"content", n.startContent},
		{"ledger and tokens", n.startRecords},
		{"market", n.startMarket},
		{"containers", n.startRuntime},
		{"API", n.startAPI},
		{"mesh", n.startMesh},
	}
	for _, s := range steps {
		if err := s.do(ctx); err != nil {
			return nil, fmt.Errorf("start %s: %w", s.what, err)
		}
	}
	return n.info(ctx)
}

func (n *Node) startContent(context.Context) error {
	var err error
	n.dialer = loopback.New(n.ctx, n.mesh.PeerID(), n.mesh)
	if n.blocks, err = blocks.Open(n.dir("blocks"), blocks.Options{FloorBytes: n.cfg.DiskFloor, Log: n.log}); err != nil {
		return err
	}
	n.onClose(n.blocks.Close)
	n.fetcher = exchange.NewFetcher(n.blocks, blockOpener{n.dialer}, exchange.FetcherOptions{Log: n.log})
	n.serving = exchange.NewServer(n.cfg.Faults.blocks(n.blocks, n.log), exchange.ServerOptions{Log: n.log})
	n.dialer.Handle(content.BlockProtocol, func(ctx context.Context, s mesh.Stream) {
		if err := n.serving.Serve(ctx, string(s.Peer()), abortive{s}); err != nil {
			n.log.Debug("block stream ended", "peer", s.Peer(), "err", err)
		}
	})
	n.puller = &puller{store: n.blocks, fetcher: n.fetcher, self: n.mesh.PeerID(), onHot: func([]string) {},
		find: func(ctx context.Context, root string) []mesh.PeerID { return n.findHolders(ctx, root) }}
	return nil
}

// findHolders names peers that may have a root: those that advertise it, else
// what the directory knows, else every connected member.
func (n *Node) findHolders(ctx context.Context, root string) []mesh.PeerID {
	ids := n.adverts.holders(root)
	if len(ids) == 0 && !n.cfg.NoDHT {
		fctx, cancel := context.WithTimeout(ctx, discoverWait)
		found, err := n.mesh.Find(fctx, "root/"+root, discoverLimit)
		cancel()
		if err != nil {
			n.log.Debug("look up a root", "root", root, "err", err)
		}
		ids = append(ids, found...)
	}
	for _, m := range n.mesh.Members() {
		if m.Connected && m.Path != mesh.PathSelf && !slices.Contains(ids, m.ID) {
			ids = append(ids, m.ID)
		}
	}
	return ids[:min(len(ids), 16)]
}

func (n *Node) startRecords(context.Context) error {
	rootPub, root := n.mesh.Root()
	self, founder := n.mesh.PeerID(), n.mesh.Founder()
	var err error
	if founder == self {
		if n.ledger, err = local.Open(n.dir("ledger"), local.Options{Logger: n.log}); err != nil {
			return err
		}
	} else {
		open := remote.OpenerFunc(func(ctx context.Context) (io.ReadWriteCloser, error) {
			return n.dialer.Open(ctx, founder, ledger.Protocol)
		})
		if n.ledger, err = remote.Open(n.dir("ledger"), open, remote.Options{Logger: n.log}); err != nil {
			return err
		}
	}
	n.onClose(n.ledger.Close)
	n.dialer.Handle(ledger.Protocol, func(ctx context.Context, s mesh.Stream) {
		defer s.Close()
		if founder != self {
			_ = s.Reset() // only the voter answers
			return
		}
		if err := remote.Serve(ctx, n.ledger, s); err != nil {
			n.log.Debug("ledger stream ended", "peer", s.Peer(), "err", err)
		}
	})
	if n.tokens, err = openTokens(n.dir("tokens"), n.mesh.ID(), self, rootPub, root, n.log); err != nil {
		return err
	}
	n.onClose(n.tokens.deny.Close)
	n.tokens.ledger = n.ledger
	n.tokens.spread = func(raw string) {
		if err := n.mesh.Publish(n.ctx, topicRevocations, []byte(raw)); err != nil {
			n.log.Warn("a revocation reaches other nodes only when they next connect", "err", err)
		}
	}
	n.dialer.Handle(protoDelegate, n.tokens.serve(func(p mesh.PeerID) string {
		for _, m := range n.mesh.Members() {
			if m.ID == p {
				return m.Tier
			}
		}
		return ""
	}))
	n.dialer.Handle(protoRevoked, n.tokens.serveRevoked)
	if n.store, err = openTaskStore(n.dir("journal"), journal.Options{Logger: n.log}); err != nil {
		return err
	}
	n.onClose(n.store.j.Close)
	return nil
}

// topicRevocations spreads signed revocations of tokens.
const topicRevocations = "revocations"

func (n *Node) startMarket(context.Context) error {
	a := n.adverts
	a.signer, a.gossip, a.dir, a.deny, a.differs = n.mesh, n.mesh, n.mesh, n.tokens.deny, n.tokens.differs
	n.links = link.New(n.mesh.PeerID(), n.dialer, n.deliver, n.log)
	n.onClose(n.links.Close)
	n.dialer.Handle(link.Protocol, n.links.Serve)
	a.ask = func(to mesh.PeerID) {
		n.links.Send(to, &peerv1.MarketMessage{What: &peerv1.MarketMessage_WantAdvert{WantAdvert: &peerv1.WantAdvert{}}}, nil)
	}
	if n.cfg.MarketJournal > 0 {
		l, err := marketlog.Open(n.dir("market"), marketlog.Options{Bytes: n.cfg.MarketJournal, Log: n.log})
		if err != nil {
			return err
		}
		n.onClose(l.Close)
		n.record = l.Record
	}
	n.mix = &mixer{clock: n.clock, change: make(chan struct{}, 1), set: n.setMix, publish: n.publishMix}
	n.owner = owner.New(owner.Config{
		Self: n.mesh.PeerID(), Name: n.cfg.Name, Epoch: n.store.j.Epoch(), Clock: n.clock, Dialer: n.dialer,
		Planner: &planner{ledger: n.ledger, puller: n.puller, adverts: a, tokens: n.tokens, self: string(n.mesh.PeerID()), zone: n.cfg.Zone},
		Journal: n.store, Log: n.log, Send: n.send, Publish: n.publishOffer, Discover: a.discover, NodeName: a.name,
		Limits: n.cfg.limits(), Record: n.record, Wanted: n.mix.observe,
	})
	a.seen = func(ev market.AdvertSeen) {
		n.owner.Step(ev)
		if n.prefetch != nil && ev.Advert.Node != scheduler.NodeID(n.mesh.PeerID()) {
			n.prefetch.Heard(ev.Advert.Capacity.HotRoots)
		}
	}
	n.onClose(func() error { n.owner.Close(); return nil })
	n.router = &tasks.Router{Self: n.mesh.PeerID(), Dialer: n.dialer, Members: n.mesh, Owner: n.owner, Log: n.log}
	n.dialer.Handle(tasks.Protocol, n.router.Serve)
	return nil
}

// send carries a message of either machine to a node.
func (n *Node) send(to scheduler.NodeID, m any, order []byte, failed func(error)) {
	msg, err := marketwire.Encode(m, order)
	if err != nil {
		n.log.Error("encode market message", "err", err)
		return
	}
	n.links.Send(mesh.PeerID(to), msg, failed)
}

func (n *Node) publishOffer(o market.OpenOffer) {
	b, err := proto.Marshal(marketwire.OpenOfferOut(o))
	if err != nil {
		n.log.Error("encode open offer", "err", err)
		return
	}
	n.spawn(func(ctx context.Context) {
		if err := n.mesh.Publish(ctx, topicOffers, b); err != nil && ctx.Err() == nil {
			n.log.Debug("gossip open offer", "err", err)
		}
	})
	if n.worker != nil { // own gossip does not come back
		n.worker.Step(o, nil)
	}
}

// deliver takes a market message from a peer, or from this node.
func (n *Node) deliver(from mesh.PeerID, m *peerv1.MarketMessage) {
	switch m.What.(type) {
	case *peerv1.MarketMessage_WantAdvert:
		if own := n.adverts.reply(); own != nil {
			n.links.Send(from, &peerv1.MarketMessage{What: &peerv1.MarketMessage_Advert{Advert: own}}, nil)
		}
		return
	case *peerv1.MarketMessage_Advert:
		n.adverts.take(from, m.GetAdvert(), scheduler.SourceLookup)
		return
	}
	d, err := marketwire.Decode(scheduler.NodeID(from), m)
	switch {
	case err != nil:
		n.log.Debug("market message refused", "peer", from, "err", err)
	case d.ToOwner != nil:
		n.owner.Step(d.ToOwner)
	case n.worker != nil:
		n.worker.Step(d.ToWorker, d.Order)
	}
}

func (n *Node) startRuntime(ctx context.Context) error {
	h := sha256.Sum256([]byte(n.mesh.PeerID() + mesh.PeerID(time.Now().String())))
	n.boot = hex.EncodeToString(h[:8])
	n.images = newImages(n)
	n.dialer.Handle(protoBuild, n.serveBuild)
	wcfg := market.WorkerConfig{Node: scheduler.NodeID(n.mesh.PeerID()), Name: n.cfg.Name, Boot: n.boot}
	if os.Geteuid() != 0 {
		n.notes = append(n.notes, "not root: this node takes work and serves the API, but runs no containers (start it with sudo to)")
		n.adverts.set(scheduler.Advert{Node: wcfg.Node, Name: wcfg.Name, Boot: wcfg.Boot, Seq: 1})
		return nil
	}
	paths, err := assets.Extract(n.dir("assets"))
	if err != nil {
		return err
	}
	if n.gpus, err = n.inventory(paths); err != nil {
		return err
	}
	n.onClose(n.gpus.Close)
	state := stateDir(n.cfg)
	ec := engineConfig(n.cfg.DataDir, state)
	ec.ShimPath, ec.RuncPath, ec.InitPath = paths.Shim, paths.Runc, paths.Initd
	ec.LayerWriter, ec.Upstream, ec.DeviceEdits, ec.Log = n.puller, n.cfg.UpstreamDNS, n.gpus.Edits, n.log
	if n.engine, err = containerd.New(ctx, ec); err != nil {
		return err
	}
	n.onClose(n.engine.Close)
	wcfg.Capacity, err = n.capacity(ctx)
	if err != nil {
		return err
	}
	wcfg.CPUOvercommit, wcfg.OwnerGap = int64(n.cfg.CPUOvercommit), n.cfg.OwnerGap
	n.worker, err = worker.New(worker.Config{
		Market: wcfg, Engine: n.engine, Puller: n.puller, LogDir: n.dir("logs"), Bundle: paths.Runner, Name: n.cfg.Name,
		APIEnv: insideEnv, RunDirs: filepath.Join(state, "a"), Clock: n.clock, Log: n.log, Sockets: n.insideAPI,
		Send:      func(to scheduler.NodeID, m any) { n.send(to, m, nil, nil) },
		Advertise: n.adverts.set, Record: n.record,
	})
	if err != nil {
		return err
	}
	n.onClose(func() error { n.worker.Close(); return nil })
	n.router.Worker = n.worker
	n.puller.onHot = func(roots []string) { n.worker.Step(market.SetHotRoots{Roots: roots}, nil) }
	n.dialer.Handle(worker.LeaseProtocol, n.worker.ServeLease)
	n.dialer.Handle(worker.LogsProtocol, n.worker.ServeLogs)
	n.adverts.set(n.worker.Advert())
	if n.builder, err = n.newBuilder(ctx); err != nil {
		return err
	}
	if !n.cfg.NoPrefetch {
		n.prefetch, err = n.newPrefetcher()
	}
	return err
}

// stateDir is a short path for sockets, different for each data directory.
func stateDir(c Config) string {
	if c.StateDir != "" {
		return c.StateDir
	}
	d := sha256.Sum256([]byte(c.DataDir))
	return "/run/beam/" + hex.EncodeToString(d[:4])
}

// engineConfig says where a node's containers live; Sweep uses the same.
func engineConfig(dataDir, state string) containerd.Config {
	c := containerd.Config{Root: filepath.Join(dataDir, "runtime"), State: state}
	if p := os.Getenv("BEAM_CGROUP_PARENT"); p != "" {
		// A dev mesh gives each node a share; its containers count towards it.
		// They have a group of their own below, which a sweep may empty.
		c.CgroupParent = filepath.Join(p, "containers")
	}
	return c
}

// Sweep removes what the containers of a dead node left on this machine.
func Sweep(dataDir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := Config{DataDir: dataDir}
	if _, err := os.Stat(filepath.Join(dataDir, "runtime")); os.IsNotExist(err) {
		return nil
	}
	state := stateDir(c)
	if err := containerd.Sweep(ctx, engineConfig(dataDir, state)); err != nil {
		return err
	}
	// Sockets only are left in it; were something mounted, its files stay.
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), " "+state+"/") {
		return err
	}
	if err := os.RemoveAll(state); err != nil {
		return fmt.Errorf("remove the folder of sockets: %w", err)
	}
	_ = os.Remove(filepath.Dir(state)) // stays while other nodes have theirs in it
	return nil
}

// insideEnv tells clients in containers where the API is: init forwards these
// ports to the container's socket.
var insideEnv = []string{
	"GATEWAY_HOST=127.0.0.1", "GATEWAY_PORT=1993", "API_HOST=127.0.0.1", "API_PORT=1994",
	"BETA9_GATEWAY_HOST=127.0.0.1", "BETA9_GATEWAY_PORT=1993",
	"BETA9_GATEWAY_HOST_HTTP=127.0.0.1", "BETA9_GATEWAY_PORT_HTTP=1994",
}

func (n *Node) inventory(p assets.Paths) (gpu.Inventory, error) {
	if n.cfg.SimulatedGPUs != "" {
		return gpu.Simulated(n.cfg.SimulatedGPUs)
	}
	return gpu.NewHelper(gpu.HelperConfig{Argv: []string{p.NVML}, Log: n.log}), nil
}

// capacity is what this machine offers.
func (n *Node) capacity(ctx context.Context) (scheduler.Capacity, error) {
	free, total, err := disk(n.cfg.DataDir)
	if err != nil {
		return scheduler.Capacity{}, err
	}
	c := scheduler.Capacity{
		Total:          scheduler.Resources{CPUMillis: n.cfg.cpuMillis(), MemoryMiB: n.cfg.memoryMiB(), DiskMiB: total},
		BandwidthKiBps: n.puller.bandwidth(), DiskFloorMiB: n.cfg.DiskFloor >> 20, Isolation: []string{"trusted"}, Arch: goruntime.GOARCH,
		Zone: n.cfg.Zone,
	}
	c.Free = c.Total
	c.Free.DiskMiB = min(free, total)
	devs, err := n.gpus.List(ctx)
	if err != nil && !errors.Is(err, gpu.ErrNoDriver) {
		n.notes = append(n.notes, "GPUs cannot be read: "+err.Error())
	}
	for _, d := range devs[:min(len(devs), scheduler.MaxDevices)] {
		if d.Unhealthy != "" {
			n.notes = append(n.notes, fmt.Sprintf("GPU %s (%s) gets no work: %s", d.ID, d.Model, d.Unhealthy))
			continue
		}
		c.Devices = append(c.Devices, scheduler.Device{ID: d.ID, Class: d.Model, MemoryMiB: d.MemoryMiB,
			FreeMilli: scheduler.GPUExclusive, Simulated: d.Simulated})
	}
	return c, nil
}

func (n *Node) startMesh(ctx context.Context) error {
	if err := n.mesh.Start(ctx); err != nil {
		return err
	}
	unwatch := n.mesh.Watch(n.memberChanged)
	n.onClose(func() error { unwatch(); return nil })
	for topic, fn := range map[string]func(mesh.PeerID, []byte){
		topicAdverts: n.adverts.heard, topicOffers: n.heardOffer, topicRevocations: n.tokens.heard, topicMix: n.mix.heard,
	} {
		if n.cfg.NoGossip {
			break
		}
		cancel, err := n.mesh.Subscribe(topic, fn)
		if err != nil {
			return err
		}
		n.onClose(func() error { cancel(); return nil })
	}
	n.spawn(n.adverts.run)
	n.spawn(n.mix.run)
	if n.worker != nil {
		n.spawn(n.worker.Run)
		n.spawn(n.watchMachine)
	}
	if n.prefetch != nil {
		n.spawn(n.prefetch.Run)
	}
	n.spawn(n.announce)
	n.spawn(n.housekeep)
	n.spawn(n.getDelegation)
	n.spawn(func(ctx context.Context) { n.tokens.catchUp(ctx, n.dialer) })
	return n.owner.Restore(ctx)
}

func (n *Node) heardOffer(from mesh.PeerID, data []byte) {
	m := new(peerv1.OpenOffer)
	if n.worker == nil || proto.Unmarshal(data, m) != nil {
		return
	}
	o, err := marketwire.OpenOfferIn(scheduler.NodeID(from), m)
	if err != nil {
		n.log.Debug("open offer refused", "peer", from, "err", err)
		return
	}
	n.worker.Step(o, nil)
}

// memberChanged tells both machines who comes and goes.
func (n *Node) memberChanged(ev mesh.Event) {
	id := ev.Member.ID
	if id == n.mesh.PeerID() {
		return
	}
	n.refusals.note(ev)
	switch ev.Type {
	case mesh.MemberUp:
		n.owner.Step(market.NodeUp{Node: scheduler.NodeID(id)})
		if n.worker != nil {
			n.worker.Step(market.OwnerUp{Peer: scheduler.NodeID(id)}, nil)
		}
		if l, ok := n.ledger.(*remote.Ledger); ok && id == n.mesh.Founder() {
			l.Nudge()
		}
		if n.prefetch != nil {
			n.prefetch.Nudge()
		}
	case mesh.MemberDown:
		n.adverts.drop(id)
		n.owner.Step(market.NodeDown{Node: scheduler.NodeID(id), Reason: ev.Reason, Left: ev.Left})
		if n.worker != nil {
			n.worker.Step(market.OwnerDown{Peer: scheduler.NodeID(id)}, nil)
		}
	case mesh.MemberRefused:
		n.log.Warn("a peer was refused", "peer", id, "reason", ev.Reason, "hint", ev.Hint)
	}
}

// Wait returns when ctx ends (nil) or the node ended itself.
func (n *Node) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-n.ctx.Done():
		if err := context.Cause(n.ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, errLeft) {
			return err
		}
		return nil
	}
}

// Close ends everything in the reverse order of its start. May be called twice.
func (n *Node) Close() error {
	n.cancel(nil)
	var errs []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	n.closers = nil
	errs = append(errs, n.mesh.Close())
	n.wg.Wait()
	return errors.Join(errs...)
}

package node

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/node/marketwire"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"google.golang.org/protobuf/proto"
)

const (
	topicAdverts = "adverts"
	topicOffers  = "offers"
	// heartbeat repeats the own advert: gossip loses messages.
	heartbeat = 5 * time.Second
	// advertEvery bounds how often a changing advert is gossiped.
	advertEvery = 100 * time.Millisecond
	// maxAdvertRoots keeps an advert within its 512 bytes, nearly.
	maxAdvertRoots = 8
	// signatureRoom is what a signature and its envelope add to an advert.
	signatureRoom = 80
	// maxAdverts bounds the view that is kept and handed on.
	maxAdverts = 4096
	// maxView bounds what one hello carries.
	maxView = 200 << 10
	// discoverWait bounds the wait for adverts of nodes that the DHT named.
	discoverWait = 2 * time.Second
	// discoverLimit is how many nodes are looked up per class.
	discoverLimit = 8
)

// adverts keeps what nodes say of themselves, spreads what this one says, and
// feeds the owner's view. It implements mesh.Hello.
type adverts struct {
	self   mesh.PeerID
	signer mesh.Signer
	gossip mesh.Gossip
	dir    mesh.Directory
	log    *slog.Logger
	seen   func(market.AdvertSeen)
	ask    func(to mesh.PeerID) // sends WantAdvert
	deny   revocations
	// differs takes the digest of what a peer knows to be revoked.
	differs func(from mesh.PeerID, digest string)

	// mute: this node is without gossip, so that hello carries its own advert only.
	mute bool

	change chan struct{} // one token: the own advert changed

	mu    sync.Mutex
	known map[mesh.PeerID]known
	own   *peerv1.SignedAdvert
	names map[mesh.PeerID]string          // of every node ever heard of in this life, at most maxAdverts
	wait  map[mesh.PeerID][]chan struct{} // woken when an advert of that node comes
}

// revocations is the part of token.DenySet that hello brings together.
type revocations interface {
	All() []string
	AddAll(raws []string) (news int, err error)
	Digest() string
}

// maxRevocations bounds those in one hello; the others follow, see tokens.catchUp.
const maxRevocations = 256

// maxRevocationBytes is the room for them beside the adverts: a greeting may
// have mesh.MaxHelloPayload in all.
const maxRevocationBytes = 48 << 10

type known struct {
	advert scheduler.Advert
	signed *peerv1.SignedAdvert
}

func newAdverts(self mesh.PeerID, log *slog.Logger) *adverts {
	return &adverts{self: self, log: log, change: make(chan struct{}, 1), known: map[mesh.PeerID]known{}, names: map[mesh.PeerID]string{}, wait: map[mesh.PeerID][]chan struct{}{}}
}

// set takes a changed advert of this node. It does not block.
func (a *adverts) set(ad scheduler.Advert) {
	ad.Capacity.HotRoots = ad.Capacity.HotRoots[:min(len(ad.Capacity.HotRoots), maxAdvertRoots)]
	b, err := proto.Marshal(marketwire.AdvertOut(ad))
	tooLarge := func() bool { return err == nil && len(b) > mesh.MaxGossip-signatureRoom }
	if tooLarge() { // many devices: others do not need their ids
		b, err = proto.Marshal(marketwire.AdvertSmall(ad))
	}
	for tooLarge() && len(ad.Capacity.HotRoots) > 0 { // what is hot here is only a hint
		ad.Capacity.HotRoots = ad.Capacity.HotRoots[:len(ad.Capacity.HotRoots)-1]
		b, err = proto.Marshal(marketwire.AdvertSmall(ad))
	}
	if err != nil {
		a.log.Error("encode own advert", "err", err)
		return
	}
	sig, err := a.signer.Sign(b)
	if err != nil {
		a.log.Error("sign own advert", "err", err)
		return
	}
	a.mu.Lock()
	a.own = &peerv1.SignedAdvert{Advert: b, Signature: sig}
	a.known[a.self] = known{ad, a.own}
	a.mu.Unlock()
	select {
	case a.change <- struct{}{}:
	default:
	}
	a.seen(market.AdvertSeen{Advert: ad, Source: scheduler.SourceSelf})
}

// run gossips the own advert on change and as a heartbeat, until ctx ends.
func (a *adverts) run(ctx context.Context) {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-a.change:
		case <-beat.C:
		case <-ctx.Done():
			return
		}
		a.mu.Lock()
		own := a.own
		a.mu.Unlock()
		if own != nil {
			if b, err := proto.Marshal(own); err == nil {
				if err := a.gossip.Publish(ctx, topicAdverts, b); err != nil && ctx.Err() == nil {
					a.log.Debug("gossip own advert", "err", err)
				}
			}
		}
		beat.Reset(heartbeat) // what was just said needs no repeating
		pause.Reset(advertEvery)
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
	}
}

// take checks an advert that from handed on and feeds it if it is news.
func (a *adverts) take(from mesh.PeerID, s *peerv1.SignedAdvert, source scheduler.Source) {
	p := new(peerv1.Advert)
	if err := proto.Unmarshal(s.GetAdvert(), p); err != nil {
		return
	}
	ad := marketwire.AdvertIn(p)
	id := mesh.PeerID(ad.Node)
	if id == a.self || ad.Validate() != nil {
		return
	}
	news, known := a.isNews(from, ad)
	if news {
		if err := a.signer.Verify(id, s.Advert, s.Signature); err != nil {
			a.log.Debug("advert with a bad signature", "peer", id)
			return
		}
		news, known = a.keep(from, ad, s)
	}
	if !known {
		return
	}
	a.mu.Lock()
	waiting := a.wait[id]
	delete(a.wait, id)
	a.mu.Unlock()
	for _, w := range waiting {
		close(w)
	}
	if news {
		a.seen(market.AdvertSeen{Advert: ad, Source: source})
	}
}

// isNews tells whether an advert is to be taken, and whether one of its node is
// there already. What a node said in an earlier life stays signed for ever: only
// the node itself brings a new boot, others what they heard.
func (a *adverts) isNews(from mesh.PeerID, ad scheduler.Advert) (news, known bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.isNewsLocked(from, ad)
}

func (a *adverts) isNewsLocked(from mesh.PeerID, ad scheduler.Advert) (news, known bool) {
	id := mesh.PeerID(ad.Node)
	old, ok := a.known[id]
	switch {
	case !ok:
		return len(a.known) < maxAdverts, false
	case old.advert.Boot != ad.Boot:
		return from == id, true
	}
	// A repeat (a heartbeat) is a sign of life that the view needs.
	return ad.Seq >= old.advert.Seq, true
}

// keep files a verified advert, unless a newer one came meanwhile.
func (a *adverts) keep(from mesh.PeerID, ad scheduler.Advert, s *peerv1.SignedAdvert) (news, is bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	news, is = a.isNewsLocked(from, ad)
	if news {
		id := mesh.PeerID(ad.Node)
		a.known[id] = known{ad, s}
		if _, ok := a.names[id]; ad.Name != "" && (ok || len(a.names) < maxAdverts) {
			a.names[id] = ad.Name
		}
	}
	return news, is || news
}

// heard takes an advert from gossip.
func (a *adverts) heard(from mesh.PeerID, data []byte) {
	s := new(peerv1.SignedAdvert)
	if proto.Unmarshal(data, s) == nil {
		a.take(from, s, scheduler.SourceGossip)
	}
}

// Local implements mesh.Hello: everything this node knows, or what it says of
// itself when it is without gossip.
func (a *adverts) Local(mesh.PeerID) []byte {
	a.mu.Lock()
	v := &peerv1.View{}
	size := 0
	if a.own != nil {
		v.Adverts = append(v.Adverts, a.own)
	}
	for id, k := range a.known {
		if id == a.self || a.mute {
			continue
		}
		if size += proto.Size(k.signed) + 8; size > maxView {
			break
		}
		v.Adverts = append(v.Adverts, k.signed)
	}
	a.mu.Unlock()
	v.RevocationsDigest = a.deny.Digest()
	v.Revocations = a.deny.All()
	v.Revocations = v.Revocations[:min(len(v.Revocations), maxRevocations)]
	size = 0
	for i, r := range v.Revocations {
		if size += len(r) + 4; size > maxRevocationBytes {
			v.Revocations = v.Revocations[:i]
			break
		}
	}
	b, err := proto.Marshal(v)
	if err != nil {
		a.log.Error("encode view", "err", err)
	}
	return b
}

// Remote implements mesh.Hello.
func (a *adverts) Remote(from mesh.PeerID, via mesh.Via, payload []byte) {
	v := new(peerv1.View)
	if proto.Unmarshal(payload, v) != nil {
		return
	}
	if _, err := a.deny.AddAll(v.Revocations[:min(len(v.Revocations), maxRevocations)]); err != nil {
		a.log.Debug("revocation refused", "err", err)
	}
	a.differs(from, v.RevocationsDigest)
	for i, s := range v.Adverts {
		source := scheduler.SourceHello
		switch {
		case i > 0: // a peer's own is its first
		case via == mesh.ViaDirectory:
			source = scheduler.SourceDHT
		case via == mesh.ViaLookup:
			source = scheduler.SourceLookup
		}
		a.take(from, s, source)
	}
}

// reply gives the own advert for a WantAdvert.
func (a *adverts) reply() *peerv1.SignedAdvert {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.own
}

// discover looks for nodes of GPU classes in the DHT and feeds their adverts.
func (a *adverts) discover(ctx context.Context, classes []string) {
	keys := []string{"role/worker"}
	if len(classes) > 0 {
		keys = nil
		for _, c := range classes {
			keys = append(keys, "gpu/"+c)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 3*discoverWait)
	defer cancel()
	for _, key := range keys {
		ids, err := a.dir.Find(ctx, key, discoverLimit)
		if err != nil {
			a.log.Debug("look up nodes", "key", key, "err", err)
		}
		var waits []chan struct{}
		for _, id := range ids {
			if id == a.self {
				continue
			}
			w := make(chan struct{})
			a.mu.Lock()
			k, ok := a.known[id]
			if !ok {
				a.wait[id] = append(a.wait[id], w)
			}
			a.mu.Unlock()
			if ok {
				// The view knows it already; that the DHT names it is news.
				a.seen(market.AdvertSeen{Advert: k.advert, Source: scheduler.SourceLookup})
				continue
			}
			waits = append(waits, w)
			a.ask(id)
		}
		wctx, stop := context.WithTimeout(ctx, discoverWait)
		for _, w := range waits {
			select {
			case <-w:
			case <-wctx.Done():
			}
		}
		stop()
		a.forget(waits)
	}
}

// forget gives up waiting for nodes that did not answer.
func (a *adverts) forget(waits []chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, ws := range a.wait {
		ws = slices.DeleteFunc(ws, func(w chan struct{}) bool { return slices.Contains(waits, w) })
		if len(ws) == 0 {
			delete(a.wait, id)
		} else {
			a.wait[id] = ws
		}
	}
}

// holders names the nodes that advertise a root as complete.
func (a *adverts) holders(root string) []mesh.PeerID {
	a.mu.Lock()
	defer a.mu.Unlock()
	var ids []mesh.PeerID
	for id, k := range a.known {
		if id != a.self && slices.Contains(k.advert.Capacity.HotRoots, root) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// of gives the last advert of a node.
func (a *adverts) of(id mesh.PeerID) (scheduler.Advert, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, ok := a.known[id]
	return k.advert, ok
}

// drop forgets a node that is down: what it said is no longer handed on.
func (a *adverts) drop(id mesh.PeerID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if id != a.self {
		delete(a.known, id)
	}
}

// name gives a node's name for people.
func (a *adverts) name(id mesh.PeerID) string {
	if ad, ok := a.of(id); ok && ad.Name != "" {
		return ad.Name
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := a.names[id]; n != "" { // it is down: what it said is forgotten, not its name
		return n
	}
	return string(id)
}

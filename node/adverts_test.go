package node

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/meshtest"
	"github.com/beammesh/beammesh/node/marketwire"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"google.golang.org/protobuf/proto"
)

type noRevocations struct{ list []string }

func (r *noRevocations) All() []string                { return r.list }
func (r *noRevocations) AddAll([]string) (int, error) { return 0, nil }
func (r *noRevocations) Digest() string               { return "" }

// view is an adverts with what it told the owner.
type view struct {
	*adverts
	node *meshtest.Node
	mu   sync.Mutex
	got  []market.AdvertSeen
	more chan struct{}
}

func newView(t *testing.T, w *meshtest.Network, name string) *view {
	t.Helper()
	n := w.Join(name)
	t.Cleanup(func() { _ = n.Close() })
	v := &view{adverts: newAdverts(n.PeerID(), slog.New(slog.DiscardHandler)), node: n, more: make(chan struct{}, 1)}
	v.signer, v.gossip, v.dir, v.deny = n, n, n, &noRevocations{}
	v.ask = func(mesh.PeerID) {}
	v.differs = func(mesh.PeerID, string) {}
	v.seen = func(s market.AdvertSeen) {
		v.mu.Lock()
		v.got = append(v.got, s)
		v.mu.Unlock()
		select {
		case v.more <- struct{}{}:
		default:
		}
	}
	n.Start()
	return v
}

func (v *view) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.got)
}

func says(n *meshtest.Node, boot string, seq uint64) scheduler.Advert {
	return scheduler.Advert{Node: scheduler.NodeID(n.PeerID()), Name: "box", Boot: boot, Seq: seq,
		Capacity: scheduler.Capacity{Total: scheduler.Resources{CPUMillis: 1000}, Free: scheduler.Resources{CPUMillis: 1000}}}
}

func signed(t *testing.T, by *meshtest.Node, ad scheduler.Advert) *peerv1.SignedAdvert {
	t.Helper()
	b, err := proto.Marshal(marketwire.AdvertOut(ad))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := by.Sign(b)
	if err != nil {
		t.Fatal(err)
	}
	return &peerv1.SignedAdvert{Advert: b, Signature: sig}
}

func TestOldAndForgedAdverts(t *testing.T) {
	w := meshtest.NewNetwork()
	v := newView(t, w, "me")
	box, other := w.Join("box"), w.Join("other")
	id, third := box.PeerID(), other.PeerID()
	forged := signed(t, box, says(box, "b1", 9))
	forged.Signature = bytes.Clone(forged.Signature)
	forged.Signature[5] ^= 1
	impossible := says(box, "b1", 9)
	impossible.Capacity.Free.CPUMillis = 5000
	for _, c := range []struct {
		name string
		from mesh.PeerID
		s    *peerv1.SignedAdvert
		news bool
		seq  uint64
		boot string
	}{
		{"first, from a third", third, signed(t, box, says(box, "b1", 3)), true, 3, "b1"},
		{"newer", id, signed(t, box, says(box, "b1", 5)), true, 5, "b1"},
		{"repeat: a sign of life", id, signed(t, box, says(box, "b1", 5)), true, 5, "b1"},
		{"older", id, signed(t, box, says(box, "b1", 4)), false, 5, "b1"},
		{"bad signature", id, forged, false, 5, "b1"},
		{"signed by another", third, signed(t, other, says(box, "b1", 9)), false, 5, "b1"},
		{"impossible amounts", id, signed(t, box, impossible), false, 5, "b1"},
		{"no advert", id, &peerv1.SignedAdvert{Advert: []byte{0xff}}, false, 5, "b1"},
		{"nothing", id, nil, false, 5, "b1"},
		{"another boot, from a third", third, signed(t, box, says(box, "b0", 99)), false, 5, "b1"},
		{"a new boot, from itself", id, signed(t, box, says(box, "b2", 1)), true, 1, "b2"},
		{"the old boot, from a third", third, signed(t, box, says(box, "b1", 5)), false, 1, "b2"},
	} {
		before := v.count()
		v.take(c.from, c.s, scheduler.SourceGossip)
		ad, ok := v.of(id)
		if (v.count() > before) != c.news || !ok || ad.Seq != c.seq || ad.Boot != c.boot {
			t.Errorf("%s: news %v, known %v as %s %d", c.name, v.count() > before, ok, ad.Boot, ad.Seq)
		}
	}
	// Nobody tells us about ourselves.
	before := v.count()
	v.take(id, signed(t, v.node, says(v.node, "x", 1)), scheduler.SourceHello)
	if v.count() != before {
		t.Error("took an advert of its own from elsewhere")
	}
	v.drop(id)
	if _, ok := v.of(id); ok || v.name(id) != "box" {
		t.Error("a dropped node is still known, or its name is not")
	}
}

func TestConcurrentAdvertsEndWithTheNewest(t *testing.T) {
	w := meshtest.NewNetwork()
	v := newView(t, w, "me")
	box := w.Join("box")
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 50 {
				v.take(box.PeerID(), signed(t, box, says(box, "b", uint64(i*4+g))), scheduler.SourceGossip)
			}
		})
	}
	wg.Wait()
	if ad, _ := v.of(box.PeerID()); ad.Seq != 199 {
		t.Errorf("ended with %d", ad.Seq)
	}
}

func TestHelloFitsItsBound(t *testing.T) {
	w := meshtest.NewNetwork()
	v := newView(t, w, "me")
	v.set(says(v.node, "b", 1))
	long := make([]string, 4)
	for i := range long {
		long[i] = fmt.Sprintf("%0120d", i)
	}
	for i := range 1000 {
		n := w.Join(fmt.Sprint("n", i)) // the name makes the identity
		ad := says(n, "b", 1)
		ad.Capacity.Features = long
		v.take(n.PeerID(), signed(t, n, ad), scheduler.SourceHello)
	}
	for range 500 {
		v.deny.(*noRevocations).list = append(v.deny.(*noRevocations).list, fmt.Sprintf("%0700d", 1))
	}
	b := v.Local("x")
	got := new(peerv1.View)
	if err := proto.Unmarshal(b, got); err != nil {
		t.Fatal(err)
	}
	if len(b) > mesh.MaxHelloPayload || len(got.Adverts) < 100 || len(got.Revocations) < 50 {
		t.Errorf("%d bytes with %d adverts and %d revocations", len(b), len(got.Adverts), len(got.Revocations))
	}
	if !bytes.Equal(got.Adverts[0].Advert, v.reply().Advert) {
		t.Error("the own advert is not the first")
	}
	// The other side takes all of it, and garbage does nothing.
	o := newView(t, w, "other")
	o.Remote(v.node.PeerID(), mesh.Via(""), b)
	if n := o.count(); n != len(got.Adverts) {
		t.Errorf("%d of %d adverts were taken", n, len(got.Adverts))
	}
	o.Remote(v.node.PeerID(), mesh.Via(""), []byte{0xff, 0xff})
}

// machine is an advert of a large node: classes take turns, so that no two
// neighbours are alike, and no two devices are used alike.
func machine(n *meshtest.Node, devices, classes int) scheduler.Advert {
	ad := says(n, fmt.Sprintf("%032d", 1), 1<<40)
	ad.Node = scheduler.NodeID(n.PeerID())
	ad.Name = "gpu-server-0123.example.org"
	c := &ad.Capacity
	c.Total = scheduler.Resources{CPUMillis: 256_000, MemoryMiB: 4 << 20, DiskMiB: 64 << 20}
	c.Free, c.DiskFloorMiB, c.Queue, c.Zone, c.BandwidthKiBps = c.Total, 1024, 100, "rack-12", 12<<20
	c.Isolation, c.Arch, c.Features = []string{"trusted"}, "amd64", []string{"python/3.11"}
	for i := range devices {
		c.Devices = append(c.Devices, scheduler.Device{ID: fmt.Sprintf("GPU-%032d", i), Class: fmt.Sprintf("RTX6000ADA-%02d", i%classes),
			MemoryMiB: int64(48<<10 + i%classes), FreeMilli: int64(1000 - i), Simulated: i%2 == 0})
	}
	for i := range 8 {
		mh, err := multihash.Encode(bytes.Repeat([]byte{byte(i)}, 32), multihash.BLAKE3)
		if err != nil {
			panic(err)
		}
		c.HotRoots = append(c.HotRoots, cid.NewCidV1(cid.Raw, mh).String())
	}
	return ad
}

func TestOwnAdvertFitsGossip(t *testing.T) {
	for _, c := range []struct{ devices, classes, roots int }{{2, 1, 8}, {8, 1, 8}, {12, 2, 8}, {64, 1, 8}, {64, 16, 1}} {
		t.Run(fmt.Sprintf("%d devices of %d classes", c.devices, c.classes), func(t *testing.T) {
			w := meshtest.NewNetwork()
			// A libp2p identity has 52 characters.
			a, b := newView(t, w, "a"), newView(t, w, "b")
			if _, err := b.node.Subscribe(topicAdverts, b.heard); err != nil {
				t.Fatal(err)
			}
			ad := machine(a.node, c.devices, c.classes)
			ad.Name += strings.Repeat("x", max(0, 52-len(ad.Node)))
			a.set(ad)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); a.run(ctx) }()
			select {
			case <-b.more:
			case <-time.After(time.Minute):
				t.Error("the advert did not get through")
			}
			cancel()
			<-done
			got, _ := b.of(a.node.PeerID())
			if n := len(got.Capacity.HotRoots); n < c.roots {
				t.Errorf("%d hot roots had room, want %d", n, c.roots)
			}
			if len(got.Capacity.Devices) != c.devices {
				t.Fatalf("%d devices arrived", len(got.Capacity.Devices))
			}
			for i, d := range got.Capacity.Devices {
				want := ad.Capacity.Devices[i]
				want.ID = d.ID // not part of a small advert
				if d != want {
					t.Errorf("device %d arrived as %+v, want %+v", i, d, want)
				}
			}
			t.Logf("%d bytes, %d hot roots", len(a.reply().Advert), len(got.Capacity.HotRoots))
		})
	}
}

func TestDiscover(t *testing.T) {
	w := meshtest.NewNetwork()
	me, gpu, silent := newView(t, w, "me"), newView(t, w, "gpu"), newView(t, w, "silent")
	for _, v := range []*view{gpu, silent} {
		if err := v.node.Provide(t.Context(), "gpu/H100"); err != nil {
			t.Fatal(err)
		}
	}
	gpu.set(says(gpu.node, "b", 1))
	asked := make(chan mesh.PeerID, 16)
	me.ask = func(id mesh.PeerID) {
		asked <- id
		if id == gpu.node.PeerID() {
			go me.take(id, gpu.reply(), scheduler.SourceDHT)
		}
	}
	start := time.Now()
	me.discover(t.Context(), []string{"H100", "nobody"})
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("took %s", d)
	}
	if len(asked) != 2 {
		t.Errorf("asked %d nodes", len(asked))
	}
	if _, ok := me.of(gpu.node.PeerID()); !ok {
		t.Error("the node that answered is not known")
	}
	me.adverts.mu.Lock()
	if n := len(me.wait); n != 0 {
		t.Errorf("%d nodes are waited for for ever", n)
	}
	me.adverts.mu.Unlock()
	// Known nodes are news from the directory, and nobody is asked again for them.
	before := me.count()
	me.discover(t.Context(), []string{"H100"})
	if me.count() != before+1 {
		t.Errorf("%d news", me.count()-before)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	me.discover(ctx, nil) // ends at once
}

package libp2p

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsubpb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/meshtest"
)

// handOn sends messages of other authors over a member's own connection, as a
// member that runs a program of its own could.
func handOn(t *testing.T, from, to *Mesh, topic string, authors ...crypto.PrivKey) {
	t.Helper()
	s, err := from.gate.NewStream(timeout(t), to.host.ID(), pubsub.GossipSubID_v11)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Reset() })
	for i, key := range authors {
		id, err := peer.IDFromPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		m := &pubsubpb.Message{From: []byte(id), Data: fmt.Append(nil, "by ", i), Seqno: binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano())), Topic: &topic}
		b, err := proto.Marshal(m)
		if err == nil {
			m.Signature, err = key.Sign(append([]byte(pubsub.SignPrefix), b...))
		}
		if err != nil {
			t.Fatal(err)
		}
		if b, err = proto.Marshal(&pubsubpb.RPC{Publish: []*pubsubpb.Message{m}}); err == nil {
			_, err = s.Write(append(binary.AppendUvarint(nil, uint64(len(b))), b...))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func identity(m *Mesh) crypto.PrivKey { return m.host.Peerstore().PrivKey(m.host.ID()) }

func TestGossipOfOthersThanMembers(t *testing.T) {
	var denied atomic.Value
	denied.Store(mesh.PeerID(""))
	cfg := testConfig(t, "founder")
	cfg.Deny = func(p mesh.PeerID) (string, bool) { return "denied", p == denied.Load() }
	founder := founded(t, cfg, nil)
	relayer := joined(t, founder, testConfig(t, "relayer"), Invitation{}, nil)
	member := joined(t, founder, testConfig(t, "member"), Invitation{}, nil)
	bad := joined(t, founder, testConfig(t, "denied"), Invitation{}, nil)
	for _, m := range []*Mesh{relayer, member, bad} {
		meshtest.AwaitUp(t, founder, m.PeerID())
	}
	denied.Store(bad.PeerID())
	outsider, _, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 16)
	stop, err := founder.Subscribe("adverts", func(from mesh.PeerID, data []byte) { heard <- string(data) })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	// One after the other on one stream: when the last has come, the others were
	// looked at.
	handOn(t, relayer, founder, "adverts", outsider, identity(bad), identity(member), outsider, identity(relayer))
	for _, want := range []string{"by 2", "by 4"} {
		select {
		case got := <-heard:
			if got != want {
				t.Errorf("heard a message %s, want %s: 0 and 3 are of no member, 1 of a denied one", got, want)
			}
		case <-time.After(meshtest.Patience):
			t.Fatalf("the message %s of a member was not heard", want)
		}
	}
}

// A member that left a moment ago still speaks, one whose certificate ran out
// does not; in a large mesh hearsay is enough.
func TestWhoSpeaks(t *testing.T) {
	now := time.Unix(1e9, 0)
	tb := newTable(mesh.Member{ID: "self"})
	tb.up(mesh.Member{ID: "met", Connected: true})
	tb.holds("met", now.Add(time.Hour))
	tb.down("met", "", now)
	tb.learn("rumour", "", "", []string{"/ip4/192.0.2.1/tcp/1"}, mesh.ViaMember, now)
	for _, c := range []struct {
		id   mesh.PeerID
		at   time.Time
		want bool
	}{{"self", now, true}, {"met", now, true}, {"met", now.Add(2 * time.Hour), false}, {"rumour", now, false}, {"nobody", now, false}} {
		if got := tb.speaks(c.id, c.at, wantConnected); got != c.want {
			t.Errorf("%s at %v: %v", c.id, c.at, got)
		}
	}
	for i := range wantConnected {
		tb.learn(mesh.PeerID(fmt.Sprint("other", i)), "", "", []string{"/ip4/192.0.2.1/tcp/1"}, mesh.ViaMember, now)
	}
	if !tb.speaks("rumour", now, wantConnected) || tb.speaks("nobody", now, wantConnected) {
		t.Error("in a large mesh those heard of speak, and nobody else")
	}
}

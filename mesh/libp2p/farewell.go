package libp2p

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"google.golang.org/protobuf/proto"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/membership"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
)

// A machine that leaves says so: otherwise the others would list it as
// unreachable and dial it for a month. Its signed word is kept as long as
// somebody may still have it in its table, and travels in greetings to those
// that were away.
//
//	leaver ── Farewell ──► every connected member ── Greeting ──► the others
//
// It takes back nothing: a machine that joins again, with a new ticket, is a
// member as soon as it says hello.

// protoLeft carries one Farewell from the leaver itself, and its receipt.
const protoLeft = "left/1"

const (
	// maxLeft bounds the farewells kept; the oldest makes room.
	maxLeft = 1024
	// maxLeftTold bounds those in one greeting.
	maxLeftTold = 256
	// leftLife is as long as anybody goes on dialling a member that is away.
	leftLife = forgetMember
	// farewellWait bounds saying it to all members.
	farewellWait = 3 * time.Second
	maxLeftFrame = 1 << 10
)

// leftReason is what watchers are told.
const leftReason = "it left the mesh"

func farewellText(meshID string, at int64) []byte {
	return binary.BigEndian.AppendUint64([]byte("beammesh left 1\x00"+meshID+"\x00"), uint64(at))
}

// sayFarewell tells the connected members that this one leaves and gives how
// many have taken it.
func (m *Mesh) sayFarewell(ctx context.Context) int {
	key, err := membership.KeyOf(m.self)
	if err != nil {
		return 0
	}
	at := m.cfg.Clock().Unix()
	f := &peerv1.Farewell{Key: key, AtUnixSeconds: at, Signature: membership.SignData(m.key, farewellText(m.ID(), at))}
	ctx, cancel := context.WithTimeout(ctx, farewellWait)
	defer cancel()
	var mu sync.Mutex
	told := 0
	var wg sync.WaitGroup
	for _, k := range m.table.list() {
		if k.ID == m.self || !k.Connected {
			continue
		}
		wg.Go(func() {
			if err := m.farewellTo(ctx, k.ID, f); err != nil {
				m.log.Debug("cannot tell a member that this one leaves", "peer", k.ID, "err", err)
				return
			}
			mu.Lock()
			told++
			mu.Unlock()
		})
	}
	wg.Wait()
	return told
}

func (m *Mesh) farewellTo(ctx context.Context, to mesh.PeerID, f *peerv1.Farewell) (err error) {
	s, err := m.Open(ctx, to, protoLeft)
	if err != nil {
		return err
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	if err := writeFrame(s, f, maxLeftFrame); err != nil {
		return err
	}
	return readFrame(bufio.NewReader(s), new(peerv1.FarewellReceipt), maxLeftFrame)
}

func (m *Mesh) serveLeft(s network.Stream) {
	s.SetDeadline(time.Now().Add(farewellWait))
	f := new(peerv1.Farewell)
	err := readFrame(bufio.NewReader(s), f, maxLeftFrame)
	if err == nil {
		if id, ok := m.checkFarewell(f); ok && id == mesh.PeerID(s.Conn().RemotePeer().String()) {
			m.log.Info("a member leaves", "peer", id)
			m.table.leaves(id, f)
		}
		err = writeFrame(s, &peerv1.FarewellReceipt{}, maxLeftFrame)
	}
	finish(s, err)
}

// checkFarewell says whose word it is.
func (m *Mesh) checkFarewell(f *peerv1.Farewell) (mesh.PeerID, bool) {
	now := m.cfg.Clock()
	at := time.Unix(f.AtUnixSeconds, 0)
	if len(f.Key) != 32 || len(f.Signature) > 128 || at.After(now.Add(membership.Leeway)) || now.Sub(at) > leftLife {
		return "", false
	}
	id := membership.PeerOf(f.Key)
	return id, id != m.self && membership.VerifyData(id, farewellText(m.ID(), f.AtUnixSeconds), f.Signature) == nil
}

// heardLeft takes what a greeting says of members that left.
func (m *Mesh) heardLeft(in []*peerv1.Farewell) {
	for _, f := range in {
		if len(f.Key) != 32 || !m.table.awaits(membership.PeerOf(f.Key), f) {
			continue // nothing new, and no signature to check
		}
		if id, ok := m.checkFarewell(f); ok {
			m.table.left(id, f, m.cfg.Clock())
		}
	}
}

// leaves files the word of a connected member: when its last connection ends it
// is gone.
func (t *table) leaves(id mesh.PeerID, f *peerv1.Farewell) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.rows[id]; ok {
		t.fileLocked(id, f)
		t.touch()
	}
}

// awaits says whether a farewell that others tell of would change something. A
// member that was seen well after it is here again.
func (t *table) awaits(id mesh.PeerID, f *peerv1.Farewell) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.rows[id]
	return ok && !r.m.Connected && time.Unix(f.AtUnixSeconds, 0).Add(membership.Leeway).After(r.m.LastSeen)
}

// left forgets a member that is not connected.
func (t *table) left(id mesh.PeerID, f *peerv1.Farewell, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.rows[id]
	if !ok || r.m.Connected {
		return
	}
	t.fileLocked(id, f)
	t.goneLocked(id, r, now)
}

// goneLocked removes the row of a member that left and tells the watchers.
func (t *table) goneLocked(id mesh.PeerID, r *row, now time.Time) {
	delete(t.rows, id)
	r.m.Connected, r.m.Path, r.m.LastSeen = false, mesh.PathNone, now
	t.emitLocked(mesh.Event{Type: mesh.MemberDown, Member: clone(r.m), Reason: leftReason, Left: true})
	t.touch()
}

func (t *table) fileLocked(id mesh.PeerID, f *peerv1.Farewell) {
	if _, ok := t.farewells[id]; !ok && len(t.farewells) >= maxLeft {
		oldest := id
		for k, o := range t.farewells {
			if oldest == id || o.AtUnixSeconds < t.farewells[oldest].AtUnixSeconds {
				oldest = k
			}
		}
		delete(t.farewells, oldest)
	}
	t.farewells[id] = f
}

// isLeaving says whether a member has said farewell and not hello since.
func (t *table) isLeaving(id mesh.PeerID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.farewells[id] != nil
}

// farewellsToTell are the newest, at most n; those that everybody has forgotten
// by now are dropped.
func (t *table) farewellsToTell(now time.Time, n int) []*peerv1.Farewell {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*peerv1.Farewell
	for id, f := range t.farewells {
		if now.Sub(time.Unix(f.AtUnixSeconds, 0)) > leftLife {
			delete(t.farewells, id)
			continue
		}
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b *peerv1.Farewell) int {
		return cmp.Or(cmp.Compare(b.AtUnixSeconds, a.AtUnixSeconds), slices.Compare(a.Key, b.Key))
	})
	return out[:min(len(out), n)]
}

// marshalLeft and restoreLeft keep the farewells over a restart.
func (t *table) marshalLeft(now time.Time) ([]byte, error) {
	all := [][]byte{}
	for _, f := range t.farewellsToTell(now, maxLeft) {
		b, err := proto.Marshal(f)
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return json.Marshal(all)
}

func (m *Mesh) restoreLeft(b []byte) error {
	var all [][]byte
	if len(b) > 0 {
		if err := json.Unmarshal(b, &all); err != nil {
			return err
		}
	}
	for _, b := range all[:min(len(all), maxLeft)] {
		f := new(peerv1.Farewell)
		if err := proto.Unmarshal(b, f); err != nil {
			return err
		}
		if id, ok := m.checkFarewell(f); ok {
			m.table.farewells[id] = f // nobody else has the table yet
		}
	}
	return nil
}

package libp2p

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/beammesh/beammesh/mesh"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
)

// table is the member list: who is known, who is connected, and who is to be
// told. It holds at most maxMembers rows; when full, of those not connected the
// one seen longest ago makes room, hearsay before proven members.
type table struct {
	saveSoon chan struct{} // capacity 1: something worth saving
	dialSoon chan struct{} // capacity 1: something worth dialling

	mu     sync.Mutex
	self   mesh.Member
	admits map[mesh.PeerID]bool // redeemed a ticket here and did not say hello yet; at most maxAdmits
	rows   map[mesh.PeerID]*row
	// farewells are those of members that left or are about to; at most maxLeft
	farewells map[mesh.PeerID]*peerv1.Farewell
	watchers  map[*watcher]struct{}
	closed    bool
}

// row is one known peer.
type row struct {
	m      mesh.Member
	proven bool      // showed a valid chain at least once, ever
	until  time.Time // the certificate holds that it showed to this process

	// Re-dialling, while not connected.
	next    time.Time
	backoff time.Duration
	fails   int
	dialing bool
	retried time.Time
	since   time.Time // when this process began to miss it
}

// Bounds of re-dialling. A peer heard of but never met is forgotten after some
// tries; a real member is tried for a month.
const (
	minBackoff    = time.Second
	maxBackoff    = time.Minute
	maxHearsay    = 10
	forgetMember  = 30 * 24 * time.Hour
	dialsAtOnce   = 8
	retryPause    = 5 * time.Second
	wantConnected = 256 // default of Config.WantConnected
)

func newTable(self mesh.Member) *table {
	return &table{saveSoon: make(chan struct{}, 1), dialSoon: make(chan struct{}, 1), self: self, admits: map[mesh.PeerID]bool{}, rows: map[mesh.PeerID]*row{}, farewells: map[mesh.PeerID]*peerv1.Farewell{}, watchers: map[*watcher]struct{}{}}
}

func (t *table) touch() {
	select {
	case t.saveSoon <- struct{}{}:
	default:
	}
	t.touchDial()
}

func (t *table) touchDial() {
	select {
	case t.dialSoon <- struct{}{}:
	default:
	}
}

// up marks m connected and tells the watchers, once per connection period. A
// new boot id is a new period: whatever ran in the old process is gone.
func (t *table) up(m mesh.Member) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rowLocked(m.ID)
	was := r.m.Connected
	if was && r.m.BootID != m.BootID {
		gone := clone(r.m)
		gone.Connected, gone.Path = false, mesh.PathNone
		t.emitLocked(mesh.Event{Type: mesh.MemberDown, Member: gone, Reason: restarted})
		was = false
	}
	m.Addrs = mergeAddrs(m.Addrs, r.m.Addrs)
	if m.Via == mesh.ViaUnknown {
		m.Via = r.m.Via
	}
	delete(t.admits, m.ID)
	delete(t.farewells, m.ID) // it is here again
	if m.RTT == 0 {
		m.RTT = r.m.RTT
	}
	r.m, r.proven, r.fails, r.backoff = m, true, 0, 0
	if !was {
		t.emitLocked(mesh.Event{Type: mesh.MemberUp, Member: clone(m)})
	}
	t.touch()
}

const restarted = "the node restarted"

// holds notes until when the certificate holds that a member showed.
func (t *table) holds(id mesh.PeerID, until time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r, ok := t.rows[id]; ok {
		r.until = until
	}
}

// speaks tells whether what id says to all is taken and passed on: it is a
// member that this node has met. In a mesh too large to meet everybody, where
// more than the wanted number are known, it is enough to have heard of it from a
// member.
func (t *table) speaks(id mesh.PeerID, now time.Time, want int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if id == t.self.ID {
		return true
	}
	r, ok := t.rows[id]
	return ok && (r.m.Connected || now.Before(r.until) || len(t.rows) >= want)
}

// down marks a member disconnected; the first re-dial is due after minBackoff.
func (t *table) down(id mesh.PeerID, reason string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.rows[id]
	if !ok || !r.m.Connected {
		return
	}
	if t.farewells[id] != nil {
		t.goneLocked(id, r, now)
		return
	}
	r.m.Connected, r.m.Path, r.m.LastSeen = false, mesh.PathNone, now
	r.next, r.backoff, r.since = now.Add(minBackoff), minBackoff, now
	t.emitLocked(mesh.Event{Type: mesh.MemberDown, Member: clone(r.m), Reason: reason})
	t.touch()
}

// refused tells the watchers that id came, or answered, with a reason not to be
// let in. It changes nothing else.
func (t *table) refused(m mesh.Member, reason, hint string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r, ok := t.rows[m.ID]; ok {
		known := clone(r.m)
		if known.Name == "" {
			known.Name = m.Name
		}
		m = known
	}
	t.emitLocked(mesh.Event{Type: mesh.MemberRefused, Member: m, Reason: reason, Hint: hint})
}

// learn adds a peer that was found somewhere, or addresses of one that is known.
func (t *table) learn(id mesh.PeerID, name, tier string, addrs []string, via mesh.Via, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if id == t.self.ID || len(addrs) == 0 || t.farewells[id] != nil {
		return // who left is heard of when it says hello again
	}
	if r, ok := t.rows[id]; ok {
		if !r.m.Connected {
			r.m.Addrs = mergeAddrs(r.m.Addrs, addrs)
		}
		return
	}
	if len(t.rows) >= maxMembers && !t.evictHearsayLocked() {
		return
	}
	t.rows[id] = &row{m: mesh.Member{ID: id, Name: name, Tier: tier, Path: mesh.PathNone, Addrs: mergeAddrs(addrs, nil), LastSeen: now, Via: via}, next: now, since: now}
	t.touch()
}

// maxAdmits bounds the machines that redeemed a ticket and never came.
const maxAdmits = 256

// admitted notes that a machine has just redeemed a ticket here.
func (t *table) admitted(id mesh.PeerID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.admits) >= maxAdmits {
		clear(t.admits)
	}
	t.admits[id] = true
}

// via says how a peer was found; known is false for one never heard of.
func (t *table) via(id mesh.PeerID) (v mesh.Via, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r, ok := t.rows[id]; ok {
		return r.m.Via, true
	}
	if t.admits[id] {
		return mesh.ViaTicket, true
	}
	return mesh.ViaUnknown, false
}

// measured stores a ping's round trip, smoothed.
func (t *table) measured(id mesh.PeerID, rtt time.Duration, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.rows[id]
	if !ok || !r.m.Connected {
		return
	}
	if r.m.RTT == 0 {
		r.m.RTT = rtt
	} else {
		r.m.RTT += (rtt - r.m.RTT) / 4
	}
	r.m.LastSeen = now
}

func (t *table) get(id mesh.PeerID) (mesh.Member, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r, ok := t.rows[id]; ok {
		return clone(r.m), true
	}
	return mesh.Member{}, false
}

func (t *table) list() []mesh.Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := []mesh.Member{clone(t.self)}
	for _, r := range t.rows {
		if r.proven {
			out = append(out, clone(r.m))
		}
	}
	slices.SortFunc(out, func(a, b mesh.Member) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

// all gives every known peer, proven or not, without self.
func (t *table) all() []mesh.Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]mesh.Member, 0, len(t.rows))
	for _, r := range t.rows {
		out = append(out, clone(r.m))
	}
	slices.SortFunc(out, func(a, b mesh.Member) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

// proveAll takes every row for a real member: the issuer of our ticket said so.
func (t *table) proveAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.rows {
		r.proven = true
	}
}

// due picks members to dial now, fewer when want are connected already, and says
// when the next one is due.
func (t *table) due(now time.Time, room, want int) (dial []mesh.Member, next time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	have := 0 // a dial under way counts: what hello brings comes before its end
	for _, r := range t.rows {
		if r.m.Connected || r.dialing {
			have++
		}
	}
	for id, r := range t.rows {
		if r.m.Connected || r.dialing {
			continue
		}
		if now.Sub(r.since) > forgetMember || (!r.proven && r.fails >= maxHearsay) {
			delete(t.rows, id)
			continue
		}
		if have >= want {
			continue
		}
		if !r.next.After(now) && len(dial) < room {
			r.dialing = true
			have++
			dial = append(dial, clone(r.m))
			continue
		}
		if next.IsZero() || r.next.Before(next) {
			next = r.next
		}
	}
	return dial, next
}

// dialled ends a dial that due began. jitter is 0..1.
func (t *table) dialled(id mesh.PeerID, ok bool, now time.Time, jitter float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, known := t.rows[id]
	if !known {
		return
	}
	r.dialing = false
	if !ok && !r.m.Connected {
		r.fails++
		r.backoff = min(max(2*r.backoff, minBackoff), maxBackoff)
		r.next = now.Add(time.Duration((0.8 + 0.4*jitter) * float64(r.backoff)))
	}
	t.touchDial()
}

// retry makes a known member due at once, but no sooner than retryPause after
// the last time: answers from the network ask for it, and anybody can answer.
func (t *table) retry(id mesh.PeerID, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r, ok := t.rows[id]; ok && !r.m.Connected && now.Sub(r.retried) >= retryPause {
		r.next, r.retried = now, now
		t.touchDial()
	}
}

func (t *table) rowLocked(id mesh.PeerID) *row {
	if r, ok := t.rows[id]; ok {
		return r
	}
	if len(t.rows) >= maxMembers {
		t.evictLocked() // a proven, connected member always gets a row; connections are capped elsewhere
	}
	r := &row{}
	t.rows[id] = r
	return r
}

// evictHearsayLocked makes room for more hearsay, never at a member's cost.
func (t *table) evictHearsayLocked() bool {
	for _, r := range t.rows {
		if !r.proven && !r.m.Connected && !r.dialing {
			return t.evictLocked() // takes the oldest of these
		}
	}
	return false
}

func (t *table) evictLocked() bool {
	var worst mesh.PeerID
	var w *row
	for id, r := range t.rows {
		if r.m.Connected || r.dialing {
			continue
		}
		if w == nil || (w.proven && !r.proven) || (w.proven == r.proven && r.m.LastSeen.Before(w.m.LastSeen)) {
			worst, w = id, r
		}
	}
	delete(t.rows, worst)
	return w != nil
}

type storedMember struct {
	ID       mesh.PeerID `json:"id"`
	Name     string      `json:"name,omitempty"`
	Tier     string      `json:"tier,omitempty"`
	Addrs    []string    `json:"addrs"`
	LastSeen time.Time   `json:"last_seen"`
}

// marshal gives the proven members, for the next start.
func (t *table) marshal() ([]byte, error) {
	t.mu.Lock()
	out := []storedMember{}
	for _, r := range t.rows {
		if r.proven && len(r.m.Addrs) > 0 {
			out = append(out, storedMember{r.m.ID, r.m.Name, r.m.Tier, r.m.Addrs, r.m.LastSeen})
		}
	}
	t.mu.Unlock()
	slices.SortFunc(out, func(a, b storedMember) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return json.MarshalIndent(out, "", " ")
}

// restore reads what marshal gave; a damaged file costs the addresses, not the start.
func (t *table) restore(b []byte, now time.Time) error {
	if len(b) == 0 {
		return nil
	}
	var in []storedMember
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range in[:min(len(in), maxMembers)] {
		if s.ID == t.self.ID || len(s.Addrs) == 0 {
			continue
		}
		t.rows[s.ID] = &row{proven: true, next: now, since: now, m: mesh.Member{ID: s.ID, Name: s.Name, Tier: s.Tier,
			Addrs: mergeAddrs(s.Addrs, nil), LastSeen: s.LastSeen, Path: mesh.PathNone}}
	}
	return nil
}

// mergeAddrs keeps first's order, adds what is new, and cuts at maxAddrs.
func mergeAddrs(first, more []string) []string {
	out := make([]string, 0, maxAddrs)
	for _, a := range append(slices.Clone(first), more...) {
		if len(out) < maxAddrs && len(a) <= 256 && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

func clone(m mesh.Member) mesh.Member {
	m.Addrs, m.Features = slices.Clone(m.Addrs), slices.Clone(m.Features)
	return m
}

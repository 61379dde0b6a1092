package libp2p

import (
	"crypto/ed25519"
	"slices"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/membership"
	"github.com/beammesh/beammesh/mesh/meshtest"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
)

func lists(m *Mesh, id mesh.PeerID) bool {
	return slices.ContainsFunc(m.Members(), func(k mesh.Member) bool { return k.ID == id })
}

func leftEvent(id mesh.PeerID) func(mesh.Event) bool {
	return func(e mesh.Event) bool { return e.Type == mesh.MemberDown && e.Left && e.Member.ID == id }
}

// A member leaves: who is connected forgets it at once, who was away when it
// left forgets it at the next hello, also from members that restarted since.
// Another ticket brings it back.
func TestLeaverIsForgotten(t *testing.T) {
	founder := founded(t, testConfig(t, "founder"), nil)
	awayCfg, otherCfg, leaverCfg := testConfig(t, "away"), testConfig(t, "other"), testConfig(t, "leaver")
	away := joined(t, founder, awayCfg, Invitation{}, nil)
	other := joined(t, founder, otherCfg, Invitation{}, nil)
	leaver := joined(t, founder, leaverCfg, Invitation{}, nil)
	id := leaver.PeerID()
	for _, m := range []*Mesh{founder, away, other} {
		meshtest.AwaitUp(t, m, id)
	}
	if err := away.Close(); err != nil {
		t.Fatal(err)
	}
	logs := []*meshtest.Log{meshtest.NewLog(t, founder), meshtest.NewLog(t, other)}
	if err := leaver.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, m := range []*Mesh{founder, other} {
		logs[i].Await(t, "Down for good", leftEvent(id))
		if lists(m, id) {
			t.Errorf("%s still lists it", m.cfg.Name)
		}
	}
	if err := leaver.Close(); err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := founder.Close(); err != nil {
		t.Fatal(err)
	}

	// Of those that heard it only the restarted one is there.
	other = started(t, opened(t, otherCfg), nil)
	if lists(other, id) || !other.table.isLeaving(id) {
		t.Error("the farewell did not outlive a restart")
	}
	away = opened(t, awayCfg)
	if !lists(away, id) {
		t.Fatal("the one that was away does not list it: nothing to show")
	}
	log := meshtest.NewLog(t, away)
	started(t, away, nil)
	log.Await(t, "Down for good", leftEvent(id))
	if lists(away, id) {
		t.Error("the one that was away still lists it")
	}

	back := opened(t, leaverCfg)
	if err := back.Join(timeout(t), invited(t, other, Invitation{})); err != nil {
		t.Fatal(err)
	}
	started(t, back, nil)
	meshtest.AwaitUp(t, other, id)
	meshtest.AwaitUp(t, away, id)
	if other.table.isLeaving(id) || !lists(other, id) {
		t.Error("it joined again and is taken for gone")
	}
}

// Only its own fresh word takes a member out of the table, and only while it is
// not here.
func TestFarewellsThatDoNotCount(t *testing.T) {
	founder := founded(t, testConfig(t, "founder"), nil)
	m := joined(t, founder, testConfig(t, "member"), Invitation{}, nil)
	id := m.PeerID()
	meshtest.AwaitUp(t, founder, id)
	key, err := membership.KeyOf(id)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	say := func(at time.Time, meshID string) *peerv1.Farewell {
		return &peerv1.Farewell{Key: key, AtUnixSeconds: at.Unix(), Signature: membership.SignData(m.key, farewellText(meshID, at.Unix()))}
	}
	good := say(now, founder.ID())
	if got, ok := founder.checkFarewell(good); !ok || got != id {
		t.Fatalf("a good farewell is taken for %q, %v", got, ok)
	}
	forged := say(now, founder.ID())
	forged.AtUnixSeconds++
	for what, f := range map[string]*peerv1.Farewell{
		"another time":  forged,
		"another mesh":  say(now, "0123456789"),
		"the future":    say(now.Add(membership.Leeway+time.Minute), founder.ID()),
		"long ago":      say(now.Add(-leftLife-time.Minute), founder.ID()),
		"no key":        {AtUnixSeconds: now.Unix(), Signature: good.Signature},
		"somebody else": {Key: founder.key.Public().(ed25519.PublicKey), AtUnixSeconds: now.Unix(), Signature: good.Signature},
	} {
		if who, ok := founder.checkFarewell(f); ok {
			t.Errorf("%s: taken for the word of %s", what, who)
		}
	}
	founder.heardLeft([]*peerv1.Farewell{good})
	if !lists(founder, id) {
		t.Error("others talked a connected member out of the table")
	}
	log := meshtest.NewLog(t, founder)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	log.Await(t, "MemberDown", func(e mesh.Event) bool { return e.Type == mesh.MemberDown && e.Member.ID == id })
	founder.heardLeft([]*peerv1.Farewell{say(now.Add(-membership.Leeway-time.Minute), founder.ID())})
	if !lists(founder, id) {
		t.Error("a farewell from before it was seen last counted")
	}
	founder.heardLeft([]*peerv1.Farewell{forged})
	if !lists(founder, id) {
		t.Error("a forged farewell counted")
	}
	founder.heardLeft([]*peerv1.Farewell{good})
	if lists(founder, id) {
		t.Error("a good farewell did not count")
	}
}

func TestFarewellsAreBounded(t *testing.T) {
	tb := newTable(mesh.Member{ID: "self"})
	now := time.Now()
	for i := range maxLeft + 10 {
		id := mesh.PeerID(string(rune('a'+i%26)) + time.Duration(i).String())
		tb.rows[id] = &row{}
		tb.left(id, &peerv1.Farewell{AtUnixSeconds: now.Unix() + int64(i)}, now)
	}
	if len(tb.farewells) != maxLeft {
		t.Errorf("%d farewells are kept, want %d", len(tb.farewells), maxLeft)
	}
	for _, f := range tb.farewells {
		if f.AtUnixSeconds < now.Unix()+10 {
			t.Error("an old farewell was kept in place of a newer one")
		}
	}
	if got := tb.farewellsToTell(now, maxLeftTold); len(got) != maxLeftTold || got[0].AtUnixSeconds != now.Unix()+maxLeft+9 {
		t.Errorf("told are %d, the first of %d", len(got), got[0].AtUnixSeconds-now.Unix())
	}
	if got := tb.farewellsToTell(now.Add(leftLife+2*time.Hour), maxLeftTold); len(got) != 0 || len(tb.farewells) != 0 {
		t.Errorf("%d told and %d kept after their time", len(got), len(tb.farewells))
	}
}

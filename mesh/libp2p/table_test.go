package libp2p

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
)

var at0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func id(n int) mesh.PeerID { return mesh.PeerID(fmt.Sprintf("peer%05d", n)) }

var someAddr = []string{"/ip4/10.0.0.1/tcp/1"}

// Whatever peers tell us, the table keeps its bound, and members their rows.
func TestTableIsBounded(t *testing.T) {
	tb := newTable(mesh.Member{ID: "self"})
	for i := range 10 {
		tb.up(mesh.Member{ID: id(i), Connected: true, Addrs: someAddr, LastSeen: at0})
	}
	for i := range 3 * maxMembers {
		tb.learn(id(100+i), "", "", someAddr, mesh.ViaMember, at0.Add(time.Duration(i)))
	}
	if n := len(tb.all()); n != maxMembers {
		t.Errorf("%d rows, want %d", n, maxMembers)
	}
	if n := len(tb.list()); n != 11 {
		t.Errorf("%d members, want self and 10", n)
	}
	tb.learn("self", "", "", someAddr, mesh.ViaMember, at0)
	tb.learn("nowhere", "", "", nil, mesh.ViaMember, at0)
	if _, ok := tb.get("self"); ok {
		t.Error("learned of ourselves")
	}
	if _, ok := tb.get("nowhere"); ok {
		t.Error("learned of a peer without an address")
	}
	many := make([]string, 100)
	for i := range many {
		many[i] = fmt.Sprintf("/ip4/10.0.0.%d/tcp/1", i)
	}
	if got := mergeAddrs(many, many); len(got) != maxAddrs {
		t.Errorf("%d addresses kept", len(got))
	}
}

func TestRedialPauses(t *testing.T) {
	tb := newTable(mesh.Member{ID: "self"})
	tb.up(mesh.Member{ID: "m", Connected: true, Addrs: someAddr})
	if dial, next := tb.due(at0, 8, wantConnected); len(dial) != 0 || !next.IsZero() {
		t.Errorf("a connected member is due: %v %v", dial, next)
	}
	tb.down("m", "gone", at0)
	now := at0
	var pauses []time.Duration
	for range 10 {
		_, next := tb.due(now, 0, wantConnected)
		pauses = append(pauses, next.Sub(now))
		now = next
		dial, _ := tb.due(now, 8, wantConnected)
		if len(dial) != 1 {
			t.Fatalf("%v: due %v", now, dial)
		}
		if again, _ := tb.due(now, 8, wantConnected); len(again) != 0 {
			t.Fatal("dialled twice at once")
		}
		tb.dialled("m", false, now, 0.5)
	}
	want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60, 60}
	for i := range want {
		want[i] *= time.Second
	}
	if !slices.Equal(pauses, want) {
		t.Errorf("pauses %v, want %v", pauses, want)
	}
	tb.up(mesh.Member{ID: "m", Connected: true, Addrs: someAddr})
	tb.down("m", "gone", now)
	if _, next := tb.due(now, 8, wantConnected); next.Sub(now) != minBackoff {
		t.Errorf("after it was back the first pause is %v", next.Sub(now))
	}
	tb.due(now.Add(forgetMember+time.Hour), 8, wantConnected)
	if _, ok := tb.get("m"); ok {
		t.Error("a member missed for more than a month is still known")
	}

	tb.learn("rumour", "", "", someAddr, mesh.ViaMember, at0)
	now = at0
	for n := 0; ; n++ {
		dial, next := tb.due(now, 8, wantConnected)
		if len(dial) == 0 && next.IsZero() {
			if n != maxHearsay {
				t.Errorf("a rumour was dialled %d times, want %d", n, maxHearsay)
			}
			break
		}
		if len(dial) == 0 {
			now = next
			n--
			continue
		}
		tb.dialled("rumour", false, now, 0.5)
	}
}

// A node that wants two members dials two of many, also while it waits for them.
func TestDialsUnderWayCount(t *testing.T) {
	tb := newTable(mesh.Member{ID: "self"})
	for i := range 10 {
		tb.learn(mesh.PeerID(fmt.Sprint("m", i)), "", "", someAddr, mesh.ViaMember, at0)
	}
	dial, _ := tb.due(at0, 8, 2)
	if len(dial) != 2 {
		t.Fatalf("%d dials for two members", len(dial))
	}
	if more, _ := tb.due(at0, 6, 2); len(more) != 0 {
		t.Errorf("%d more while two are under way", len(more))
	}
	tb.dialled(dial[0].ID, false, at0, 0.5)
	if more, _ := tb.due(at0, 7, 2); len(more) != 1 {
		t.Errorf("%d more after one failed, want 1", len(more))
	}
}

func TestTableSurvivesARestart(t *testing.T) {
	tb := newTable(mesh.Member{ID: "self"})
	tb.up(mesh.Member{ID: "m", Name: "box", Tier: "own", Connected: true, Addrs: someAddr, LastSeen: at0})
	tb.learn("rumour", "", "", someAddr, mesh.ViaMember, at0)
	b, err := tb.marshal()
	if err != nil {
		t.Fatal(err)
	}
	again := newTable(mesh.Member{ID: "self"})
	if err := again.restore(b, at0.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	all := again.all()
	if len(all) != 1 || all[0].ID != "m" || all[0].Name != "box" || all[0].Tier != "own" || all[0].Connected || !slices.Equal(all[0].Addrs, someAddr) {
		t.Errorf("restored %+v", all)
	}
	if dial, _ := again.due(at0.Add(time.Hour), 8, wantConnected); len(dial) != 1 {
		t.Error("a remembered member is not dialled at once")
	}
	if err := again.restore([]byte("{"), at0); err == nil {
		t.Error("half a file was read")
	}
	if err := again.restore(nil, at0); err != nil {
		t.Error(err)
	}
}

// A watcher that does not keep up costs a bounded queue, and still learns the
// last state of every member.
func TestSlowWatcherIsBounded(t *testing.T) {
	tb := newTable(mesh.Member{ID: "self"})
	busy, free := make(chan struct{}), make(chan struct{})
	var seen []mesh.Event
	done := make(chan struct{})
	tb.up(mesh.Member{ID: "first", Connected: true})
	cancel := tb.watch(func(e mesh.Event) {
		if e.Member.ID == "first" {
			close(busy)
			<-free
			return
		}
		seen = append(seen, e)
		if e.Member.ID == "last" {
			close(done)
		}
	})
	defer cancel()
	<-busy
	for range 2 * maxPending {
		tb.up(mesh.Member{ID: "m", Connected: true, BootID: "x"})
		tb.down("m", "again", at0)
	}
	tb.mu.Lock()
	for w := range tb.watchers {
		w.mu.Lock()
		if len(w.queue) > maxPending {
			t.Errorf("%d events wait, at most %d", len(w.queue), maxPending)
		}
		w.mu.Unlock()
	}
	tb.mu.Unlock()
	tb.up(mesh.Member{ID: "last", Connected: true})
	close(free)
	<-done
	final := seen[len(seen)-2]
	if final.Member.ID != "m" || final.Type != mesh.MemberDown {
		t.Errorf("the last event of m is %+v", final)
	}
	for i := 1; i < len(seen)-1; i++ {
		if seen[i].Type == seen[i-1].Type {
			t.Fatalf("events %d and %d are both of type %d", i-1, i, seen[i].Type)
		}
	}
}

// A new boot id is a new life: streams of the old process are gone.
func TestRestartIsDownThenUp(t *testing.T) {
	tb := newTable(mesh.Member{ID: "self"})
	got := make(chan mesh.Event, 8)
	defer tb.watch(func(e mesh.Event) { got <- e })()
	tb.up(mesh.Member{ID: "m", Connected: true, BootID: "a"})
	tb.up(mesh.Member{ID: "m", Connected: true, BootID: "a"}) // a second connection
	tb.up(mesh.Member{ID: "m", Connected: true, BootID: "b"})
	for i, want := range []struct {
		typ  mesh.EventType
		boot string
	}{{mesh.MemberUp, "a"}, {mesh.MemberDown, "a"}, {mesh.MemberUp, "b"}} {
		if e := <-got; e.Type != want.typ || e.Member.BootID != want.boot {
			t.Errorf("event %d: %+v, want %+v", i, e, want)
		}
	}
}

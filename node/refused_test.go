package node

import (
	"fmt"
	"testing"

	"github.com/beammesh/beammesh/mesh"
)

func TestRefusalsAreTroubles(t *testing.T) {
	var r refusals
	name := func(id mesh.PeerID) string { return "peer " + string(id) }
	no := func(id, name, hint string) {
		r.note(mesh.Event{Type: mesh.MemberRefused, Member: mesh.Member{ID: mesh.PeerID(id), Name: name}, Reason: "it refused us: twice", Hint: hint})
	}
	no("1", "", "stop one")
	no("2", "box2", "stop one")
	no("3", "box3", "") // that was our own refusal
	got := r.troubles(name)
	if len(got) != 1 || got[0].Text != "box2, peer 1: it refused us: twice" || got[0].Hint != "stop one" || got[0].Code != "refused" {
		t.Errorf("troubles: %v", got)
	}
	r.note(mesh.Event{Type: mesh.MemberUp, Member: mesh.Member{ID: "1"}})
	r.note(mesh.Event{Type: mesh.MemberDown, Left: true, Member: mesh.Member{ID: "2"}})
	if got := r.troubles(name); len(got) != 0 {
		t.Errorf("troubles that are over: %v", got)
	}
	for i := range 2 * maxRefusals {
		no(fmt.Sprint(i), "", "stop one")
	}
	if len(r.by) != maxRefusals {
		t.Errorf("%d refusals are kept, want %d", len(r.by), maxRefusals)
	}
}

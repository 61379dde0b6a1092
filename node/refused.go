package node

import (
	"slices"
	"strings"
	"sync"

	"github.com/beammesh/beammesh/mesh"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
)

// maxRefusals bounds the members whose last refusal is kept.
const maxRefusals = 16

// refusals are the members that turn this node away, with what they say: a
// trouble that only people can mend, such as an identity that runs twice.
type refusals struct {
	mu sync.Mutex
	by map[mesh.PeerID]mesh.Event
}

// note takes a member's last word: a refusal, or that it is connected.
func (r *refusals) note(ev mesh.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch _, known := r.by[ev.Member.ID]; {
	case ev.Type == mesh.MemberUp || ev.Left:
		delete(r.by, ev.Member.ID)
	case ev.Type != mesh.MemberRefused || ev.Hint == "": // we refused it
	case known || len(r.by) < maxRefusals:
		if r.by == nil {
			r.by = map[mesh.PeerID]mesh.Event{}
		}
		r.by[ev.Member.ID] = ev
	}
}

// troubles tells each reason once, with who gave it.
func (r *refusals) troubles(name func(mesh.PeerID) string) []*beamv1.Trouble {
	r.mu.Lock()
	defer r.mu.Unlock()
	who := map[string][]string{}
	hint := map[string]string{}
	for id, ev := range r.by {
		n := ev.Member.Name
		if n == "" {
			n = name(id)
		}
		who[ev.Reason] = append(who[ev.Reason], n)
		hint[ev.Reason] = ev.Hint
	}
	var out []*beamv1.Trouble
	for reason, names := range who {
		slices.Sort(names)
		out = append(out, &beamv1.Trouble{Code: "refused", Severity: "error", Text: strings.Join(names, ", ") + ": " + reason, Hint: hint[reason]})
	}
	slices.SortFunc(out, func(a, b *beamv1.Trouble) int { return strings.Compare(a.Text, b.Text) })
	return out
}

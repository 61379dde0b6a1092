package node

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/meshtest"
	"github.com/beammesh/beammesh/proto/fault"
)

// builder answers protoBuild as its name says.
func builder(t *testing.T, w *meshtest.Network, name string, began chan<- string) mesh.Member {
	t.Helper()
	n := w.Join(name)
	n.Handle(protoBuild, func(_ context.Context, s mesh.Stream) {
		defer s.Close()
		var req awayRequest
		if err := json.NewDecoder(s).Decode(&req); err != nil {
			t.Error(err)
		}
		began <- name
		enc := json.NewEncoder(s)
		_ = enc.Encode(awayReply{Line: "step 1 at " + name})
		kind, _, _ := strings.Cut(name, "-")
		switch kind {
		case "dies":
			_ = s.Reset()
		case "fails":
			_ = enc.Encode(awayReply{Done: true, Code: fault.BuildFailed, Message: "exit code 1", Hint: "mend it"})
		case "cut": // it lost somebody itself
			_ = enc.Encode(awayReply{Done: true, Code: fault.Unreachable, Message: "the founder is away", Hint: "start it"})
		default:
			_ = enc.Encode(awayReply{Done: true})
		}
	})
	n.Start()
	t.Cleanup(func() { _ = n.Close() })
	return n.Self()
}

// A worker that is lost during a build is replaced by the next; one that has an
// answer is believed.
func TestBuildAway(t *testing.T) {
	for _, c := range []struct {
		workers string
		asked   string // the workers that began
		code    fault.Code
		text    string
	}{
		{"good", "good", "", ""},
		{"dies-1 good", "dies-1 good", "", ""},
		{"gone-1 good", "good", "", ""},
		{"fails good", "fails", fault.BuildFailed, "exit code 1"},
		{"cut good", "cut", fault.Unreachable, "the founder is away"},
		{"dies-1 dies-2 dies-3 good", "dies-1 dies-2 dies-3", fault.Unreachable, "dies-3 stopped answering during the build"},
	} {
		t.Run(c.workers, func(t *testing.T) {
			w := meshtest.NewNetwork()
			me := w.Join("me")
			me.Start()
			t.Cleanup(func() { _ = me.Close() })
			began := make(chan string, 8)
			var workers []mesh.Member
			for _, name := range strings.Fields(c.workers) {
				if strings.HasPrefix(name, "gone") {
					workers = append(workers, mesh.Member{ID: "nobody", Name: name})
					continue
				}
				workers = append(workers, builder(t, w, name, began))
			}
			var said []string
			err := buildAway(t.Context(), me, workers, awayRequest{Workspace: "ws"}, func(line string) { said = append(said, line) })
			var asked []string
			for len(began) > 0 {
				asked = append(asked, <-began)
			}
			if last := asked[len(asked)-1]; !strings.HasPrefix(last, "dies") && said[len(said)-1] != "step 1 at "+last {
				t.Errorf("said %q", said)
			}
			if !slices.Equal(asked, strings.Fields(c.asked)) {
				t.Errorf("%v built, want %s", asked, c.asked)
			}
			if got := fmt.Sprint(err); (err == nil) != (c.code == "") || err != nil && (fault.CodeOf(err) != c.code || !strings.Contains(got, c.text)) {
				t.Errorf("ended with %v, want %q", err, c.text)
			}
		})
	}
}

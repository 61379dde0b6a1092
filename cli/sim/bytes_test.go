package sim_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/beammesh/beammesh/cli/sim"
	"github.com/beammesh/beammesh/simulations"
)

// small are worlds that run in a moment, by experiment.
var small = map[string]map[string]string{
	"fill":  {"list": "synthetic", "nodes": "60"},
	"queue": {"workers": "300", "jobs": "40"},
	"mesh":  {"nodes": "80", "tasks": "600", "owners": "4", "kill_nodes": "10", "kill_owners": "1", "loss": "2000"},
}

// TestBytes: a run has the same bytes everywhere: whatever changes a decision, or
// a machine that computes differently, changes these sums. `make sim-arm64` runs
// it for arm64. After a change of the scheduler, look at what changed, then
// write them anew with -update.
func TestBytes(t *testing.T) {
	var got strings.Builder
	for _, x := range sim.Experiments() {
		for _, policy := range x.Policies() {
			if policy == "fgd-central" {
				continue // it needs a trace
			}
			r, err := x.Run(t.Context(), simulations.Settings{Seed: 7, Policy: policy, Values: small[x.Name()]})
			if err != nil {
				t.Fatalf("%s %s: %v", x.Name(), policy, err)
			}
			b, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&got, "%s %s %x\n", x.Name(), policy, sha256.Sum256(b))
		}
	}
	const golden = "testdata/bytes.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
}

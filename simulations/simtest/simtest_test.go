package simtest

import (
	"context"
	"math"
	"testing"

	"github.com/beammesh/beammesh/simulations"
)

// Erlang's C: with two servers the mean wait is r^2/(1-r^2), in service times.
func TestMeanWaitIsErlangs(t *testing.T) {
	const load = 0.5
	r, err := Queue{}.Run(context.Background(), simulations.Settings{Seed: 1, Policy: "fifo",
		Values: map[string]string{"load": "0.5", "customers": "200000"}})
	if err != nil {
		t.Fatal(err)
	}
	m, _ := r.Metric("wait_mean")
	if want := load * load / (1 - load*load); math.Abs(m.Value-want) > 0.05*want {
		t.Errorf("mean wait %v, want %v", m.Value, want)
	}
}

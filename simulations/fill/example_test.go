package fill_test

import (
	"context"
	"fmt"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/simulations"
	"github.com/beammesh/beammesh/simulations/fill"
)

// worstFit is a whole policy: the node with the most GPU left.
type worstFit struct{}

func (worstFit) Score(d *scheduler.Demand, n *fill.Node) int64 { return n.FreeMilli() }

func (worstFit) Pick(d *scheduler.Demand, n *fill.Node) scheduler.Picks {
	return scheduler.PicksOf(d, &n.Capacity)
}

func ExampleRunPolicy() {
	policy := fill.Policy{Name: "worstfit", Doc: "the node with the most GPU left",
		New: func(*fill.Run) fill.Scorer { return worstFit{} }}
	r, err := fill.RunPolicy(context.Background(), simulations.Settings{
		Seed:   1,
		Values: map[string]string{"list": fill.Synthetic, "nodes": "100"},
	}, policy)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, name := range []string{"unallocated_at_90", "unallocated_at_100", "unallocated_at_130"} {
		m, _ := r.Metric(name)
		fmt.Printf("%s %.1f%s\n", name, m.Value, m.Unit)
	}
	// Output:
	// unallocated_at_90 42.0%
	// unallocated_at_100 36.5%
	// unallocated_at_130 13.6%
}

package mesh

import (
	"context"
	"slices"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/simulations/engine"
)

// Central runs the tasks of cfg through one scheduler that knows every node as
// it is and places without a message: what decentralised placement is measured
// by. Tasks that find no room wait for Patience, in order. It fills in what became
// of the tasks.
func Central(ctx context.Context, cfg *Config) error {
	type event struct {
		owner, task int32
		end         bool
	}
	var packing scheduler.Packing
	packing.SetMix(cfg.Mix)
	view := scheduler.NewView()
	view.SetPacking(&packing)
	nodes := make([]scheduler.Advert, len(cfg.Nodes))
	tell := func(i int32) {
		n := &nodes[i]
		n.Seq++
		a := *n
		a.Capacity = n.Capacity.Clone()
		view.Update(a, scheduler.SourceSelf)
	}
	for i := range nodes {
		nodes[i] = scheduler.Advert{Node: nodeID(i), Boot: "1", Capacity: cfg.Nodes[i].Clone()}
		tell(int32(i))
	}
	grants := make([][]scheduler.Grant, len(cfg.Tasks))
	var q engine.Queue[event]
	for i := range cfg.Tasks {
		grants[i] = make([]scheduler.Grant, len(cfg.Tasks[i]))
		for j := range cfg.Tasks[i] {
			q.Push(cfg.Tasks[i][j].At, event{int32(i), int32(j), false})
		}
	}
	place := func(now time.Duration, e event) bool {
		t := &cfg.Tasks[e.owner][e.task]
		g := &grants[e.owner][e.task]
		d := &cfg.Kinds[t.Kind]
		best := view.Rank(d, 1, nil, nil)
		if len(best) == 0 {
			t.State, t.Node = GivenUp, -1
			return false
		}
		t.Node = nodeIndex(best[0].Node)
		*g, _ = packing.Allocate(d, &nodes[t.Node].Capacity)
		tell(t.Node)
		t.State, t.Placed = Running, now
		if t.Run >= 0 {
			q.Push(now+cfg.Start+t.Run, event{e.owner, e.task, true})
		}
		return true
	}
	var waiting []event // given up for now
	return engine.Run(ctx, cfg.Seed, &q, func(now time.Duration, e event) {
		if !e.end {
			if !place(now, e) && cfg.Patience > 0 {
				waiting = append(waiting, e)
			}
			return
		}
		t := &cfg.Tasks[e.owner][e.task]
		release(&nodes[t.Node].Capacity, &grants[e.owner][e.task])
		tell(t.Node)
		t.State, t.Ended, t.Accepted = Done, now, 1
		waiting = slices.DeleteFunc(waiting, func(e event) bool {
			return now > cfg.Tasks[e.owner][e.task].At+cfg.Patience || place(now, e)
		})
	})
}

// release gives back what Allocate took.
func release(c *scheduler.Capacity, g *scheduler.Grant) {
	c.Free.CPUMillis += g.CPUMillis
	c.Free.MemoryMiB += g.MemoryMiB
	c.Free.DiskMiB += g.DiskMiB
	for _, id := range g.Devices {
		for i := range c.Devices {
			if c.Devices[i].ID == id {
				c.Devices[i].FreeMilli += g.GPUMilli
			}
		}
	}
}

package mesh

import (
	"fmt"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/simulations/engine"
)

// checkNode stops the run when a worker has granted what it does not have.
func (p *part) checkNode(n *node) {
	if n.worker == nil || !p.w.cfg.Check {
		return
	}
	if what := overcommitted(n); what != "" {
		engine.Breakf("node %d granted more than it has: %s", n.actor, what)
	}
}

func overcommitted(n *node) string {
	c := n.worker.Capacity()
	var cpu, memory int64
	milli := map[string]int64{}
	for _, l := range n.worker.Leases() {
		cpu += l.Demand.CPUMillis
		memory += l.Grant.MemoryMiB
		for _, d := range l.Grant.Devices {
			milli[d] += l.Grant.GPUMilli
		}
	}
	if cpu > c.Total.CPUMillis || memory > c.Total.MemoryMiB {
		return fmt.Sprintf("%d of %d cpu, %d of %d MiB", cpu, c.Total.CPUMillis, memory, c.Total.MemoryMiB)
	}
	for i := range c.Devices {
		if d := &c.Devices[i]; milli[d.ID] > scheduler.GPUExclusive || d.FreeMilli > scheduler.GPUExclusive-milli[d.ID] {
			return fmt.Sprintf("device %s: %d granted, %d free", d.ID, milli[d.ID], d.FreeMilli)
		}
	}
	return ""
}

// Outcome is what became of the tasks.
type Outcome struct {
	Done, Running, Waiting, GivenUp, Refused int64
	// Lost tasks arrived and are in none of these states: when a run has ended
	// because all is settled, nobody looks after them any more.
	Lost int64
	// Twice are tasks whose end was accepted more than once.
	Twice int64
}

// Outcome counts the tasks by their state.
func (w *World) Outcome() (o Outcome) {
	for i := range w.owners {
		for j := range w.owners[i].tasks {
			t := &w.owners[i].tasks[j]
			switch t.State {
			case Done:
				o.Done++
			case Running:
				o.Running++
			case Waiting:
				o.Waiting++
			case GivenUp:
				o.GivenUp++
			case Refused:
				o.Refused++
			default:
				o.Lost++
			}
			if t.Accepted > 1 {
				o.Twice++
			}
		}
	}
	return o
}

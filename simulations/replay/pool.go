package replay

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/record"
	"github.com/beammesh/beammesh/scheduler/replicas"
	"github.com/beammesh/beammesh/simulations/engine"
)

// pool is the shell of one stub's replicas.Pool at its owner, as node/owner is
// in a node.
type pool struct {
	world      *world
	node       *node
	stub       Stub
	machine    *replicas.Pool
	containers map[replicas.ReplicaID]*container
	wake       time.Duration
	todo       []replicas.Event
	stepping   bool
}

// step feeds the machine; steps that follow from a step come after it.
func (p *pool) step(now time.Duration, ev replicas.Event) {
	p.todo = append(p.todo, ev)
	if p.stepping {
		return
	}
	p.stepping = true
	for len(p.todo) > 0 {
		ev := p.todo[0]
		p.todo = p.todo[1:]
		actions := slices.Clone(p.machine.Step(now, ev))
		p.node.add(now, record.PoolPrefix+p.stub.Key, ev, record.PoolDecisions(actions))
		for _, a := range actions {
			p.action(now, a)
		}
	}
	p.stepping = false
	if at, ok := p.machine.NextWake(); ok {
		if at = max(at, now); p.wake == 0 || at < p.wake || p.wake < now {
			p.wake = at
			p.world.queue.Push(at, event{kind: evWakePool, pool: p})
		}
	}
}

func (p *pool) action(now time.Duration, a replicas.Action) {
	w := p.world
	switch a := a.(type) {
	case replicas.Acquire:
		for range a.N {
			w.seq++
			x := &wanted{id: market.OfferID(fmt.Sprintf("offer-%08d", w.seq)), pool: p}
			p.node.offers[x.id] = x
			w.queue.Push(now, event{kind: evOwner, node: p.node, msg: market.Submit{Offer: market.Offer{
				ID: x.id, Demand: p.stub.Demand, Group: p.stub.Key, Headless: p.stub.Headless, Patient: p.stub.Patient}}})
		}
	case replicas.Unacquire:
		p.unacquire(now, a.N)
	case replicas.ReleaseReplica:
		delete(p.containers, a.Replica)
		w.queue.Push(now, event{kind: evOwner, node: p.node, msg: market.ReleaseLease{Lease: market.LeaseID(a.Replica), Reason: a.Reason}})
	case replicas.Dispatch:
		if c := p.containers[a.Replica]; c != nil {
			w.send(now, p.node, c.node, w.models.Dispatch, newLuck(&w.rand), event{kind: evArrive, container: c, call: w.calls[a.Call], number: a.Attempt})
		}
	case replicas.Recall:
		if c := p.containers[a.Replica]; c != nil {
			c.recall(now, w.calls[a.Call], a.Attempt)
		}
	case replicas.StopCall:
		if c := p.containers[a.Replica]; c != nil {
			c.stopCall(now, w.calls[a.Call], a.Attempt, a.Kind)
		}
	case replicas.Finished:
		i := w.calls[a.Call]
		if w.ended[i] {
			engine.Breakf("call %s finished twice", a.Call)
		}
		w.ended[i] = true
		w.open--
	}
}

// unacquire takes back wishes, the newest first; those whose container is
// already starting come last.
func (p *pool) unacquire(now time.Duration, n int) {
	var mine []*wanted
	for _, x := range p.node.offers {
		if x.pool == p && !x.ready && !x.gone {
			mine = append(mine, x)
		}
	}
	slices.SortFunc(mine, func(a, b *wanted) int {
		if placed := a.lease != ""; placed != (b.lease != "") {
			if placed {
				return 1
			}
			return -1
		}
		return strings.Compare(string(b.id), string(a.id))
	})
	for _, x := range mine[:min(n, len(mine))] {
		x.gone = true
		p.world.queue.Push(now, event{kind: evOwner, node: p.node, msg: market.Withdraw{Offer: x.id, Reason: "no longer needed"}})
	}
}

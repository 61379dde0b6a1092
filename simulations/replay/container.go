package replay

import (
	"slices"
	"time"

	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/replicas"
)

// container is one lease on a node.
type container struct {
	world *world
	node  *node
	lease market.LeaseID
	offer market.OfferID
	roots []string

	pool    *pool // at the owner, from readyAt on
	waiting []sent
	running []sent
	ready   bool // here; its owner may not know yet
	stopped bool
}

type sent struct{ call, attempt int }

func (w *world) start(now time.Duration, n *node, a market.Start) {
	c := &container{world: w, node: n, lease: a.Lease, offer: a.Offer}
	model := w.models.StartWarm
	for _, r := range a.Demand.Roots {
		c.roots = append(c.roots, r.Name)
		if !slices.Contains(n.hot, r.Name) {
			model = w.models.StartCold
		}
	}
	n.leases[a.Lease] = c
	w.after(now, n.host, model.at(newLuck(&w.rand)), event{kind: evStarted, container: c})
}

func (c *container) started(now time.Duration) {
	w := c.world
	c.ready = true
	w.heat(now, c)
	w.stepWorker(now, c.node, market.LeaseReady{Lease: c.lease})
	if owner := w.ownerOf(c); owner != nil {
		w.send(now, c.node, owner, w.models.Link, newLuck(&w.rand), event{kind: evReady, container: c})
	}
}

// heat: the image is complete on the node from now on.
func (w *world) heat(now time.Duration, c *container) {
	n := c.node
	news := false
	for _, r := range c.roots {
		if !slices.Contains(n.hot, r) {
			n.hot, news = append(slices.Clone(n.hot), r), true
		}
	}
	if news {
		w.stepWorker(now, n, market.SetHotRoots{Roots: n.hot})
	}
}

// ownerOf is the node whose pool asked for the container.
func (w *world) ownerOf(c *container) *node {
	for _, n := range w.nodes {
		if n.offers[c.offer] != nil {
			return n
		}
	}
	return nil
}

func (w *world) stop(now time.Duration, n *node, c *container) {
	if c.stopped {
		return
	}
	c.stopped = true
	if !c.ready {
		w.cancel(now, n.host, c)
	}
	w.queue.Push(now+w.models.Stop.at(newLuck(&w.rand)), event{kind: evStopped, node: n, container: c})
}

// readyAt: the owner hears that the container takes calls.
func (c *container) readyAt(now time.Duration) {
	owner := c.world.ownerOf(c)
	if owner == nil || c.stopped {
		return
	}
	x := owner.offers[c.offer]
	if x.lease == "" {
		x.early = c // it overtook the answer to the award
	}
	if x.gone || x.lease != c.lease {
		return
	}
	x.ready, c.pool = true, x.pool
	id := replicas.ReplicaID(c.lease)
	x.pool.containers[id] = c
	x.pool.step(now, replicas.ReplicaReady{Replica: id, Node: string(c.node.id)})
}

// arrive: a call is at the container.
func (c *container) arrive(now time.Duration, call, attempt int) {
	c.waiting = append(c.waiting, sent{call, attempt})
	c.begin(now)
}

// begin runs what waits in free places.
func (c *container) begin(now time.Duration) {
	places := max(1, c.pool.stub.Config.Concurrency)
	for len(c.running) < places && len(c.waiting) > 0 && !c.stopped {
		s := c.waiting[0]
		c.waiting = slices.Delete(c.waiting, 0, 1)
		c.running = append(c.running, s)
		call := c.world.load.Calls[s.call]
		c.world.queue.Push(now+call.Lasts, event{kind: evEnd, container: c, call: s.call, number: s.attempt})
		c.pool.step(now, replicas.Begun{Replica: replicas.ReplicaID(c.lease), Call: call.ID, Attempt: s.attempt})
	}
}

// end: a call has run.
func (c *container) end(now time.Duration, call, attempt int) {
	i := slices.Index(c.running, sent{call, attempt})
	if i < 0 {
		return // it was stopped
	}
	c.running = slices.Delete(c.running, i, i+1)
	c.begin(now)
	c.pool.step(now, replicas.Result{Replica: replicas.ReplicaID(c.lease), Call: c.world.load.Calls[call].ID, Attempt: attempt})
}

// recall gives a call back that has not begun.
func (c *container) recall(now time.Duration, call, attempt int) {
	i := slices.Index(c.waiting, sent{call, attempt})
	if i < 0 {
		return // too late: Begun or Result is on its way
	}
	c.waiting = slices.Delete(c.waiting, i, i+1)
	c.reply(now, event{kind: evRecalled, pool: c.pool, msg: replicas.Recalled{
		Replica: replicas.ReplicaID(c.lease), Call: c.world.load.Calls[call].ID, Attempt: attempt, Given: true}})
}

// stopCall ends a running call before its time.
func (c *container) stopCall(now time.Duration, call, attempt int, kind replicas.FailureKind) {
	s := sent{call, attempt}
	if i := slices.Index(c.running, s); i >= 0 {
		c.running = slices.Delete(c.running, i, i+1)
	} else if i := slices.Index(c.waiting, s); i >= 0 {
		c.waiting = slices.Delete(c.waiting, i, i+1)
	} else {
		return
	}
	c.reply(now, event{kind: evRecalled, pool: c.pool, msg: replicas.Result{
		Replica: replicas.ReplicaID(c.lease), Call: c.world.load.Calls[call].ID, Attempt: attempt, Failure: &replicas.Failure{Kind: kind}}})
	if !c.stopped {
		c.begin(now)
	}
}

// reply sends a message to the container's pool.
func (c *container) reply(now time.Duration, e event) {
	c.world.send(now, c.node, c.pool.node, c.world.models.Link, newLuck(&c.world.rand), e)
}

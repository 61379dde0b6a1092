package owner

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/beammesh/beammesh/mesh"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/record"
	"github.com/beammesh/beammesh/scheduler/replicas"
	"google.golang.org/protobuf/proto"
)

// defaultMaxContainers bounds the containers of one stub where it says nothing.
const defaultMaxContainers = 64

// pool is the shell of one stub's replicas.Pool. Owner.mu guards it.
type pool struct {
	o       *Owner
	key     string
	plan    *Plan
	machine *replicas.Pool
	timer   *time.Timer
	used    time.Time

	headless  int     // open tasks that must outlive us
	listeners []*task // with somebody who listens, oldest first; ended ones go now and then
	compactAt int     // number of listeners at which they do

	waiting  string              // why containers do not come, for people
	fatal    *beamv1.ErrorDetail // why they never will
	userFail *peerv1.UserError   // the program could not be loaded
	failures int                 // containers that failed to start in a row
}

func poolKey(workspace, stubID string) string { return workspace + "/" + stubID }

// pool gives the pool of a stub, planning it first if it is new.
func (o *Owner) pool(ctx context.Context, workspace, stubID string) (*pool, error) {
	key := poolKey(workspace, stubID)
	o.mu.Lock()
	p := o.pools[key]
	o.mu.Unlock()
	if p != nil {
		return p, nil
	}
	plan, err := o.cfg.Planner.Plan(ctx, workspace, stubID)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if p := o.pools[key]; p != nil {
		return p, nil
	}
	if len(o.pools) >= maxPools {
		o.dropIdlePoolLocked()
	}
	most := plan.Config.MaxContainers
	if most == 0 {
		most = defaultMaxContainers
	}
	cfg := replicas.Config{Max: most, KeepWarm: plan.Config.KeepWarm(), Window: 2}
	p = &pool{o: o, key: key, plan: plan, used: time.Now(), machine: replicas.New(cfg)}
	p.recordLocked(o.cfg.Clock(), record.PoolStart{Config: cfg, Stub: plan.StubName, Demand: plan.Demand}, nil)
	p.timer = time.AfterFunc(time.Hour, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		p.stepLocked(replicas.Tick{})
		o.drainLocked()
	})
	o.pools[key] = p
	return p, nil
}

// dropIdlePoolLocked forgets the pool that was idle longest.
func (o *Owner) dropIdlePoolLocked() {
	var oldest *pool
	for _, p := range o.pools {
		s := p.machine.Stats()
		if s.Queued+s.Sent+s.Running+s.Starting+s.Replicas == 0 && (oldest == nil || p.used.Before(oldest.used)) {
			oldest = p
		}
	}
	if oldest != nil {
		oldest.timer.Stop()
		oldest.recordLocked(o.cfg.Clock(), record.PoolEnd{}, nil)
		delete(o.pools, oldest.key)
	}
}

func (p *pool) stepLocked(ev replicas.Event) {
	p.o.later(func() {
		if p.o.closed {
			return
		}
		now := p.o.cfg.Clock()
		actions := slices.Clone(p.machine.Step(now, ev))
		p.recordLocked(now, ev, actions)
		for _, a := range actions {
			p.actionLocked(a)
		}
		if at, ok := p.machine.NextWake(); ok {
			p.timer.Reset(max(at-p.o.cfg.Clock(), 0))
		}
	})
}

// recordLocked writes a step of the machine into the market's journal.
func (p *pool) recordLocked(now time.Duration, ev any, actions []replicas.Action) {
	if p.o.cfg.Record != nil {
		p.o.cfg.Record(record.Record{At: now, Machine: record.PoolPrefix + p.key, Event: ev, Decisions: record.PoolDecisions(actions)})
	}
}

func (p *pool) actionLocked(a replicas.Action) {
	o := p.o
	switch a := a.(type) {
	case replicas.Acquire:
		for range a.N {
			p.acquireLocked()
		}
	case replicas.Unacquire:
		p.unacquireLocked(a.N)
	case replicas.ReleaseReplica:
		if c := o.leases[market.LeaseID(a.Replica)]; c != nil {
			c.released = true
		}
		o.marketLocked(market.ReleaseLease{Lease: market.LeaseID(a.Replica), Reason: a.Reason})
	case replicas.Dispatch:
		p.dispatchLocked(a)
	case replicas.Recall:
		if p.unsentLocked(a.Call, a.Attempt) {
			p.stepLocked(replicas.Recalled{Replica: a.Replica, Call: a.Call, Attempt: a.Attempt, Given: true})
		} else if c := o.leases[market.LeaseID(a.Replica)]; c != nil {
			c.send(&peerv1.LeaseDown{What: &peerv1.LeaseDown_Recall{Recall: &peerv1.Recall{TaskId: string(a.Call), Attempt: uint32(a.Attempt)}}})
		}
	case replicas.StopCall:
		if p.unsentLocked(a.Call, a.Attempt) {
			p.stepLocked(replicas.Result{Replica: a.Replica, Call: a.Call, Attempt: a.Attempt, Failure: &replicas.Failure{Kind: replicas.FailCancelled}})
		} else if c := o.leases[market.LeaseID(a.Replica)]; c != nil {
			c.send(&peerv1.LeaseDown{What: &peerv1.LeaseDown_Cancel{Cancel: &peerv1.Cancel{TaskId: string(a.Call), Attempt: uint32(a.Attempt)}}})
		}
	case replicas.Retrying:
		if t := o.tasks[string(a.Call)]; t != nil {
			t.status = Retrying
			if at := t.attempt(uint32(a.Attempt)); at != nil {
				at.ended, at.end = time.Now(), a.Failure.Text
			}
			for _, release := range t.holds {
				release()
			}
			t.holds = nil
		}
	case replicas.Finished:
		if t := o.tasks[string(a.Call)]; t != nil {
			o.finishLocked(p, t, a)
		}
	default:
		o.log.Error("action is not carried out", "action", fmt.Sprintf("%T", a))
	}
}

func (p *pool) acquireLocked() {
	o := p.o
	p.fatal, p.userFail = nil, nil // it is tried anew
	w := &wanted{id: o.newOfferIDLocked(p), pool: p, submitted: time.Now()}
	o.offers[w.id] = w
	if o.cfg.Wanted != nil {
		o.cfg.Wanted(p.plan.Demand)
	}
	o.marketLocked(market.Submit{Offer: market.Offer{ID: w.id, Demand: p.plan.Demand, Group: p.key, Headless: p.plan.Config.Headless || p.headless > 0}})
}

// enlistLocked counts a task in that this pool runs from now on.
func (p *pool) enlistLocked(t *task) {
	p.used = time.Now()
	if t.headless {
		p.headless++
	}
	if t.notify == nil {
		return
	}
	if len(p.listeners) > p.compactAt {
		p.listeners = slices.DeleteFunc(p.listeners, func(t *task) bool { return t.notify == nil || Ended(t.status) })
		p.compactAt = max(64, 2*len(p.listeners))
	}
	p.listeners = append(p.listeners, t)
}

// listenerLocked is the oldest task that somebody listens to; nil if none.
func (p *pool) listenerLocked() *task {
	for len(p.listeners) > 0 {
		t := p.listeners[0]
		if t.notify != nil && !Ended(t.status) {
			return t
		}
		p.listeners[0] = nil
		p.listeners = p.listeners[1:]
	}
	return nil
}

// unsentLocked takes an attempt back that waits for the journal; false if it is
// on its way to its container.
func (p *pool) unsentLocked(call replicas.CallID, attempt int) bool {
	t := p.o.tasks[string(call)]
	if t == nil {
		return false
	}
	at := t.attempt(uint32(attempt))
	if at == nil || at.sent {
		return false
	}
	at.dropped = true
	return true
}

// unacquireLocked takes back wishes, the newest first; those whose container is
// already starting come last.
func (p *pool) unacquireLocked(n int) {
	var mine []*wanted
	for _, w := range p.o.offers {
		if c := p.o.leaseOfLocked(w.id); w.pool == p && (c == nil || !c.ready) {
			mine = append(mine, w)
		}
	}
	slices.SortFunc(mine, func(a, b *wanted) int {
		if a.placed != b.placed {
			if a.placed {
				return 1
			}
			return -1
		}
		return strings.Compare(string(b.id), string(a.id))
	})
	for _, w := range mine[:min(n, len(mine))] {
		if c := p.o.leaseOfLocked(w.id); c != nil {
			c.released = true
		}
		delete(p.o.offers, w.id)
		p.o.marketLocked(market.Withdraw{Offer: w.id, Reason: "no longer needed"})
	}
}

func (o *Owner) leaseOfLocked(id market.OfferID) *leaseClient {
	for _, c := range o.leases {
		if c.offer == id {
			return c
		}
	}
	return nil
}

func (p *pool) dispatchLocked(a replicas.Dispatch) {
	o := p.o
	t, c := o.tasks[string(a.Call)], o.leases[market.LeaseID(a.Replica)]
	if t == nil || c == nil {
		o.log.Error("dispatch without task or lease", "task", a.Call, "lease", a.Replica)
		return
	}
	at := &attempt{number: uint32(a.Attempt), lease: c.id, offer: c.offer, node: string(c.node),
		warm: c.calls > 0, dispatched: time.Now()}
	c.calls++
	if n := len(t.attempts); n >= maxAttempts { // retries are bounded; what is recalled again and again is not
		t.attempts = slices.Delete(t.attempts, 0, n-maxAttempts+1)
	}
	t.attempts = append(t.attempts, at)
	call := p.message(t, at)
	if t.headless {
		// The journal must know where it runs before it can run there.
		rec := AttemptRecord{Number: at.number, Lease: string(c.id), Offer: string(c.offer), Node: string(c.node), Epoch: c.fence.Epoch}
		o.wg.Add(1)
		go func() {
			defer o.wg.Done()
			if err := o.cfg.Journal.Attempted(o.ctx, t.id, rec); err != nil {
				o.log.Error("journal attempt", "task", t.id, "err", err)
			}
			o.mu.Lock()
			defer o.mu.Unlock()
			if !at.dropped {
				at.sent = true
				c.send(call)
			}
		}()
		return
	}
	at.sent = true
	c.send(call)
}

// maxAttempts bounds what is remembered of a task's dispatches.
const maxAttempts = 256

// message is an attempt as its container gets it.
func (p *pool) message(t *task, at *attempt) *peerv1.LeaseDown {
	return &peerv1.LeaseDown{What: &peerv1.LeaseDown_Call{Call: &peerv1.Call{TaskId: t.id, Attempt: at.number, Args: t.args,
		Format: t.format, TimeoutMs: p.plan.Config.Timeout().Milliseconds()}}}
}

// order is the work order for a lease of this pool.
func (p *pool) order(planner Planner, leaseID, worker string) ([]byte, error) {
	o := proto.Clone(p.plan.Order).(*peerv1.WorkOrder)
	planner.Complete(p.plan, o, leaseID, worker)
	return proto.Marshal(o)
}

func shortID(self mesh.PeerID, epoch, seq uint64) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d/%d", self, epoch, seq))
	return hex.EncodeToString(sum[:8])
}

// waitingText says why work waits: the nearest misses, then what helps.
func waitingText(rs []scheduler.NodeRefusal, hint string) string {
	s := reasonsText(rs)
	if s == "" {
		s = "no node is known"
	}
	if hint != "" {
		s += "; " + hint
	}
	return s
}

func infeasibleText(p *Plan, rs []scheduler.NodeRefusal) string {
	s := "no node of the mesh can run this (" + p.Demand.String() + ")"
	if r := reasonsText(rs); r != "" {
		s += ": " + r
	}
	return s
}

func reasonsText(rs []scheduler.NodeRefusal) string {
	var parts []string
	for _, r := range rs {
		var why []string
		for _, x := range r.Reasons {
			why = append(why, x.Text)
		}
		name := r.Name
		if name == "" {
			name = string(r.Node)
		}
		parts = append(parts, name+": "+strings.Join(why, ", "))
	}
	return strings.Join(parts, "; ")
}

package owner

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/beammesh/beammesh/mesh"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/replicas"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
)

// restoreWriters bounds the journal entries under way, which share their fsync.
const restoreWriters = 64

// Restore takes up the tasks that an earlier life of this node left open. It is
// called once, when the mesh is up.
//
// A headless task that had begun is taken over where it runs: its worker kept
// the lease, its output and its result. One that had not begun is queued again.
// The client of an attached task is gone with the old process: it is cancelled,
// and its worker stops it when it hears that nobody owns the lease.
func (o *Owner) Restore(ctx context.Context) error {
	open, err := o.cfg.Journal.Open()
	if err != nil {
		return fmt.Errorf("read open tasks: %w", err)
	}
	var g errgroup.Group
	g.SetLimit(restoreWriters)
	var ours []StoredTask
	for _, st := range open {
		switch {
		case st.Damaged != nil:
			g.Go(func() error {
				return o.endStored(ctx, st, Error, fault.Internal, "the node that took the task was restarted and cannot read its arguments: "+st.Damaged.Error(), "submit it again")
			})
		case !st.Headless:
			g.Go(func() error {
				return o.endStored(ctx, st, Cancelled, fault.Cancelled, "the node that took the task was restarted, and its client went with it",
					"use headless=True for work that must outlive it")
			})
		default:
			ours = append(ours, st)
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	o.takeUp(ctx, ours)
	return nil
}

// endStored ends a task of an earlier life that nothing can be done for.
func (o *Owner) endStored(ctx context.Context, st StoredTask, status string, code fault.Code, text, hint string) error {
	out := &beamv1.Outcome{TaskId: st.ID, Status: status, Error: &beamv1.ErrorDetail{Code: string(code), Message: text, Hint: hint}}
	b, err := proto.Marshal(out)
	if err != nil {
		return fmt.Errorf("encode outcome: %w", err)
	}
	if err := o.cfg.Journal.Ended(ctx, st.ID, EndRecord{Status: status, Outcome: b, EndedUnixMicro: time.Now().UnixMicro()}); err != nil {
		return fmt.Errorf("end task %s of an earlier life: %w", st.ID, err)
	}
	return nil
}

// takeUp plans stored tasks and takes them up, all at one moment: a lease may
// run several, and its stream must find all of them known.
func (o *Owner) takeUp(ctx context.Context, list []StoredTask) {
	pools := make([]*pool, len(list))
	var parked []StoredTask
	for i, st := range list {
		p, err := o.pool(ctx, st.Workspace, st.StubID)
		if err != nil {
			// The ledger cannot be asked, for example. It is tried again when a
			// node comes up, and at the next start.
			o.log.Warn("open task cannot be taken up yet", "task", st.ID, "err", err)
			parked = append(parked, st)
		}
		pools[i] = p
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	for i, st := range list {
		if pools[i] != nil {
			o.takeUpLocked(pools[i], st)
		}
	}
	o.restored, o.parked = true, append(o.parked, parked...)
	o.drainLocked()
}

// unparkLocked tries again what could not be planned.
func (o *Owner) unparkLocked() {
	if len(o.parked) == 0 || o.closed {
		return
	}
	list := o.parked
	o.parked = nil
	o.restored = false // their leases are not orphans while they are planned
	o.wg.Add(1)
	go func() {
		defer o.wg.Done()
		o.takeUp(o.ctx, list)
	}()
}

// isParkedLocked tells whether a lease runs a task that waits to be taken up.
func (o *Owner) isParkedLocked(id market.LeaseID) bool {
	return slices.ContainsFunc(o.parked, func(st StoredTask) bool { return st.Attempt != nil && st.Attempt.Lease == string(id) })
}

func (o *Owner) takeUpLocked(p *pool, st StoredTask) {
	if o.tasks[st.ID] != nil {
		return
	}
	if q := o.pools[p.key]; q != nil {
		p = q
	} else {
		o.pools[p.key] = p
	}
	t := &task{id: st.ID, workspace: st.Workspace, stubID: st.StubID, stubName: st.StubName, args: st.Args, format: st.Format,
		headless: true, callback: st.CallbackURL, created: time.UnixMicro(st.CreatedUnixMicro), status: Pending,
		answers: map[uint32]answer{}}
	t.ctx, t.stop = context.WithCancel(o.ctx)
	o.tasks[t.id] = t
	o.open++
	o.openBytes += len(t.args)
	if st.Attempt == nil {
		o.submitLocked(p, t)
		return
	}
	c := o.adoptLocked(p, st.Attempt)
	at := &attempt{number: st.Attempt.Number, lease: c.id, offer: c.offer, node: string(c.node), warm: c.calls > 0, dispatched: time.Now(), sent: true}
	c.calls++
	t.attempts = append(t.attempts, at)
	p.enlistLocked(t)
	p.stepLocked(replicas.Resume{Call: o.callOf(p, t), Attempt: int(at.number), Replica: replicas.ReplicaID(c.id), Node: at.node})
	// The worker knows the call, or its end; or the old life of this owner
	// was over before it was sent.
	c.send(p.message(t, at))
}

// adoptLocked takes a lease of an earlier life over. If the worker no longer has
// it, attaching says so and its calls are placed again.
func (o *Owner) adoptLocked(p *pool, a *AttemptRecord) *leaseClient {
	id := market.LeaseID(a.Lease)
	if c := o.leases[id]; c != nil {
		return c
	}
	fence := market.Fence{Epoch: a.Epoch, Attempt: leaseAttempt(a)}
	w := &wanted{id: market.OfferID(a.Offer), pool: p, submitted: time.Now(), placed: true, adopted: true}
	o.offers[w.id] = w
	c := newLeaseClient(o, w, id, fence, mesh.PeerID(a.Node))
	c.adopted, c.ready = true, true
	c.placedAt = time.Now()
	o.leases[id] = c
	o.marketLocked(market.Adopt{Offer: market.Offer{ID: w.id, Demand: p.plan.Demand, Group: p.key, Headless: true},
		Lease: id, Fence: fence, Node: scheduler.NodeID(a.Node)})
	o.wg.Add(1)
	go c.run()
	return c
}

// leaseAttempt reads the award's number back from "<offer>-<attempt>".
func leaseAttempt(a *AttemptRecord) uint32 {
	var n uint32
	if len(a.Lease) > len(a.Offer)+1 {
		if _, err := fmt.Sscanf(a.Lease[len(a.Offer)+1:], "%d", &n); err != nil {
			return 1
		}
	}
	return max(n, 1)
}

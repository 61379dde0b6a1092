package owner

import (
	"context"
	"fmt"
	"time"

	"github.com/beammesh/beammesh/mesh"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"google.golang.org/protobuf/proto"
)

// Restore takes up the tasks that an earlier life of this node left open. It is
// called once, when the mesh is up, before the API serves.
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
	for _, st := range open {
		if !st.Headless {
			if err := o.orphaned(ctx, st); err != nil {
				return err
			}
			continue
		}
		p, err := o.pool(ctx, st.Workspace, st.StubID)
		if err != nil {
			// The stub cannot be planned now: the task stays open in the journal
			// and the next start tries again.
			o.log.Warn("open task cannot be taken up", "task", st.ID, "err", err)
			if st.Attempt != nil {
				o.mu.Lock()
				o.spared[market.LeaseID(st.Attempt.Lease)] = true
				o.mu.Unlock()
			}
			continue
		}
		o.takeUp(p, st)
	}
	o.mu.Lock()
	o.restored = true
	o.mu.Unlock()
	return nil
}

// orphaned ends an attached task of an earlier life.
func (o *Owner) orphaned(ctx context.Context, st StoredTask) error {
	out := &beamv1.Outcome{TaskId: st.ID, Status: Cancelled, Error: &beamv1.ErrorDetail{Code: string(fault.Cancelled),
		Message: "the node that took the task was restarted, and its client went with it", Hint: "use headless=True for work that must outlive it"}}
	b, err := proto.Marshal(out)
	if err != nil {
		return fmt.Errorf("encode outcome: %w", err)
	}
	return o.cfg.Journal.Ended(ctx, st.ID, EndRecord{Status: Cancelled, Outcome: b, StartedUnixMicro: st.CreatedUnixMicro, EndedUnixMicro: time.Now().UnixMicro()})
}

func (o *Owner) takeUp(p *pool, st StoredTask) {
	t := &task{id: st.ID, workspace: st.Workspace, stubID: st.StubID, stubName: st.StubName, args: st.Args, format: st.Format,
		headless: true, callback: st.CallbackURL, created: time.UnixMicro(st.CreatedUnixMicro), status: Pending,
		answers: map[uint32]*beamv1.Outcome{}, done: make(chan struct{})}
	t.ctx, t.stop = context.WithCancel(o.ctx)
	o.mu.Lock()
	defer o.mu.Unlock()
	if a := st.Attempt; a != nil {
		// The pool counts from 1 again; on the wire the count goes on.
		t.base = a.Number - 1
		o.adoptLocked(p, a)
	}
	o.tasks[t.id] = t
	o.open++
	o.submitLocked(p, t)
	o.drainLocked()
}

// adoptLocked takes a lease of an earlier life over, so that the pool gets it
// instead of a new container. If the worker no longer has it, attaching says so
// and the call is placed again.
func (o *Owner) adoptLocked(p *pool, a *AttemptRecord) {
	id := market.LeaseID(a.Lease)
	if o.leases[id] != nil {
		return
	}
	fence := market.Fence{Epoch: a.Epoch, Attempt: leaseAttempt(a)}
	w := &wanted{id: market.OfferID(a.Offer), pool: p, submitted: time.Now(), placed: true, adopted: true}
	o.offers[w.id] = w
	c := newLeaseClient(o, w, id, fence, mesh.PeerID(a.Node))
	c.adopted = true
	c.placedAt = time.Now()
	o.leases[id] = c
	o.marketLocked(market.Adopt{Offer: market.Offer{ID: w.id, Demand: p.plan.Demand, Group: p.key, Headless: true},
		Lease: id, Fence: fence, Node: scheduler.NodeID(a.Node)})
	o.wg.Add(1)
	go c.run()
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

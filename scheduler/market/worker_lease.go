package market

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/beammesh/beammesh/scheduler"
)

// Bounds on names that peers send.
const (
	maxOfferID = 48
	maxLeaseID = 64
	maxShape   = 64
	maxLease   = time.Hour // of Award.LeaseFor
)

// award starts a lease, or repeats the answer that it gave before.
func (w *Worker) award(now time.Duration, a *Award) {
	w.sawOwner(now, a.Owner)
	reply := AwardReply{Offer: a.Offer, Lease: a.Lease, Node: w.cfg.Node}
	if l := w.leases[a.Lease]; l != nil && l.Owner.Peer == a.Owner.Peer && l.Fence == a.Fence {
		reply.OK, reply.Grant, reply.Advert = true, l.grant, w.advertTo(a.Owner)
		w.replyAward(a.Owner, &reply)
		return
	}
	h, pulled := w.takeHold(a.Hold, a.Owner, a.Offer)
	reply.Refusals = w.checkAward(a)
	if len(reply.Refusals) == 0 {
		w.fences.put(a.Owner.Peer, a.Offer, a.Fence)
		for _, l := range w.order { // an older attempt of the same offer must go
			if l.Owner.Peer == a.Owner.Peer && l.Offer == a.Offer && l.Fence.Less(a.Fence) {
				w.stop(now, l, EndSuperseded)
			}
		}
		if g, ok := w.allocate(&a.Demand); ok {
			l := &lease{Award: *a, grant: g, since: now, pulled: pulled}
			w.leases[a.Lease] = l
			w.order = append(w.order, l)
			w.cur.Queue++
			reply.OK, reply.Grant = true, g
			w.countLeases(a.Owner.Peer, now)
		} else {
			reply.Refusals = scheduler.Feasible(&a.Demand, &w.cur)
		}
	}
	w.awarded(now, a, h, reply.OK)
	w.gossip = w.gossip || reply.OK || h != nil && w.shown
	if reply.OK {
		w.note(now, a.Offer, "accepted award %s with fence %s", a.Lease, a.Fence)
		w.start(a, &reply.Grant)
	} else {
		w.note(now, a.Offer, "refused award %s: %s", a.Lease, reasons(reply.Refusals))
	}
	reply.Advert = w.advertTo(a.Owner)
	w.replyAward(a.Owner, &reply)
}

// checkAward is everything but room.
func (w *Worker) checkAward(a *Award) []scheduler.Refusal {
	refuse := func(code scheduler.Code, never bool, format string, args ...any) []scheduler.Refusal {
		return []scheduler.Refusal{{Code: code, Never: never, Text: fmt.Sprintf(format, args...)}}
	}
	if err := a.Demand.Validate(); err != nil {
		return refuse(scheduler.InvalidInput, true, "%v", err)
	}
	if a.Offer == "" || len(a.Offer) > maxOfferID || a.Lease == "" || len(a.Lease) > maxLeaseID ||
		a.LeaseFor <= 0 || a.LeaseFor > maxLease {
		return refuse(scheduler.InvalidInput, true, "award: bad name or duration")
	}
	if f, seen := w.fences.get(a.Owner.Peer, a.Offer); seen && !f.Less(a.Fence) {
		if f == a.Fence {
			return refuse(scheduler.StaleFence, false, "fence %s was answered before", f)
		}
		return refuse(scheduler.StaleFence, false, "fence %s is older than %s", a.Fence, f)
	}
	if w.leases[a.Lease] != nil {
		return refuse(scheduler.StaleFence, false, "lease %s is taken", a.Lease)
	}
	if len(w.leases) >= w.cfg.MaxLeases {
		return refuse(scheduler.Limit, false, "runs %d containers already", len(w.leases))
	}
	if w.drain {
		return refuse(scheduler.Draining, false, "draining")
	}
	return nil
}

// takeHold removes the hold of an award so that its room is free for the lease.
// Any hold of the same offer goes with it.
func (w *Worker) takeHold(id string, owner OwnerID, offer OfferID) (h *hold, pulled bool) {
	for i := 0; i < len(w.holds); {
		x := w.holds[i]
		if x.owner.Peer == owner.Peer && (x.id == id || x.offer == offer && x.shape == "") {
			if h == nil || x.id == id {
				h = x
			}
			w.holds = slices.Delete(w.holds, i, i+1)
			continue
		}
		i++
	}
	if h != nil {
		w.recount()
	}
	return h, h != nil && h.shape != ""
}

// awarded brings the table of open offers up to date with an award: how many
// of its shape still wait. A pull that came to nothing waits for the next
// publication.
func (w *Worker) awarded(now time.Duration, a *Award, h *hold, ok bool) {
	if h != nil {
		w.forget(h.id)
	}
	if ok && a.More > 0 && a.Shape != "" && len(a.Shape) <= maxShape {
		w.remember(OpenOffer{Owner: a.Owner, Shape: a.Shape, Demand: a.Demand, Count: a.More, TTL: maxOfferTTL / 4, Direct: true}, now)
	}
}

// release takes back a hold or stops a lease. What is not known is remembered as
// a fence, so that an award on its way is refused.
func (w *Worker) release(now time.Duration, r *Release) {
	w.sawOwner(now, r.Owner)
	for i := range w.holds {
		if h := w.holds[i]; r.Hold != "" && h.id == r.Hold && h.owner.Peer == r.Owner.Peer {
			w.forget(h.id)
			w.dropHold(i)
			break
		}
	}
	if r.Lease != "" && len(r.Offer) <= maxOfferID {
		if l := w.leases[r.Lease]; l != nil && l.Owner.Peer == r.Owner.Peer {
			w.stop(now, l, EndReleased)
		}
		w.fences.put(r.Owner.Peer, r.Offer, r.Fence)
	}
	w.replyRelease(r.Owner, &ReleaseReply{Node: w.cfg.Node, Advert: w.advertTo(r.Owner)})
}

// restore takes a lease over from an earlier life of this node. It counts even
// if it does not fit any more: it is there.
func (w *Worker) restore(now time.Duration, r Restore) {
	if w.leases[r.Lease] != nil {
		return
	}
	l := &lease{since: now, ready: true, grant: r.Grant, Award: Award{
		Owner: r.Owner, Offer: r.Offer, Lease: r.Lease, Fence: r.Fence, Demand: r.Demand, Headless: r.Headless,
	}}
	w.leases[r.Lease] = l
	w.order = append(w.order, l)
	w.fences.put(r.Owner.Peer, r.Offer, r.Fence)
	w.recount()
	w.gossip = true
	w.countLeases(r.Owner.Peer, now)
	w.note(now, r.Offer, "took over %s", r.Lease)
}

// stop asks the shell to end a lease, once.
func (w *Worker) stop(now time.Duration, l *lease, why EndReason) {
	if l.stopping != "" {
		return
	}
	l.stopping = why
	w.note(now, l.Offer, "stopping %s: %s", l.Lease, why)
	w.emit(Stop{Lease: l.Lease, Reason: why})
}

// leaseDone frees what the lease had and tells its owner, unless it was the
// owner who let it go.
func (w *Worker) leaseDone(now time.Duration, e LeaseDone) {
	l := w.leases[e.Lease]
	if l == nil {
		return
	}
	delete(w.leases, e.Lease)
	w.order = slices.DeleteFunc(w.order, func(x *lease) bool { return x == l })
	w.recount()
	w.gossip = true
	w.countLeases(l.Owner.Peer, now)
	why := e.Reason
	if l.stopping != "" {
		why = l.stopping
	}
	w.note(now, l.Offer, "%s ended: %s", l.Lease, why)
	if why == EndReleased || why == EndSuperseded {
		return
	}
	msg := Ended{
		Owner: l.Owner, Node: w.cfg.Node, Offer: l.Offer, Lease: l.Lease, Fence: l.Fence,
		Reason: why, Detail: clip(e.Detail), Advert: w.advertTo(l.Owner),
	}
	if len(w.ended) >= w.cfg.MaxLeases {
		w.ended = slices.Delete(w.ended, 0, 1) // its owner will learn it from the lease's expiry
	}
	w.ended = append(w.ended, &endedNote{msg: msg, sends: 1, next: now + w.cfg.RenewEvery})
	w.sendEnded(&msg)
}

// clip bounds a text that travels.
func clip(s string) string {
	const most = 512
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "")
	}
	return s
}

func reasons(rs []scheduler.Refusal) string {
	parts := make([]string, len(rs))
	for i, r := range rs {
		parts[i] = r.Text
	}
	return strings.Join(parts, "; ")
}

// fenceTable remembers the highest fence per offer, of the latest limit offers.
type fenceTable struct {
	limit int
	byKey map[fenceKey]Fence
	ring  []fenceKey
	next  int
}

type fenceKey struct {
	peer  scheduler.NodeID
	offer OfferID
}

func (t *fenceTable) get(peer scheduler.NodeID, offer OfferID) (Fence, bool) {
	f, ok := t.byKey[fenceKey{peer, offer}]
	return f, ok
}

func (t *fenceTable) put(peer scheduler.NodeID, offer OfferID, f Fence) {
	k := fenceKey{peer, offer}
	if t.byKey == nil {
		t.byKey = map[fenceKey]Fence{}
	}
	if old, ok := t.byKey[k]; ok {
		if old.Less(f) {
			t.byKey[k] = f
		}
		return
	}
	if len(t.ring) < t.limit {
		t.ring = append(t.ring, k)
	} else {
		delete(t.byKey, t.ring[t.next])
		t.ring[t.next] = k
		t.next = (t.next + 1) % t.limit
	}
	t.byKey[k] = f
}

package market

import (
	"slices"
	"strings"
	"time"

	"github.com/beammesh/beammesh/scheduler"
)

// ownerSeen is when a worker last heard of an owner that has leases here.
type ownerSeen struct {
	peer      scheduler.NodeID
	id        OwnerID // the latest of its lives
	seen      time.Duration
	nextRenew time.Duration
	leases    int // running here
	attached  int // of these, the ones that end with their owner
}

func (w *Worker) owner(peer scheduler.NodeID) *ownerSeen {
	i, ok := w.findOwner(peer)
	if !ok {
		return nil
	}
	return w.owners[i]
}

func (w *Worker) findOwner(peer scheduler.NodeID) (int, bool) {
	return slices.BinarySearchFunc(w.owners, peer, func(s *ownerSeen, p scheduler.NodeID) int {
		return strings.Compare(string(s.peer), string(p))
	})
}

// sawOwner notes a sign of life.
func (w *Worker) sawOwner(now time.Duration, id OwnerID) {
	if s := w.owner(id.Peer); s != nil {
		s.seen = now
		if id.Epoch > s.id.Epoch {
			s.id = id
		}
	}
}

// countLeases keeps the owner's entry: there is one exactly while it has leases.
func (w *Worker) countLeases(peer scheduler.NodeID, now time.Duration) {
	leases, attached := 0, 0
	var id OwnerID
	for _, l := range w.order {
		if l.Owner.Peer == peer {
			leases++
			if !l.Headless && l.stopping == "" {
				attached++
			}
			if id.Epoch <= l.Owner.Epoch {
				id = l.Owner
			}
		}
	}
	i, ok := w.findOwner(peer)
	switch {
	case leases == 0 && ok:
		w.owners = slices.Delete(w.owners, i, i+1)
		return
	case leases == 0:
		return
	case !ok:
		w.owners = slices.Insert(w.owners, i, &ownerSeen{peer: peer, id: id, seen: now, nextRenew: now + w.cfg.RenewEvery})
	}
	w.owners[i].leases, w.owners[i].attached = leases, attached
}

// tendOwners sends the renewals that are due and stops the leases whose owner
// has been gone for too long.
func (w *Worker) tendOwners(now time.Duration) {
	for _, s := range w.owners {
		if s.attached > 0 && now >= s.seen+w.cfg.OwnerGap {
			for _, l := range w.order {
				if l.Owner.Peer == s.peer && !l.Headless {
					w.stop(now, l, EndOwnerGone)
				}
			}
			s.attached = 0
		}
		if now >= s.nextRenew {
			w.renew(now, s)
		}
	}
}

// renew says which leases of an owner live; a lease that is being stopped is
// not renewed.
func (w *Worker) renew(now time.Duration, s *ownerSeen) {
	s.nextRenew = now + w.cfg.RenewEvery
	var refs []LeaseRef
	send := func() {
		if len(refs) > 0 {
			w.sendRenew(s.id, &Renew{Owner: s.id, Node: w.cfg.Node, Leases: refs})
			refs = nil
		}
	}
	for _, l := range w.order {
		if l.Owner.Peer != s.peer || l.stopping != "" {
			continue
		}
		refs = append(refs, LeaseRef{l.Offer, l.Lease, l.Fence})
		if len(refs) == MaxRenew {
			send()
		}
	}
	send()
}

func (w *Worker) renewAck(now time.Duration, a *RenewAck) {
	w.sawOwner(now, a.Owner)
	for _, ref := range a.Unknown {
		if l := w.leases[ref.Lease]; l != nil && l.Owner.Peer == a.Owner.Peer && l.Fence == ref.Fence {
			w.stop(now, l, EndReleased)
		}
	}
}

// ownerDown renews nothing faster or slower: the gap counts from the last sign
// of life, which the next unanswered renewals do not move. It only forgets what
// that owner has waiting, so that nothing is held for it.
func (w *Worker) ownerDown(peer scheduler.NodeID) {
	w.offers = slices.DeleteFunc(w.offers, func(o *openOffer) bool { return o.msg.Owner.Peer == peer })
	for i := 0; i < len(w.holds); {
		if w.holds[i].owner.Peer == peer {
			w.dropHold(i)
			continue
		}
		i++
	}
}

// ownerUp renews at once: the owner may have counted us out.
func (w *Worker) ownerUp(now time.Duration, peer scheduler.NodeID) {
	if s := w.owner(peer); s != nil {
		s.seen = now
		w.renew(now, s)
	}
	for _, n := range w.ended {
		if n.msg.Owner.Peer == peer {
			n.sends, n.next = 1, now+w.cfg.RenewEvery
			w.sendEnded(&n.msg)
		}
	}
}

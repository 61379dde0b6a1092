package market

import (
	"fmt"
	"time"

	"github.com/beammesh/beammesh/scheduler"
)

// OwnerID is who answers for work: a node in one of its lives. The market only
// compares it. A higher Epoch of the same Peer replaces the lower.
type OwnerID struct {
	Peer  scheduler.NodeID
	Epoch uint64
}

func (o OwnerID) String() string { return fmt.Sprintf("%s/%d", o.Peer, o.Epoch) }

// OfferID names one wanted container, unique per owner for all time. The shell
// chooses it; at most 48 bytes of [a-z0-9-] so that LeaseID can name a container.
type OfferID string

// LeaseID names one award of an offer: "<offer>-<attempt>".
type LeaseID string

// Fence orders the awards of one offer. Only the highest counts.
type Fence struct {
	Epoch   uint64 // the owner's
	Attempt uint32 // counts the awards of the offer, from 1
}

// Less says whether f is older than g.
func (f Fence) Less(g Fence) bool {
	return f.Epoch < g.Epoch || f.Epoch == g.Epoch && f.Attempt < g.Attempt
}

func (f Fence) String() string { return fmt.Sprintf("%d.%d", f.Epoch, f.Attempt) }

// Ask: can you take this? Owner to worker.
type Ask struct {
	Owner  OwnerID
	Offer  OfferID
	Round  int // echoed
	Shape  string
	Demand scheduler.Demand
}

// AskReply answers an Ask: a bid, or refusals. Worker to owner.
type AskReply struct {
	Offer    OfferID
	Round    int
	Node     scheduler.NodeID
	Hold     string        // the reservation behind the bid; "" = refused
	HoldFor  time.Duration // how long from now it lasts
	Refusals []scheduler.Refusal
	Advert   scheduler.Advert // always: the view lives from it
}

// Award gives the lease. Owner to worker; repeated until answered.
type Award struct {
	Owner    OwnerID
	Offer    OfferID
	Lease    LeaseID
	Fence    Fence
	Hold     string // of the bid; the worker allocates afresh when it has lapsed
	Demand   scheduler.Demand
	LeaseFor time.Duration // without a renewal the owner may place it elsewhere
	// Headless work outlives its owner; other leases are stopped after the gap.
	Headless bool
	Shape    string
	More     int // how many of the shape still wait: the worker may pull them
}

// AwardReply answers an Award; a repeated award gets the same answer. Worker to owner.
type AwardReply struct {
	Offer    OfferID
	Lease    LeaseID
	Node     scheduler.NodeID
	OK       bool
	Grant    scheduler.Grant
	Refusals []scheduler.Refusal
	Advert   scheduler.Advert
}

// Release takes back a hold or a lease. Owner to worker. The worker answers
// with a ReleaseReply; asking again is harmless.
type Release struct {
	Owner  OwnerID
	Offer  OfferID
	Lease  LeaseID // "" = only the hold
	Fence  Fence   // of the lease: an award that arrives after this is refused
	Hold   string
	Reason string
}

// ReleaseReply tells what is free now. Worker to owner.
type ReleaseReply struct {
	Node   scheduler.NodeID
	Advert scheduler.Advert
}

// LeaseRef names a lease in a Renew.
type LeaseRef struct {
	Offer OfferID
	Lease LeaseID
	Fence Fence
}

// Renew says that these leases live. Worker to owner, every RenewEvery, all
// leases of one owner together (at most MaxRenew in one message).
type Renew struct {
	Owner  OwnerID // epoch 0: whoever now is Peer
	Node   scheduler.NodeID
	Leases []LeaseRef
}

// RenewAck answers a Renew and is the owner's sign of life. Owner to worker.
type RenewAck struct {
	Owner OwnerID
	// Unknown leases are not this owner's any more: the worker stops them.
	Unknown []LeaseRef
}

// Ended says that a lease is over and its resources are free. Worker to owner.
// Repeated on every Renew interval until EndedAck, at most EndedRepeats times.
type Ended struct {
	Owner  OwnerID
	Node   scheduler.NodeID
	Offer  OfferID
	Lease  LeaseID
	Fence  Fence
	Reason EndReason
	Detail string
	Advert scheduler.Advert
}

// EndedAck stops the repetition. Owner to worker.
type EndedAck struct {
	Owner OwnerID
	Lease LeaseID
}

// OpenOffer is work that waits, per shape: gossiped, or sent to one node that
// seems to have room. Encoded it stays below 1 KiB. It is forgotten after TTL.
type OpenOffer struct {
	Owner  OwnerID
	Shape  string
	Demand scheduler.Demand
	Count  int // how many containers of this shape wait
	TTL    time.Duration
	Direct bool // sent to this node alone: no need to spread the pulls
}

// Pull is an unasked bid for an OpenOffer. Worker to owner.
type Pull struct {
	Owner   OwnerID
	Shape   string
	Node    scheduler.NodeID
	Hold    string
	HoldFor time.Duration
	Advert  scheduler.Advert
}

// EndReason is why a lease ended.
type EndReason string

// The reasons. The first group comes from the worker, the second is the owner's
// own conclusion.
const (
	EndExited     EndReason = "exited" // the container ended by itself
	EndFailed     EndReason = "failed" // it could not be started
	EndOOM        EndReason = "out_of_memory"
	EndReleased   EndReason = "released"    // the owner let it go
	EndSuperseded EndReason = "superseded"  // a higher fence of the same offer came
	EndOwnerGone  EndReason = "owner_gone"  // no sign of the owner for the gap
	EndDevice     EndReason = "device_gone" // a granted device vanished
	EndDrained    EndReason = "drained"     // the node shuts down

	EndExpired  EndReason = "expired"   // no renewal for LeaseFor
	EndNodeDown EndReason = "node_down" // its connection broke
)

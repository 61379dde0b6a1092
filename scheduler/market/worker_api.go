package market

import (
	"time"

	"github.com/beammesh/beammesh/scheduler"
)

// WorkerConfig has a useful default for every zero but Node and Boot.
type WorkerConfig struct {
	Node scheduler.NodeID
	Name string
	Boot string

	// Capacity is what the machine has, as in SetCapacity.
	Capacity scheduler.Capacity
	// CPUOvercommit multiplies the advertised cores; 1.
	CPUOvercommit int64

	HoldFor    time.Duration // of a bid; 2 s
	RenewEvery time.Duration // 5 s
	// OwnerGap stops leases that are not headless; 60 s without a sign of the owner.
	OwnerGap time.Duration
	// PullSpread is the most a node waits before it pulls a gossiped open offer,
	// so that not all nodes pull at once; 50 ms.
	PullSpread time.Duration

	MaxLeases     int // 1024
	MaxHolds      int // 64
	MaxPulls      int // unanswered at a time; 4
	MaxOpenOffers int // remembered; 256
	MaxFences     int // remembered of leases that are over; 4096

	// Packing chooses the device of a share; nil = the fullest with room.
	Packing *scheduler.Packing

	NoHistory bool // keep no text for History: for simulations
	// Wire takes the messages instead of the actions that Step returns; nil = none.
	Wire WorkerWire
}

// WorkerEvent is an input of Worker: one of the types below, or one of the
// messages Ask, Award, Release, RenewAck, EndedAck and OpenOffer.
type WorkerEvent interface{ workerEvent() }

// LeaseReady says that the container runs: it no longer counts as queued.
type LeaseReady struct{ Lease LeaseID }

// Restore tells a fresh worker of a container that outlived the node's restart,
// before anything else is fed in. The lease is not started again.
type Restore struct {
	Owner    OwnerID
	Offer    OfferID
	Lease    LeaseID
	Fence    Fence
	Demand   scheduler.Demand
	Grant    scheduler.Grant
	Headless bool
}

// LeaseDone says that a container is gone, by itself or after Stop, with
// everything that it used.
type LeaseDone struct {
	Lease  LeaseID
	Reason EndReason // EndExited, EndFailed, EndOOM; a Stop's own reason wins
	Detail string
}

// OwnerDown says that an owner's node cannot be reached; its gap begins.
type OwnerDown struct{ Peer scheduler.NodeID }

// OwnerUp says that it can be reached again.
type OwnerUp struct{ Peer scheduler.NodeID }

// Drain stops new leases (On), or takes them again. Running ones go on; StopAll
// ends them too.
type Drain struct {
	On      bool
	StopAll bool
}

// SetCapacity replaces what the machine has: totals, devices, disk floor, zone,
// isolation, arch, features, bandwidth. Free.DiskMiB is the disk's real free
// space; the other Free amounts, FreeMilli, Queue, HotRoots and Draining are
// ignored. An unhealthy device is left out. Leases on vanished devices are stopped.
type SetCapacity struct{ Capacity scheduler.Capacity }

// SetHotRoots replaces the list of complete roots; the first MaxHotRoots count.
type SetHotRoots struct{ Roots []string }

func (Ask) workerEvent()         {}
func (Award) workerEvent()       {}
func (Release) workerEvent()     {}
func (RenewAck) workerEvent()    {}
func (EndedAck) workerEvent()    {}
func (OpenOffer) workerEvent()   {}
func (LeaseReady) workerEvent()  {}
func (Restore) workerEvent()     {}
func (LeaseDone) workerEvent()   {}
func (OwnerDown) workerEvent()   {}
func (OwnerUp) workerEvent()     {}
func (Drain) workerEvent()       {}
func (SetCapacity) workerEvent() {}
func (SetHotRoots) workerEvent() {}
func (Tick) workerEvent()        {}

// WorkerAction is an output of Worker.
type WorkerAction interface{ workerAction() }

// ReplyAsk answers an Ask.
type ReplyAsk struct {
	To    OwnerID
	Reply AskReply
}

// ReplyAward answers an Award. Start comes before it in the same Step when the
// lease is new.
type ReplyAward struct {
	To    OwnerID
	Reply AwardReply
}

// ReplyRelease answers a Release.
type ReplyRelease struct {
	To    OwnerID
	Reply ReleaseReply
}

// SendRenew sends a Renew; feed RenewAck back.
type SendRenew struct {
	To    OwnerID
	Renew Renew
}

// SendEnded sends an Ended; feed EndedAck back.
type SendEnded struct {
	To    OwnerID
	Ended Ended
}

// SendPull sends a Pull; the answer is an Award, or a Release of its hold.
type SendPull struct {
	To   OwnerID
	Pull Pull
}

// Start starts a container; feed LeaseReady and, in the end, LeaseDone.
type Start struct {
	Owner    OwnerID
	Offer    OfferID
	Lease    LeaseID
	Fence    Fence
	Demand   scheduler.Demand
	Grant    scheduler.Grant
	Headless bool
}

// Stop stops a container. Its resources stay taken until LeaseDone.
type Stop struct {
	Lease  LeaseID
	Reason EndReason
}

// AdvertChanged: gossip this advert (the shell bounds the rate; the last counts)
// and feed it to this node's own Owner as AdvertSeen with SourceSelf. Heartbeats
// use Worker.Advert.
type AdvertChanged struct{ Advert scheduler.Advert }

func (ReplyAsk) workerAction()      {}
func (ReplyAward) workerAction()    {}
func (ReplyRelease) workerAction()  {}
func (SendRenew) workerAction()     {}
func (SendEnded) workerAction()     {}
func (SendPull) workerAction()      {}
func (Start) workerAction()         {}
func (Stop) workerAction()          {}
func (AdvertChanged) workerAction() {}

// MaxRenew bounds the leases in one Renew.
const MaxRenew = 256

// EndedRepeats bounds how often an Ended is sent.
const EndedRepeats = 12

// LeaseState is one line of Worker.Leases, and what `beam explain` shows of the
// worker's side.
type LeaseState struct {
	Owner    OwnerID
	Offer    OfferID
	Lease    LeaseID
	Fence    Fence
	Grant    scheduler.Grant
	Demand   scheduler.Demand
	Headless bool
	Ready    bool
	Stopping EndReason // "" = not
	Since    time.Duration
	Pulled   bool
}

package market

import (
	"time"

	"github.com/beammesh/beammesh/scheduler"
)

// Offer is one container that an owner wants placed.
type Offer struct {
	ID     OfferID
	Demand scheduler.Demand
	// Group is the stub: containers of one group are spread over nodes.
	Group    string
	Headless bool
	// Patient offers wait even when no known node could ever take them.
	Patient bool
	// FirstAttempt is the first fence attempt to use: 0 or 1 for a new offer,
	// Lost.NextAttempt when it is placed again.
	FirstAttempt uint32
	// Avoid nodes are taken only when there is no other: they failed before.
	Avoid []scheduler.NodeID
}

// OwnerConfig has a useful default for every zero.
type OwnerConfig struct {
	ID OwnerID

	AskWidth int // nodes asked per round; 4
	// FirstWidth is how many are asked in the first round; AskWidth. One is enough
	// where views are good, and saves most messages.
	FirstWidth int
	MaxRounds  int           // rounds before the offer waits; 3
	AskWait    time.Duration // for the answers of a round; 500 ms

	AwardWait  time.Duration // before an award is repeated; 500 ms
	AwardSends int           // in all, before the next bid; 3

	LeaseFor time.Duration // 15 s: three missed renewals

	// DiscoveryGrace is how long an offer that no known node could ever take
	// waits for the DHT to bring other nodes; 3 s. DiscoveryDone ends it early.
	DiscoveryGrace time.Duration

	PublishEvery time.Duration // per shape; 5 s
	OfferTTL     time.Duration // of a published open offer; 15 s
	MaxShapes    int           // published at a time; 32

	MaxOffers int // waiting and placed together; 16384
	MaxRecent int // explanations kept of offers that are over; 1024

	// Packing ranks nodes by the fragmentation of GPUs; nil = by simpler rules.
	Packing *scheduler.Packing

	NoHistory bool // keep no text for Explain: for simulations
	// Wire takes the messages instead of the actions that Step returns; nil = none.
	Wire OwnerWire

	// IgnoreReplies switches off the refresh of the view from answers. It exists
	// so that a test can show why the refresh is there.
	IgnoreReplies bool
}

// OwnerEvent is an input of Owner: one of the types below, or one of the
// messages AskReply, AwardReply, ReleaseReply, Renew, Ended and Pull.
type OwnerEvent interface{ ownerEvent() }

// Submit asks for a container. The same id twice is ignored.
type Submit struct{ Offer Offer }

// AdvertSeen brings news of a node, from gossip, hello or a lookup.
type AdvertSeen struct {
	Advert scheduler.Advert
	Source scheduler.Source
}

// NodeUp says that a node can be reached again; its last advert counts again.
type NodeUp struct{ Node scheduler.NodeID }

// NodeDown says that a node cannot be reached: its leases are lost.
type NodeDown struct {
	Node   scheduler.NodeID
	Reason string
	Left   bool // for good: it is forgotten
}

// SendFailed says that an Ask or Award could not be delivered. It counts as an
// answer; the node is out of placement until its next advert, for which a
// repeated one (a heartbeat) is enough.
type SendFailed struct {
	Node   scheduler.NodeID
	Offer  OfferID
	Lease  LeaseID // set for an Award
	Round  int     // of the Ask
	Reason string
}

// DiscoveryDone says that looking for nodes of a class (Discover) has ended and
// every node found was fed in as AdvertSeen.
type DiscoveryDone struct{ Offer OfferID }

// ReleaseLease lets a placed container go (scale-down).
type ReleaseLease struct {
	Lease  LeaseID
	Reason string
}

// Withdraw takes an offer back, wherever it stands; a lease is released.
type Withdraw struct {
	Offer  OfferID
	Reason string
}

// Adopt takes a lease over, after a restart of the owner, from the shell's
// journal or as the answer to Orphan.
type Adopt struct {
	Offer Offer
	Lease LeaseID
	Fence Fence
	Node  scheduler.NodeID
}

// Disown answers Orphan with no: the worker is told to stop the lease.
type Disown struct {
	Lease LeaseRef
	Node  scheduler.NodeID
}

// Tick is due at NextWake.
type Tick struct{}

func (Submit) ownerEvent()        {}
func (AdvertSeen) ownerEvent()    {}
func (NodeUp) ownerEvent()        {}
func (NodeDown) ownerEvent()      {}
func (SendFailed) ownerEvent()    {}
func (DiscoveryDone) ownerEvent() {}
func (ReleaseLease) ownerEvent()  {}
func (Withdraw) ownerEvent()      {}
func (Adopt) ownerEvent()         {}
func (Disown) ownerEvent()        {}
func (Tick) ownerEvent()          {}
func (AskReply) ownerEvent()      {}
func (AwardReply) ownerEvent()    {}
func (ReleaseReply) ownerEvent()  {}
func (Renew) ownerEvent()         {}
func (Ended) ownerEvent()         {}
func (Pull) ownerEvent()          {}

// OwnerAction is an output of Owner.
type OwnerAction interface{ ownerAction() }

// SendAsk sends an Ask; feed AskReply or SendFailed back.
type SendAsk struct {
	To  scheduler.NodeID
	Ask Ask
}

// SendAward sends an Award; feed AwardReply or SendFailed back.
type SendAward struct {
	To    scheduler.NodeID
	Award Award
}

// SendRelease sends a Release; feed ReleaseReply back. A failure needs no event.
type SendRelease struct {
	To      scheduler.NodeID
	Release Release
}

// SendRenewAck answers a Renew.
type SendRenewAck struct {
	To  scheduler.NodeID
	Ack RenewAck
}

// SendEndedAck answers an Ended.
type SendEndedAck struct {
	To  scheduler.NodeID
	Ack EndedAck
}

// PublishOpenOffer gossips work that waits.
type PublishOpenOffer struct{ OpenOffer OpenOffer }

// SendOpenOffer tells one node that has just got room. A failure needs no event.
type SendOpenOffer struct {
	To        scheduler.NodeID
	OpenOffer OpenOffer
}

// Discover asks the shell to look in the DHT for nodes with these GPU classes
// (none = any node), feed what it finds as AdvertSeen and then DiscoveryDone.
type Discover struct {
	Offer   OfferID
	Classes []string
}

// Placed: the container is starting on Node.
type Placed struct {
	Offer  OfferID
	Lease  LeaseID
	Fence  Fence
	Node   scheduler.NodeID
	Grant  scheduler.Grant
	Demand scheduler.Demand // as awarded
	Note   string           // "asked for 8 cores, the largest node has 2", or ""
	Pulled bool             // the node pulled the open offer
}

// Waiting: not now. Said when it starts and when Never changes.
type Waiting struct {
	Offer OfferID
	// Never: no node known so far could ever take it; unless one is found
	// before the grace ends, Infeasible follows.
	Never   bool
	Reasons []scheduler.NodeRefusal // the nearest misses, at most MaxReasons
	Hint    string
}

// Infeasible: no known node could ever take it. The offer is over.
type Infeasible struct {
	Offer   OfferID
	Reasons []scheduler.NodeRefusal
	Hint    string
}

// Lost: a placed container is gone and was not released. The offer is over;
// submit it again with FirstAttempt = NextAttempt to place it again.
type Lost struct {
	Offer       OfferID
	Lease       LeaseID
	Node        scheduler.NodeID
	Reason      EndReason
	Detail      string
	NextAttempt uint32
}

// NodeDraining: the node of this lease takes no new work and will stop. Get a
// replacement, then release it.
type NodeDraining struct {
	Offer OfferID
	Lease LeaseID
	Node  scheduler.NodeID
}

// Orphan: a worker runs a lease of an earlier life of this owner. Answer with
// Adopt or Disown.
type Orphan struct {
	Lease LeaseRef
	Node  scheduler.NodeID
}

func (SendAsk) ownerAction()          {}
func (SendAward) ownerAction()        {}
func (SendRelease) ownerAction()      {}
func (SendRenewAck) ownerAction()     {}
func (SendEndedAck) ownerAction()     {}
func (PublishOpenOffer) ownerAction() {}
func (SendOpenOffer) ownerAction()    {}
func (Discover) ownerAction()         {}
func (Placed) ownerAction()           {}
func (Waiting) ownerAction()          {}
func (Infeasible) ownerAction()       {}
func (Lost) ownerAction()             {}
func (NodeDraining) ownerAction()     {}
func (Orphan) ownerAction()           {}

// MaxReasons bounds the refusals in Waiting, Infeasible and Explanation.
const MaxReasons = 16

// State of an offer.
type State string

// The states of an offer, in the usual order.
const (
	StatePlacing    State = "placing" // asks or an award are out, or about to be
	StateWaiting    State = "waiting" // an open offer
	StatePlaced     State = "placed"
	StateReleased   State = "released"
	StateLost       State = "lost"
	StateInfeasible State = "infeasible"
)

// Explanation is the record of one offer: why it runs where it runs, or why not.
type Explanation struct {
	Offer     OfferID
	Demand    scheduler.Demand
	State     State
	Node      scheduler.NodeID // where it runs or ran
	Submitted time.Duration
	Settled   time.Duration // when it was placed or given up; 0 = not yet
	Rounds    int
	Asked     int
	Pulled    bool
	Note      string
	// Candidates as last ranked, best first, at most MaxReasons.
	Candidates []scheduler.Candidate
	// Refusals: the last per node, at most MaxReasons.
	Refusals []scheduler.NodeRefusal
	// History, oldest first, at most MaxHistory lines.
	History []scheduler.Moment
}

// MaxHistory bounds Explanation.History.
const MaxHistory = 64

// OfferState is one line of Owner.Offers.
type OfferState struct {
	Offer OfferID
	Group string
	State State
	Lease LeaseID
	Node  scheduler.NodeID
	Fence Fence
}

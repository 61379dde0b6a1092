package mesh

import (
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
)

// Message is a kind of message between nodes.
type Message uint8

// The kinds of messages.
const (
	MsgAsk Message = iota
	MsgAskReply
	MsgAward
	MsgAwardReply
	MsgRelease
	MsgReleaseReply
	MsgRenew
	MsgRenewAck
	MsgEnded
	MsgEndedAck
	MsgOpenOffer
	MsgPull
	MsgAdvert // gossip: one for each owner that hears it
	MsgProbe  // an owner asks for an advert, and the answer
	messageCount
)

var messageNames = [messageCount]string{
	"ask", "ask_reply", "award", "award_reply", "release", "release_reply", "renew", "renew_ack",
	"ended", "ended_ack", "open_offer", "pull", "advert", "probe",
}

// String is the name of the kind, in snake case.
func (m Message) String() string { return messageNames[m] }

// A part is the wire of its machines: their messages are written straight into
// events. The current actor is the sender.
var (
	_ market.OwnerWire  = (*part)(nil)
	_ market.WorkerWire = (*part)(nil)
)

// Ask implements market.OwnerWire, as do the methods below.
func (p *part) Ask(to scheduler.NodeID) *market.Ask {
	m := take(&p.asks)
	p.send(nodeIndex(to), toWorker, MsgAsk, m)
	return m
}

// Award is one of market.OwnerWire.
func (p *part) Award(to scheduler.NodeID) *market.Award {
	m := take(&p.awards)
	p.send(nodeIndex(to), toWorker, MsgAward, m)
	return m
}

// Release is one of market.OwnerWire.
func (p *part) Release(to scheduler.NodeID) *market.Release {
	m := take(&p.releases)
	p.send(nodeIndex(to), toWorker, MsgRelease, m)
	return m
}

// RenewAck is one of market.OwnerWire.
func (p *part) RenewAck(to scheduler.NodeID) *market.RenewAck {
	m := take(&p.renewAcks)
	p.send(nodeIndex(to), toWorker, MsgRenewAck, m)
	return m
}

// EndedAck is one of market.OwnerWire.
func (p *part) EndedAck(to scheduler.NodeID) *market.EndedAck {
	m := take(&p.endedAcks)
	p.send(nodeIndex(to), toWorker, MsgEndedAck, m)
	return m
}

// OpenOffer is one of market.OwnerWire. What is published goes to the nodes
// that share a topic with the owner.
func (p *part) OpenOffer(to scheduler.NodeID) *market.OpenOffer {
	m := new(market.OpenOffer)
	if !p.w.cfg.Keep && p.w.cfg.Patience <= 0 {
		return m // what would pull it is given up at once
	}
	if to != "" {
		p.send(nodeIndex(to), toWorker, MsgOpenOffer, m)
		return m
	}
	p.w.publish(p, m)
	return m
}

// AskReply implements market.WorkerWire, as do the methods below.
func (p *part) AskReply(to market.OwnerID) *market.AskReply {
	m := take(&p.askReplies)
	p.send(p.w.ownerIndex(to.Peer), toOwner, MsgAskReply, m)
	return m
}

// AwardReply is one of market.WorkerWire.
func (p *part) AwardReply(to market.OwnerID) *market.AwardReply {
	m := take(&p.awardReplies)
	p.send(p.w.ownerIndex(to.Peer), toOwner, MsgAwardReply, m)
	return m
}

// ReleaseReply is one of market.WorkerWire.
func (p *part) ReleaseReply(to market.OwnerID) *market.ReleaseReply {
	m := take(&p.releasedAcks)
	p.send(p.w.ownerIndex(to.Peer), toOwner, MsgReleaseReply, m)
	return m
}

// Renew is one of market.WorkerWire.
func (p *part) Renew(to market.OwnerID) *market.Renew {
	m := take(&p.renews)
	p.send(p.w.ownerIndex(to.Peer), toOwner, MsgRenew, m)
	return m
}

// Ended is one of market.WorkerWire.
func (p *part) Ended(to market.OwnerID) *market.Ended {
	m := take(&p.ends)
	p.send(p.w.ownerIndex(to.Peer), toOwner, MsgEnded, m)
	return m
}

// Pull is one of market.WorkerWire.
func (p *part) Pull(to market.OwnerID) *market.Pull {
	m := take(&p.pulls)
	p.send(p.w.ownerIndex(to.Peer), toOwner, MsgPull, m)
	return m
}

// recycle takes a message back after its receiver has seen it. An open offer
// may be on its way to others too and is left to the garbage collector.
func (p *part) recycle(msg any) {
	switch m := msg.(type) {
	case *market.Ask:
		give(&p.asks, m)
	case *market.AskReply:
		give(&p.askReplies, m)
	case *market.Award:
		give(&p.awards, m)
	case *market.AwardReply:
		give(&p.awardReplies, m)
	case *market.Release:
		give(&p.releases, m)
	case *market.ReleaseReply:
		give(&p.releasedAcks, m)
	case *market.Renew:
		give(&p.renews, m)
	case *market.RenewAck:
		give(&p.renewAcks, m)
	case *market.Ended:
		give(&p.ends, m)
	case *market.EndedAck:
		give(&p.endedAcks, m)
	case *market.Pull:
		give(&p.pulls, m)
	}
}

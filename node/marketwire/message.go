// Package marketwire translates between the market's plain messages and their
// protobuf form on the wire. The decision code never meets protobuf.
//
// Encode takes what an action carries; Decode gives the event for the other
// machine, with every sender field set to the peer that the transport proved:
// a message cannot speak in another node's name.
package marketwire

import (
	"errors"
	"fmt"

	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
)

// ErrMessage is wrapped by every refusal of a peer's message.
var ErrMessage = errors.New("bad market message")

// Encode gives the wire form of a market message. order travels with an Award.
func Encode(m any, order []byte) (*peerv1.MarketMessage, error) {
	switch m := m.(type) {
	case market.Ask:
		return &peerv1.MarketMessage{What: &peerv1.MarketMessage_Ask{Ask: &peerv1.Ask{
			Owner: ownerOut(m.Owner), Offer: string(m.Offer), Round: int64(m.Round), Demand: demandOut(m.Demand), Shape: m.Shape}}}, nil
	case market.AskReply:
		return &peerv1.MarketMessage{What: &peerv1.MarketMessage_AskReply{AskReply: &peerv1.AskReply{
			Offer: string(m.Offer), Round: int64(m.Round), Hold: m.Hold, HoldForMs: ms(m.HoldFor),
			Refusals: refusalsOut(m.Refusals), Advert: AdvertOut(m.Advert)}}}, nil
	case market.Award:
		return &peerv1.MarketMessage{What: &peerv1.MarketMessage_Award{Award: &peerv1.Award{
			Owner: ownerOut(m.Owner), Offer: string(m.Offer), Lease: string(m.Lease), Fence: fenceOut(m.Fence),
			Hold: m.Hold, Demand: demandOut(m.Demand), LeaseForMs: ms(m.LeaseFor), Headless: m.Headless, Order: order,
			Shape: m.Shape, More: int64(m.More)}}}, nil
	case market.AwardReply:
		return &peerv1.MarketMessage{What: &peerv1.MarketMessage_AwardReply{AwardReply: &peerv1.AwardReply{
			Offer: string(m.Offer), Lease: string(m.Lease), Ok: m.OK, Grant: grantOut(m.Grant),
			Refusals: refusalsOut(m.Refusals), Advert: AdvertOut(m.Advert)}}}, nil
	case market.Release:
		return &peerv1.MarketMessage{What: &peerv1.MarketMessage_Release{Release: &peerv1.Release{
			Owner: ownerOut(m.Owner), Offer: string(m.Offer), Lease: string(m.Lease), Hold: m.Hold,
			Fence: fenceOut(m.Fence), Reason: clip(m.Reason, maxText)}}}, nil
	case market.ReleaseReply:
		return &peerv1.MarketMessage{What: &peerv1.MarketMessage_ReleaseReply{ReleaseReply: &peerv1.ReleaseReply{Advert: AdvertOut(m.Advert)}}}, nil
	case market.Renew:
		return &peerv1.MarketMessage{What: &peerv1.MarketMessage_Renew{Renew: &peerv1.LeaseRenew{
			Owner: ownerOut(m.Owner), Leases: each(m.Leases, refOut)}}}, nil
	case market.RenewAck:
		return &peerv1.MarketMessage{What: &peerv1.MarketMessage_RenewAck{RenewAck: &peerv1.RenewAck{
			Owner: ownerOut(m.Owner), Unknown: each(m.Unknown, refOut)}}}, nil
	case market.Ended:
		return &peerv1.MarketMessage{What: &peerv1.MarketMessage_Ended{Ended: &peerv1.Ended{
			Owner: ownerOut(m.Owner), Lease: refOut(market.LeaseRef{Offer: m.Offer, Lease: m.Lease, Fence: m.Fence}),
			Reason: string(m.Reason), Detail: clip(m.Detail, maxDetail), Advert: AdvertOut(m.Advert)}}}, nil
	case market.EndedAck:
		return &peerv1.MarketMessage{What: &peerv1.MarketMessage_EndedAck{EndedAck: &peerv1.EndedAck{Owner: ownerOut(m.Owner), Lease: string(m.Lease)}}}, nil
	case market.OpenOffer:
		return &peerv1.MarketMessage{What: &peerv1.MarketMessage_OpenOffer{OpenOffer: OpenOfferOut(m)}}, nil
	case market.Pull:
		return &peerv1.MarketMessage{What: &peerv1.MarketMessage_Pull{Pull: &peerv1.Pull{
			Owner: ownerOut(m.Owner), Shape: m.Shape, Hold: m.Hold, HoldForMs: ms(m.HoldFor), Advert: AdvertOut(m.Advert)}}}, nil
	}
	return nil, fmt.Errorf("%w: %T has no wire form", ErrMessage, m)
}

// OpenOfferOut is the wire form of an open offer, for gossip.
func OpenOfferOut(m market.OpenOffer) *peerv1.OpenOffer {
	return &peerv1.OpenOffer{Owner: ownerOut(m.Owner), Shape: m.Shape, Demand: demandOut(m.Demand),
		Count: int64(m.Count), TtlMs: ms(m.TTL), Direct: m.Direct}
}

// OpenOfferIn reads an open offer that from said.
func OpenOfferIn(from scheduler.NodeID, m *peerv1.OpenOffer) (market.OpenOffer, error) {
	o := market.OpenOffer{Owner: ownerIn(m.GetOwner()), Shape: clip(m.GetShape(), maxShape), Demand: demandIn(m.GetDemand()),
		Count: int(min(max(m.GetCount(), 1), 1<<20)), TTL: dur(m.GetTtlMs()), Direct: m.GetDirect()}
	if o.Owner.Peer != from {
		return o, fmt.Errorf("%w: open offer of another node", ErrMessage)
	}
	if err := o.Demand.Validate(); err != nil {
		return o, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return o, nil
}

// Decoded is a message for this node: exactly one of the two is set.
type Decoded struct {
	ToOwner  market.OwnerEvent
	ToWorker market.WorkerEvent
	Order    []byte // of an Award
}

// Decode reads a message that from sent.
func Decode(from scheduler.NodeID, m *peerv1.MarketMessage) (Decoded, error) {
	switch w := m.GetWhat().(type) {
	case *peerv1.MarketMessage_Ask:
		p := w.Ask
		a := market.Ask{Owner: ownerIn(p.GetOwner()), Offer: market.OfferID(p.GetOffer()), Round: int(p.GetRound()),
			Shape: clip(p.GetShape(), maxShape), Demand: demandIn(p.GetDemand())}
		return toWorker(a, from, a.Owner, a.Demand.Validate(), named(p.GetOffer()))
	case *peerv1.MarketMessage_Award:
		p := w.Award
		a := market.Award{Owner: ownerIn(p.GetOwner()), Offer: market.OfferID(p.GetOffer()), Lease: market.LeaseID(p.GetLease()),
			Fence: fenceIn(p.GetFence()), Hold: p.GetHold(), Demand: demandIn(p.GetDemand()), LeaseFor: dur(p.GetLeaseForMs()), Headless: p.GetHeadless(),
			Shape: clip(p.GetShape(), maxShape), More: int(min(max(p.GetMore(), 0), 1<<20))}
		d, err := toWorker(a, from, a.Owner, a.Demand.Validate(), named(p.GetOffer(), p.GetLease(), p.GetHold()))
		if err == nil {
			d.Order = p.GetOrder()
		}
		return d, err
	case *peerv1.MarketMessage_Release:
		p := w.Release
		a := market.Release{Owner: ownerIn(p.GetOwner()), Offer: market.OfferID(p.GetOffer()), Lease: market.LeaseID(p.GetLease()), Hold: p.GetHold(),
			Fence: fenceIn(p.GetFence()), Reason: clip(p.GetReason(), maxText)}
		return toWorker(a, from, a.Owner, named(p.GetOffer(), p.GetLease(), p.GetHold()))
	case *peerv1.MarketMessage_RenewAck:
		refs, err := refsIn(w.RenewAck.GetUnknown())
		a := market.RenewAck{Owner: ownerIn(w.RenewAck.GetOwner()), Unknown: refs}
		return toWorker(a, from, a.Owner, err)
	case *peerv1.MarketMessage_EndedAck:
		a := market.EndedAck{Owner: ownerIn(w.EndedAck.GetOwner()), Lease: market.LeaseID(w.EndedAck.GetLease())}
		return toWorker(a, from, a.Owner, named(w.EndedAck.GetLease()))
	case *peerv1.MarketMessage_OpenOffer:
		o, err := OpenOfferIn(from, w.OpenOffer)
		return toWorker(o, from, o.Owner, err)

	case *peerv1.MarketMessage_AskReply:
		p := w.AskReply
		ad, err := advertOf(from, p.GetAdvert())
		return toOwner(market.AskReply{Offer: market.OfferID(p.GetOffer()), Round: int(p.GetRound()), Node: from, Hold: p.GetHold(),
			HoldFor: dur(p.GetHoldForMs()), Refusals: refusalsIn(p.GetRefusals()), Advert: ad}, err, named(p.GetOffer(), p.GetHold()))
	case *peerv1.MarketMessage_AwardReply:
		p := w.AwardReply
		ad, err := advertOf(from, p.GetAdvert())
		if err == nil && len(p.GetGrant().GetDevices()) > scheduler.MaxDevices {
			err = fmt.Errorf("%w: %d devices", ErrMessage, len(p.GetGrant().GetDevices()))
		}
		return toOwner(market.AwardReply{Offer: market.OfferID(p.GetOffer()), Lease: market.LeaseID(p.GetLease()), Node: from,
			OK: p.GetOk(), Grant: grantIn(p.GetGrant()), Refusals: refusalsIn(p.GetRefusals()), Advert: ad},
			err, named(p.GetOffer(), p.GetLease()), named(p.GetGrant().GetDevices()...))
	case *peerv1.MarketMessage_ReleaseReply:
		ad, err := advertOf(from, w.ReleaseReply.GetAdvert())
		return toOwner(market.ReleaseReply{Node: from, Advert: ad}, err)
	case *peerv1.MarketMessage_Renew:
		refs, err := refsIn(w.Renew.GetLeases())
		return toOwner(market.Renew{Owner: ownerIn(w.Renew.GetOwner()), Node: from, Leases: refs}, err)
	case *peerv1.MarketMessage_Ended:
		p := w.Ended
		ref := refIn(p.GetLease())
		ad, err := advertOf(from, p.GetAdvert())
		return toOwner(market.Ended{Owner: ownerIn(p.GetOwner()), Node: from, Offer: ref.Offer, Lease: ref.Lease, Fence: ref.Fence,
			Reason: market.EndReason(clip(p.GetReason(), maxCode)), Detail: clip(p.GetDetail(), maxDetail), Advert: ad},
			err, named(string(ref.Offer), string(ref.Lease)))
	case *peerv1.MarketMessage_Pull:
		p := w.Pull
		ad, err := advertOf(from, p.GetAdvert())
		return toOwner(market.Pull{Owner: ownerIn(p.GetOwner()), Shape: clip(p.GetShape(), maxShape), Node: from, Hold: p.GetHold(),
			HoldFor: dur(p.GetHoldForMs()), Advert: ad}, err, named(p.GetHold()))
	}
	return Decoded{}, fmt.Errorf("%w: unknown kind", ErrMessage)
}

func toOwner(ev market.OwnerEvent, errs ...error) (Decoded, error) {
	if err := errors.Join(errs...); err != nil {
		return Decoded{}, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return Decoded{ToOwner: ev}, nil
}

func toWorker(ev market.WorkerEvent, from scheduler.NodeID, owner market.OwnerID, errs ...error) (Decoded, error) {
	if err := errors.Join(errs...); err != nil {
		return Decoded{}, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	if owner.Peer != from {
		return Decoded{}, fmt.Errorf("%w: owner is not the sender", ErrMessage)
	}
	return Decoded{ToWorker: ev}, nil
}

func advertOf(from scheduler.NodeID, p *peerv1.Advert) (scheduler.Advert, error) {
	a := AdvertIn(p)
	if a.Node != from {
		return a, fmt.Errorf("%w: advert of another node", ErrMessage)
	}
	if err := a.Validate(); err != nil {
		return a, fmt.Errorf("%w: %w", ErrMessage, err)
	}
	return a, nil
}

// Package market is the protocol by which work finds a node, as two pure state
// machines: Owner, on the node that answers for the work, and Worker, on the
// node that has the resources. What changes hands is a container (a lease on
// resources for one replica of a stub), not a single call.
//
//	owner                                   worker
//	  | Ask(demand)  -> to the d best nodes    |
//	  |  <- AskReply(hold | refusals, advert)  |   holds 2 s for a bid
//	  | Award(lease, fence) -> to the best bid |
//	  |  <- AwardReply(ok, devices | refusals, advert)
//	  |  <- Renew (every 5 s)   RenewAck ->    |
//	  |  <- Ended   or   Release ->            |
//
// What cannot be placed is published as an OpenOffer per shape, and a worker
// that has room sends Pull, which counts as a bid.
//
// A machine is driven by Step(now, event), which returns actions for the shell
// to carry out. Messages between the two are plain structs; the message an
// action carries is the event to feed into the other machine. The shell must
// see to it that Owner.Peer, Node and so on are the peer that the transport
// proved. Every message may be lost, repeated or late: both machines cope.
// NextWake says when the next Tick is due; there is nothing to poll.
//
//	acts := o.Step(now, market.Submit{Offer: market.Offer{ID: "f-1", Demand: d}})
//	for _, a := range acts { ... case market.SendAsk: go ask(a.To, a.Ask) ... }
//
// The slice that Step returns is valid until the next Step of that machine.
//
// Guarantees: a Worker never grants a device, core or MiB twice, whatever
// arrives (it is the only authority on its resources); a fence (owner epoch,
// attempt) makes at most one lease of an offer count; capacity returns when a
// lease ends, a hold expires or the owner is gone too long. An Owner sees every
// answer's advert, a refusal's too: without that, owners with stale views all
// run to the same nodes.
package market

package replay

import (
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/simulations/engine"
)

// gossipEvery bounds how often a changing advert is gossiped, as in the node.
const gossipEvery = 100 * time.Millisecond

// send has e happen when a message has been worked off: by the machine of its
// receiver, since that is where most of the work is.
func (w *world) send(now time.Duration, from, to *node, model Delay, l luck, e event) {
	if from == to {
		model = w.models.Local
	}
	w.after(now, to.host, model.at(l), e)
}

func (w *world) toWorker(now time.Duration, from *node, to scheduler.NodeID, m market.WorkerEvent) {
	if n := w.byID[to]; n != nil && n.worker != nil {
		model, l := w.message(m)
		w.send(now, from, n, model, l, event{kind: evWorker, node: n, msg: m})
	}
}

func (w *world) toOwner(now time.Duration, from *node, to scheduler.NodeID, m market.OwnerEvent) {
	if n := w.byID[to]; n != nil {
		model, l := w.message(m)
		w.send(now, from, n, model, l, event{kind: evOwner, node: n, msg: m})
	}
}

// message is the model of one, and its luck, which messages of one offer share at
// times: see Models.Alike.
func (w *world) message(m any) (Delay, luck) {
	var offer market.OfferID
	model := w.models.Link
	switch m := m.(type) {
	case market.Ask:
		offer = m.Offer
	case market.AskReply:
		offer = m.Offer
	case market.Award:
		offer, model = m.Offer, w.models.Award
	case market.AwardReply:
		offer, model = m.Offer, w.models.Award
	default:
		return model, newLuck(&w.rand)
	}
	if !w.rand.Chance(w.models.Alike) {
		return model, newLuck(&w.rand)
	}
	r := engine.Stream(w.seed, string(offer), 0)
	return model, newLuck(&r)
}

func (w *world) gossip(now time.Duration, n *node) {
	n.gossipDue, n.gossiped = false, now
	seen := market.AdvertSeen{Advert: n.worker.Advert(), Source: scheduler.SourceGossip}
	for _, to := range w.nodes {
		if to != n {
			w.toOwner(now, n, to.id, seen)
		}
	}
}

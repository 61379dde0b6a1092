package market

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/beammesh/beammesh/scheduler"
)

// ask answers with a bid (and a hold) or with every reason against it.
func (w *Worker) ask(now time.Duration, a *Ask) {
	w.sawOwner(now, a.Owner)
	reply := AskReply{Offer: a.Offer, Round: a.Round, Node: w.cfg.Node}
	if i := slices.IndexFunc(w.holds, func(h *hold) bool { return h.owner.Peer == a.Owner.Peer && h.offer == a.Offer }); i >= 0 {
		if h := w.holds[i]; h.round == a.Round && h.owner == a.Owner {
			reply.Hold, reply.HoldFor, reply.Advert = h.id, h.until-now, w.advertTo(a.Owner)
			w.replyAsk(a.Owner, &reply)
			return
		}
		w.dropHold(i)
	}
	switch err := a.Demand.Validate(); {
	case err != nil || a.Offer == "" || len(a.Offer) > maxOfferID:
		reply.Refusals = []scheduler.Refusal{{Code: scheduler.InvalidInput, Never: true, Text: fmt.Sprint(err)}}
	case len(w.holds) >= w.cfg.MaxHolds:
		reply.Refusals = []scheduler.Refusal{{Code: scheduler.Limit, Text: fmt.Sprintf("holds %d bids already", len(w.holds))}}
	default:
		h := &hold{owner: a.Owner, offer: a.Offer, round: a.Round, demand: a.Demand, until: now + w.cfg.HoldFor}
		if w.reserve(h) {
			reply.Hold, reply.HoldFor = h.id, w.cfg.HoldFor
			w.note(now, a.Offer, "bid for %s", a.Owner.Peer)
			break
		}
		reply.Refusals = scheduler.Feasible(&a.Demand, &w.cur)
		w.note(now, a.Offer, "refused %s: %s", a.Owner.Peer, reasons(reply.Refusals))
	}
	reply.Advert = w.advertTo(a.Owner)
	w.replyAsk(a.Owner, &reply)
}

// reserve puts h in the table when its demand fits.
func (w *Worker) reserve(h *hold) bool {
	g, ok := w.allocate(&h.demand)
	if !ok {
		return false
	}
	w.holdSeq++
	h.grant, h.id = g, "h"+strconv.FormatUint(w.holdSeq, 10)
	w.holds = append(w.holds, h)
	return true
}

// dropHold frees hold i. If others saw it as used they are told.
func (w *Worker) dropHold(i int) {
	w.holds = slices.Delete(w.holds, i, i+1)
	w.recount()
	if w.shown {
		w.gossip = true
	}
}

func (w *Worker) expireHolds(now time.Duration) {
	for i := 0; i < len(w.holds); {
		h := w.holds[i]
		if now < h.until {
			i++
			continue
		}
		if h.shape != "" {
			w.forget(h.id) // not answered: wait for the next publication
		}
		w.note(now, h.offer, "hold for %s lapsed", h.owner.Peer)
		w.dropHold(i)
		w.gossip = true // its owner believes in it until it is told
	}
}

// openOffer is work that waits somewhere, by which this node may pull it.
type openOffer struct {
	msg     OpenOffer
	ready   time.Duration // not pulled before
	expires time.Duration
	hold    string // of the pull that is out; "" = none
}

func (w *Worker) openOffer(now time.Duration, m *OpenOffer) {
	if m.Owner.Peer == "" || m.Count < 1 || m.TTL <= 0 || m.Demand.Validate() != nil || len(m.Shape) > maxShape {
		return
	}
	if m.Direct {
		w.sawOwner(now, m.Owner)
	}
	w.remember(*m, now)
}

// remember adds or refreshes an open offer; the one that expires first makes
// room when the table is full.
func (w *Worker) remember(m OpenOffer, now time.Duration) {
	ready := now
	if !m.Direct && m.Owner.Peer != w.cfg.Node {
		ready += w.jitter(m.Shape)
	}
	expires := now + min(m.TTL, maxOfferTTL)
	for _, o := range w.offers {
		if o.msg.Owner.Peer == m.Owner.Peer && o.msg.Shape == m.Shape {
			o.msg, o.expires, o.ready = m, max(o.expires, expires), min(o.ready, ready)
			return
		}
	}
	if len(w.offers) >= w.cfg.MaxOpenOffers {
		first := 0
		for i, o := range w.offers {
			if o.expires < w.offers[first].expires {
				first = i
			}
		}
		if w.offers[first].expires >= expires {
			return
		}
		w.offers = slices.Delete(w.offers, first, first+1)
	}
	i := len(w.offers)
	for i > 0 && w.offers[i-1].msg.Demand.Priority > m.Demand.Priority {
		i--
	}
	w.offers = slices.Insert(w.offers, i, &openOffer{msg: m, ready: ready, expires: expires})
}

// maxOfferTTL bounds how long a peer can keep an entry in our table.
const maxOfferTTL = time.Minute

// jitter spreads the pulls of nodes that hear the same open offer: evenly by the
// hash of node and shape, so that it is the same in every run.
func (w *Worker) jitter(shape string) time.Duration {
	h := scheduler.HashOf(scheduler.NodeID(string(w.cfg.Node) + "/" + shape))
	return time.Duration(h % uint64(w.cfg.PullSpread))
}

func (w *Worker) pulls() int {
	n := 0
	for _, h := range w.holds {
		if h.shape != "" {
			n++
		}
	}
	return n
}

// forget drops the open offer whose pull has this hold.
func (w *Worker) forget(holdID string) {
	w.offers = slices.DeleteFunc(w.offers, func(o *openOffer) bool { return o.hold == holdID })
}

// pull asks for waiting work that fits now, the most urgent first.
func (w *Worker) pull(now time.Duration) {
	if w.drain || len(w.offers) == 0 {
		return
	}
	out := w.pulls()
	for _, o := range w.offers {
		if out >= w.cfg.MaxPulls || len(w.holds) >= w.cfg.MaxHolds {
			return
		}
		if o.hold != "" || now < o.ready {
			continue
		}
		h := &hold{owner: o.msg.Owner, shape: o.msg.Shape, demand: o.msg.Demand, until: now + w.cfg.HoldFor}
		if !w.reserve(h) {
			continue
		}
		o.hold = h.id
		out++
		w.sendPull(&Pull{
			Owner: h.owner, Shape: h.shape, Node: w.cfg.Node, Hold: h.id, HoldFor: w.cfg.HoldFor, Advert: w.advertTo(h.owner),
		})
	}
}

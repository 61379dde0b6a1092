package market

import "github.com/beammesh/beammesh/scheduler"

// OwnerWire takes the messages of an Owner straight into the memory of its
// shell, instead of as actions: for worlds of so many machines that an
// allocation per message counts. Each method gives the place for one message to
// one receiver, which the machine fills before its Step returns and does not
// look at again. The slices in it may be kept but not written to. Step must not
// be called from inside; what is no message still comes back from Step.
//
// The counterpart are pointers as events: Step(now, *AskReply) is the same as
// Step(now, AskReply), and the machine keeps no reference to it.
type OwnerWire interface {
	Ask(to scheduler.NodeID) *Ask
	Award(to scheduler.NodeID) *Award
	Release(to scheduler.NodeID) *Release
	RenewAck(to scheduler.NodeID) *RenewAck
	EndedAck(to scheduler.NodeID) *EndedAck
	// OpenOffer is for one node, or for the mesh when to is "".
	OpenOffer(to scheduler.NodeID) *OpenOffer
}

// WorkerWire is the same for a Worker.
type WorkerWire interface {
	AskReply(to OwnerID) *AskReply
	AwardReply(to OwnerID) *AwardReply
	ReleaseReply(to OwnerID) *ReleaseReply
	Renew(to OwnerID) *Renew
	Ended(to OwnerID) *Ended
	Pull(to OwnerID) *Pull
	// Start takes the place of the action Start: the award says the rest.
	Start(l LeaseID, a *Award, g *scheduler.Grant)
	// AdvertChanged has no advert: Worker.Advert gives it when it is wanted.
	AdvertChanged()
}

func (o *Owner) sendAsk(to scheduler.NodeID, m *Ask) {
	if o.cfg.Wire != nil {
		*o.cfg.Wire.Ask(to) = *m
		return
	}
	o.emit(SendAsk{to, *m})
}

func (o *Owner) sendAward(to scheduler.NodeID, m *Award) {
	if o.cfg.Wire != nil {
		*o.cfg.Wire.Award(to) = *m
		return
	}
	o.emit(SendAward{to, *m})
}

func (o *Owner) sendRelease(to scheduler.NodeID, m *Release) {
	m.Owner = o.cfg.ID
	if o.cfg.Wire != nil {
		*o.cfg.Wire.Release(to) = *m
		return
	}
	o.emit(SendRelease{to, *m})
}

func (o *Owner) sendRenewAck(to scheduler.NodeID, m *RenewAck) {
	if o.cfg.Wire != nil {
		*o.cfg.Wire.RenewAck(to) = *m
		return
	}
	o.emit(SendRenewAck{to, *m})
}

func (o *Owner) sendEndedAck(to scheduler.NodeID, m *EndedAck) {
	if o.cfg.Wire != nil {
		*o.cfg.Wire.EndedAck(to) = *m
		return
	}
	o.emit(SendEndedAck{to, *m})
}

// sendOpenOffer sends to one node, or publishes when to is "".
func (o *Owner) sendOpenOffer(to scheduler.NodeID, m *OpenOffer) {
	switch {
	case o.cfg.Wire != nil:
		*o.cfg.Wire.OpenOffer(to) = *m
	case to == "":
		o.emit(PublishOpenOffer{*m})
	default:
		o.emit(SendOpenOffer{to, *m})
	}
}

func (w *Worker) replyAsk(to OwnerID, m *AskReply) {
	if w.cfg.Wire != nil {
		*w.cfg.Wire.AskReply(to) = *m
		return
	}
	w.emit(ReplyAsk{to, *m})
}

func (w *Worker) replyAward(to OwnerID, m *AwardReply) {
	if w.cfg.Wire != nil {
		*w.cfg.Wire.AwardReply(to) = *m
		return
	}
	w.emit(ReplyAward{to, *m})
}

func (w *Worker) replyRelease(to OwnerID, m *ReleaseReply) {
	if w.cfg.Wire != nil {
		*w.cfg.Wire.ReleaseReply(to) = *m
		return
	}
	w.emit(ReplyRelease{to, *m})
}

func (w *Worker) sendRenew(to OwnerID, m *Renew) {
	if w.cfg.Wire != nil {
		*w.cfg.Wire.Renew(to) = *m
		return
	}
	w.emit(SendRenew{to, *m})
}

func (w *Worker) sendEnded(m *Ended) {
	if w.cfg.Wire != nil {
		*w.cfg.Wire.Ended(m.Owner) = *m
		return
	}
	w.emit(SendEnded{m.Owner, *m})
}

func (w *Worker) sendPull(m *Pull) {
	if w.cfg.Wire != nil {
		*w.cfg.Wire.Pull(m.Owner) = *m
		return
	}
	w.emit(SendPull{m.Owner, *m})
}

func (w *Worker) start(a *Award, g *scheduler.Grant) {
	if w.cfg.Wire != nil {
		w.cfg.Wire.Start(a.Lease, a, g)
		return
	}
	w.emit(Start{Owner: a.Owner, Offer: a.Offer, Lease: a.Lease, Fence: a.Fence, Demand: a.Demand, Grant: *g, Headless: a.Headless})
}

func (w *Worker) advertChanged() {
	if w.cfg.Wire != nil {
		w.cfg.Wire.AdvertChanged()
		return
	}
	w.emit(AdvertChanged{w.advert()})
}

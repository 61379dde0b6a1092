package markettest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"github.com/beammesh/beammesh/scheduler/market"
)

type eventKind uint8

const (
	evMessage eventKind = iota
	evWake
	evGossip
	evReady
	evDone
	evDown
	evFound
	evFail
)

type event struct {
	at        time.Duration
	seq       uint64
	kind      eventKind
	to        *Node
	from      scheduler.NodeID
	epoch     uint64 // of to when it was scheduled: a restarted node misses it
	fromEpoch uint64
	msg       any
	lease     market.LeaseID
	reason    market.EndReason
}

// events is a binary heap by time, then by order of scheduling.
type events []event

func (q events) less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}

func (q *events) pop() event {
	h := *q
	top, last := h[0], len(h)-1
	h[0] = h[last]
	h[last] = event{}
	h = h[:last]
	for i := 0; ; {
		small := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(h); c++ {
			if h.less(c, small) {
				small = c
			}
		}
		if small == i {
			break
		}
		h[i], h[small] = h[small], h[i]
		i = small
	}
	*q = h
	return top
}

func (s *Sim) push(at time.Duration, e event) {
	s.seq++
	e.at, e.seq = at, s.seq
	s.queue = append(s.queue, e)
	for i := len(s.queue) - 1; i > 0 && s.queue.less(i, (i-1)/2); i = (i - 1) / 2 {
		s.queue[i], s.queue[(i-1)/2] = s.queue[(i-1)/2], s.queue[i]
	}
}

func (s *Sim) handle(e event) {
	n := e.to
	if !n.Up || e.epoch != n.epoch {
		return
	}
	switch e.kind {
	case evMessage:
		switch m := e.msg.(type) {
		case market.OwnerEvent:
			s.stepOwner(n, m)
		case market.WorkerEvent:
			s.stepWorker(n, m)
		}
	case evWake:
		if e.at != n.wakeAt {
			return // a nearer one was scheduled since
		}
		n.wakeAt = 0
		s.stepOwner(n, market.Tick{})
		s.stepWorker(n, market.Tick{})
	case evGossip:
		if e.at != n.gossipAt {
			return // sent earlier, because something changed
		}
		n.gossipAt, n.lastSent = 0, s.now
		s.heartbeat(n)
		a := n.Worker.Advert()
		for _, m := range s.order {
			if m != n && m.Up {
				s.send(n, m.ID, market.AdvertSeen{Advert: a, Source: scheduler.SourceGossip})
			}
		}
	case evReady:
		s.stepWorker(n, market.LeaseReady{Lease: e.lease})
	case evDone:
		if n.running[e.lease] {
			delete(n.running, e.lease)
			s.trace("%s: container %s ended", n.ID, e.lease)
			s.stepWorker(n, market.LeaseDone{Lease: e.lease, Reason: e.reason})
		}
	case evDown:
		if gone := s.nodes[e.from]; gone.Up || gone.epoch != e.fromEpoch {
			return // it was noticed when the node came back
		}
		s.stepOwner(n, market.NodeDown{Node: e.from, Reason: "connection broke"})
		s.stepWorker(n, market.OwnerDown{Peer: e.from})
	case evFound:
		d := e.msg.(market.Discover)
		for _, m := range s.order {
			if m.Up && !s.cfg.NoDHT && hasClass(m, d.Classes) {
				s.stepOwner(n, market.AdvertSeen{Advert: m.Worker.Advert(), Source: scheduler.SourceDHT})
			}
		}
		s.stepOwner(n, market.DiscoveryDone{Offer: d.Offer})
	case evFail:
		s.stepOwner(n, e.msg.(market.SendFailed))
	}
}

func hasClass(n *Node, classes []string) bool {
	if len(classes) == 0 {
		return true
	}
	for _, d := range n.capacity.Devices {
		for _, c := range classes {
			if gpu.Matches(c, d.Class) {
				return true
			}
		}
	}
	return false
}

// send puts a message on the wire.
func (s *Sim) send(from *Node, to scheduler.NodeID, msg any) {
	name := typeName(msg)
	s.Counts[name]++
	fate, copies := Deliver, 1
	if s.cfg.Filter != nil {
		fate = s.cfg.Filter(from.ID, to, msg)
	}
	text, lost := describe(msg), ""
	switch fate {
	case Drop:
		copies, lost = 0, "  (lost)"
	case Twice:
		copies, lost = 2, "  (twice)"
	}
	n := s.nodes[to]
	if fate == Fail || n == nil || !n.Up {
		copies, lost = 0, "  (unreachable)"
		if f, ok := failure(to, msg); ok {
			s.push(s.now+s.cfg.Latency, event{kind: evFail, to: from, epoch: from.epoch, msg: f})
		}
	}
	if text != "" {
		s.trace("%s > %s  %s%s", from.ID, to, text, lost)
	}
	for range copies {
		at := s.now + s.cfg.Latency
		if s.cfg.Jitter > 0 {
			at += time.Duration(s.rng.Int64N(int64(s.cfg.Jitter)))
		}
		s.push(at, event{kind: evMessage, to: n, from: from.ID, epoch: n.epoch, msg: msg})
	}
}

func failure(to scheduler.NodeID, msg any) (market.SendFailed, bool) {
	f := market.SendFailed{Node: to, Reason: "unreachable"}
	switch m := msg.(type) {
	case market.Ask:
		f.Offer, f.Round = m.Offer, m.Round
	case market.Award:
		f.Offer, f.Lease = m.Offer, m.Lease
	default:
		return f, false
	}
	return f, true
}

func typeName(msg any) string {
	_, name, _ := strings.Cut(fmt.Sprintf("%T", msg), ".")
	return name
}

func (s *Sim) stepOwner(n *Node, ev market.OwnerEvent) {
	if !n.Up {
		return
	}
	// A copy: OnAction may feed the owner its next event.
	for _, a := range slices.Clone(n.Owner.Step(s.now, ev)) {
		s.ownerAction(n, a)
	}
	s.schedule(n)
}

func (s *Sim) ownerAction(n *Node, a market.OwnerAction) {
	switch a := a.(type) {
	case market.SendAsk:
		s.send(n, a.To, a.Ask)
		return
	case market.SendAward:
		s.send(n, a.To, a.Award)
		return
	case market.SendRelease:
		s.send(n, a.To, a.Release)
		return
	case market.SendRenewAck:
		s.send(n, a.To, a.Ack)
		return
	case market.SendEndedAck:
		s.send(n, a.To, a.Ack)
		return
	case market.SendOpenOffer:
		s.send(n, a.To, a.OpenOffer)
		return
	case market.PublishOpenOffer:
		s.trace("%s publishes  %s", n.ID, describe(a.OpenOffer))
		if s.cfg.NoGossip {
			return
		}
		for _, m := range s.order {
			if m.Up {
				s.Counts["OpenOffer"]++
				s.push(s.now+s.cfg.Latency, event{kind: evMessage, to: m, from: n.ID, epoch: m.epoch, msg: a.OpenOffer})
			}
		}
	case market.Discover:
		s.push(s.now+max(s.cfg.DHTDelay, s.cfg.Latency), event{kind: evFound, to: n, epoch: n.epoch, msg: a})
	case market.Placed:
		s.Placements = append(s.Placements, Placement{s.now, n.ID, a})
		s.trace("%s: %s", n.ID, describe(a))
	case market.Lost:
		s.trace("%s: %s", n.ID, describe(a))
		if o, ok := n.offers[a.Offer]; ok && s.cfg.Resubmit {
			o.FirstAttempt = a.NextAttempt
			s.push(s.now, event{kind: evMessage, to: n, epoch: n.epoch, msg: market.Submit{Offer: o}})
		}
	default:
		s.trace("%s: %s", n.ID, describe(a))
	}
	if s.cfg.OnAction != nil {
		s.cfg.OnAction(n, a)
	}
}

func (s *Sim) stepWorker(n *Node, ev market.WorkerEvent) {
	if !n.Up {
		return
	}
	for _, a := range slices.Clone(n.Worker.Step(s.now, ev)) {
		s.workerAction(n, a)
	}
	s.check(n)
	s.schedule(n)
}

func (s *Sim) workerAction(n *Node, a market.WorkerAction) {
	switch a := a.(type) {
	case market.ReplyAsk:
		s.send(n, a.To.Peer, a.Reply)
	case market.ReplyAward:
		s.send(n, a.To.Peer, a.Reply)
	case market.ReplyRelease:
		s.send(n, a.To.Peer, a.Reply)
	case market.SendRenew:
		s.send(n, a.To.Peer, a.Renew)
	case market.SendEnded:
		s.send(n, a.To.Peer, a.Ended)
	case market.SendPull:
		s.send(n, a.To.Peer, a.Pull)
	case market.Start:
		n.running[a.Lease] = true
		s.trace("%s: starts %s%s", n.ID, a.Lease, onDevices(a.Grant))
		ev := event{kind: evReady, to: n, epoch: n.epoch, lease: a.Lease}
		s.push(s.now+s.cfg.StartTime, ev)
		if s.cfg.RunFor != nil {
			if d := s.cfg.RunFor(a.Offer); d >= 0 {
				s.push(s.now+s.cfg.StartTime+d, event{kind: evDone, to: n, epoch: n.epoch, lease: a.Lease, reason: market.EndExited})
			}
		}
	case market.Stop:
		s.trace("%s: stops %s (%s)", n.ID, a.Lease, a.Reason)
		s.push(s.now+s.cfg.StopTime, event{kind: evDone, to: n, epoch: n.epoch, lease: a.Lease, reason: a.Reason})
	case market.AdvertChanged:
		// A node knows its own worker at once.
		s.push(s.now, event{kind: evMessage, to: n, epoch: n.epoch, msg: market.AdvertSeen{Advert: a.Advert, Source: scheduler.SourceSelf}})
		at := max(s.now, n.lastSent+s.cfg.GossipEvery) + 1
		if !s.cfg.NoGossip && (n.gossipAt == 0 || at < n.gossipAt) {
			n.gossipAt = at
			s.push(at, event{kind: evGossip, to: n, epoch: n.epoch})
		}
	}
}

// schedule sees to it that the node's machines are woken when they want.
func (s *Sim) schedule(n *Node) {
	at, ok := n.Owner.NextWake()
	if w, some := n.Worker.NextWake(); some && (!ok || w < at) {
		at, ok = w, true
	}
	if !ok {
		return
	}
	at = max(at, s.now)
	if n.wakeAt == 0 || at < n.wakeAt || n.wakeAt < s.now {
		n.wakeAt = at
		s.push(at, event{kind: evWake, to: n, epoch: n.epoch})
	}
}

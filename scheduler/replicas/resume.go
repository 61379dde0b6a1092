package replicas

import (
	"slices"
	"time"
)

// Resume takes a call up that an earlier life of the owner had sent to a
// container which still runs: the call is where it was, under the attempt it
// had, and the container is one of the pool's without having been asked for.
// Begun, Result or ReplicaLost follow as for any call.
type Resume struct {
	Call    Call
	Attempt int
	Replica ReplicaID
	Node    string
}

func (Resume) event() {}

func (p *Pool) resume(now time.Duration, e Resume) {
	if p.closed || p.calls[e.Call.ID] != nil {
		p.submit(now, e.Call) // refuses it, or ignores it
		return
	}
	r := p.byID[e.Replica]
	if r == nil {
		r = &replica{id: e.Replica, node: e.Node, idleSince: now}
		p.byID[r.id] = r
		p.order = append(p.order, r)
		p.live++
	} else if i := slices.Index(p.idle, r); i >= 0 {
		p.idle = slices.Delete(p.idle, i, i+1)
	}
	p.seq++
	c := &call{Call: e.Call, seq: p.seq, attempt: e.Attempt}
	c.deadline.c = c
	p.calls[c.ID] = c
	s := &slot{r: r, call: c, id: c.ID, attempt: e.Attempt, sentAt: now, resumed: true}
	s.timer.s = s
	c.slot = s
	r.slots = append(r.slots, s)
	if !r.draining {
		p.sent++
	}
}

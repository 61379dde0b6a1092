package replay

import (
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/replicas"
)

// kind of a span, by the model that it is a measurement of.
type kind uint8

const (
	kindNone  kind = iota // counts as load alone
	kindAsk               // there and back
	kindAward             // there and back
	kindLocal             // there and back
	kindWarm
	kindCold
	kindDispatch
	kindStop
)

// span is something that a machine worked on: a question is worked on by host, and
// its answer by back.
type span struct {
	kind       kind
	host, back string // back is "" where nothing is answered
	from, to   time.Duration
	offer      string // of an ask or award
	start      bool   // of a container, also when it never was ready
}

// owner reads the messages of a node's owner and the begins of calls on idle
// containers.
func (f *fitter) owner(j *Journal) {
	type key struct{ id, node string }
	sent := map[key]time.Duration{}
	released := map[string][]time.Duration{} // by node, in order
	dispatched := map[replicas.CallID]time.Duration{}
	nodeOf := map[string]string{} // of a container
	busy := map[string]int{}      // calls on a container
	answer := func(k kind, id, node, offer string, now time.Duration) {
		at, ok := sent[key{id, node}]
		host, known := f.hostOf[node]
		if !ok || !known {
			return
		}
		delete(sent, key{id, node})
		if node == string(j.Node) {
			k = kindLocal
		}
		f.spans = append(f.spans, span{kind: k, host: host, back: f.hostOf[string(j.Node)], from: at, to: now, offer: offer})
	}
	for i := range j.Records {
		r := &j.Records[i]
		now := j.at(r)
		if now < j.Since {
			continue
		}
		for _, d := range r.Decisions {
			switch w := words(d); w[0] {
			case "ask":
				sent[key{"ask " + w[2], w[1]}] = now
			case "award":
				sent[key{w[2], w[1]}] = now
			case "release":
				if w[2] != "" { // by the owner; a pool's names a container only
					released[w[1]] = append(released[w[1]], now)
				}
			case "dispatch":
				if busy[w[2]] == 0 {
					dispatched[replicas.CallID(w[1])] = now
				}
				busy[w[2]]++
			}
		}
		switch e := r.Event.(type) {
		case market.AskReply:
			answer(kindAsk, "ask "+string(e.Offer), string(e.Node), string(e.Offer), now)
		case market.AwardReply:
			answer(kindAward, string(e.Lease), string(e.Node), string(e.Offer), now)
		case market.ReleaseReply:
			node := string(e.Node)
			if q := released[node]; len(q) > 0 {
				released[node] = q[1:]
				if host, ok := f.hostOf[node]; ok {
					f.spans = append(f.spans, span{host: host, back: f.hostOf[string(j.Node)], from: q[0], to: now})
				}
			}
		case replicas.ReplicaReady:
			nodeOf[string(e.Replica)] = string(e.Node)
		case replicas.Begun:
			if at, ok := dispatched[e.Call]; ok {
				delete(dispatched, e.Call)
				if host, ok := f.hostOf[nodeOf[string(e.Replica)]]; ok {
					f.spans = append(f.spans, span{kind: kindDispatch, host: host, from: at, to: now})
				}
			}
		case replicas.Result:
			if busy[string(e.Replica)] > 0 {
				busy[string(e.Replica)]--
			}
		}
	}
}

// words splits a decision, with empty words behind it.
func words(d string) [4]string {
	var w [4]string
	n, from := 0, 0
	for i := 0; i <= len(d) && n < len(w); i++ {
		if i == len(d) || d[i] == ' ' {
			w[n] = d[from:i]
			n, from = n+1, i+1
		}
	}
	return w
}

// worker reads the starts and stops of a node's containers. A start that was let
// go before its container was ready took its share of the machine all the same.
func (f *fitter) worker(j *Journal) {
	host := f.hostOf[string(j.Node)]
	hot := map[string]bool{} // only looked up
	begun := map[market.LeaseID]span{}
	released := map[market.LeaseID]time.Duration{}
	seen := map[market.LeaseID]bool{}
	for k := range j.Records {
		r := &j.Records[k]
		now := j.at(r)
		if e, ok := r.Event.(market.SetHotRoots); ok {
			clear(hot)
			for _, root := range e.Roots {
				hot[root] = true
			}
		}
		if now < j.Since {
			continue
		}
		switch e := r.Event.(type) {
		case market.Award:
			if seen[e.Lease] {
				continue // it was repeated
			}
			seen[e.Lease] = true
			s := span{start: true, kind: kindWarm, host: host, from: now}
			for _, root := range e.Demand.Roots {
				if !hot[root.Name] {
					s.kind = kindCold
				}
			}
			begun[e.Lease] = s
		case market.Release:
			if _, again := released[e.Lease]; e.Lease != "" && !again {
				released[e.Lease] = now
			}
		case market.LeaseReady:
			if s, ok := begun[e.Lease]; ok {
				s.to = now
				f.spans = append(f.spans, s)
				delete(begun, e.Lease)
			}
		case market.LeaseDone:
			if at, ok := released[e.Lease]; ok {
				f.spans = append(f.spans, span{kind: kindStop, host: host, from: at, to: now})
			}
			if s, ok := begun[e.Lease]; ok {
				s.kind, s.to = kindNone, now
				f.spans = append(f.spans, s)
				delete(begun, e.Lease)
			}
		}
	}
}

// gossip adds the adverts that nodes heard as load. When they were sent is not
// known: they are taken to be on their way as long as the median ask.
func (f *fitter) gossip(js []Journal) {
	var asks []time.Duration
	for _, s := range f.spans {
		if s.kind == kindAsk {
			asks = append(asks, (s.to-s.from)/2)
		}
	}
	took := delayOf(asks).Median()
	for i := range js {
		j := &js[i]
		for k := range j.Records {
			r := &j.Records[k]
			if e, ok := r.Event.(market.AdvertSeen); ok && e.Source == scheduler.SourceGossip && j.at(r) >= j.Since {
				f.spans = append(f.spans, span{host: f.hostOf[string(j.Node)], from: max(0, j.at(r)-took), to: j.at(r)})
			}
		}
	}
}

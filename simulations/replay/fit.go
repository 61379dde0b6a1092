package replay

import (
	"cmp"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/replicas"
)

// Models are the costs that a journal shows. Each is the time that a machine
// needs when it does nothing else; what runs at once shares its processors, see
// host.
type Models struct {
	// Link is one way of a message between two nodes, with the work at both ends.
	Link Delay `json:"link_ns"`
	// Award is the same of awards and their answers, which go to the disk first.
	Award Delay `json:"award_ns"`
	// Local is a message within a node.
	Local Delay `json:"local_ns"`
	// StartWarm is one container start where the image is; StartCold where it has
	// to be pulled first.
	StartWarm Delay `json:"start_warm_ns"`
	StartCold Delay `json:"start_cold_ns"`
	// Dispatch is from handing a call to a container to its begin.
	Dispatch Delay `json:"dispatch_ns"`
	// Stop is from letting a container go to its resources being free.
	Stop Delay `json:"stop_ns"`
	// Alike is how often of a million a message between two nodes has the luck of
	// its offer instead of its own. What slows one message, such as a process that
	// keeps the processors, slows those that are sent with it.
	Alike int `json:"alike_ppm"`
	// Crowd is how machines slow down.
	Crowd   Crowd   `json:"crowd"`
	Samples Samples `json:"samples"`
}

// Samples says on how many measurements each model stands.
type Samples struct {
	Link      int `json:"link"`
	Award     int `json:"award"`
	Local     int `json:"local"`
	StartWarm int `json:"start_warm"`
	StartCold int `json:"start_cold"`
	Dispatch  int `json:"dispatch"`
	Stop      int `json:"stop"`
}

// Defaults stand in for what a recording does not show; from measurements of a
// mesh on one machine.
var Defaults = Models{
	Link: Always(300 * time.Microsecond), Award: Always(500 * time.Microsecond), Local: Always(50 * time.Microsecond),
	StartWarm: Always(90 * time.Millisecond), StartCold: Always(1500 * time.Millisecond),
	Dispatch: Always(500 * time.Microsecond), Stop: Always(50 * time.Millisecond), Crowd: Crowd{Processors: 2, StartLoad: 1, Power: 2},
}

// Fit measures the models in the journals of a run whose machines slow down as c
// says. Where a kind of sample is missing the model keeps that of Defaults. hostOf
// names the machine of a node.
func Fit(js []Journal, c Crowd, hostOf func(node string) string) Models {
	return newFitter(js, hostOf).models(c)
}

type fitter struct {
	hosts  map[string]*timeline
	hostOf map[string]string // of a node, by id
	spans  []span
}

func newFitter(js []Journal, hostOf func(node string) string) *fitter {
	f := &fitter{hosts: map[string]*timeline{}, hostOf: map[string]string{}}
	for i := range js {
		host := hostOf(js[i].Name)
		f.hostOf[string(js[i].Node)] = host
		if f.hosts[host] == nil {
			f.hosts[host] = &timeline{}
		}
	}
	for i := range js {
		f.owner(&js[i])
		f.worker(&js[i])
	}
	f.gossip(js)
	f.load()
	return f
}

func (f *fitter) models(c Crowd) Models {
	for _, t := range f.hosts {
		t.share(c)
	}
	m := Defaults
	m.Crowd = c
	set := func(d *Delay, k kind, n *int) {
		var work []time.Duration
		for _, s := range f.spans {
			if s.kind == k {
				work = append(work, f.work(s))
			}
		}
		if *n = len(work); *n > 0 {
			*d = delayOf(work)
		}
	}
	m.Alike = f.alike()
	set(&m.Link, kindAsk, &m.Samples.Link)
	set(&m.Award, kindAward, &m.Samples.Award)
	set(&m.Local, kindLocal, &m.Samples.Local)
	set(&m.StartWarm, kindWarm, &m.Samples.StartWarm)
	set(&m.StartCold, kindCold, &m.Samples.StartCold)
	set(&m.Dispatch, kindDispatch, &m.Samples.Dispatch)
	set(&m.Stop, kindStop, &m.Samples.Stop)
	if m.Samples.StartCold == 0 && m.StartCold.Median() < m.StartWarm.Median() {
		m.StartCold = m.StartWarm
	}
	return m
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

// alike is the root of the correlation of ranks among the asks and awards of one
// offer (Fisher's intraclass correlation): two messages that each take the luck of
// their offer with a chance of p have the same with p squared.
func (f *fitter) alike() int {
	type ranked struct {
		span
		work time.Duration
		rank float64 // -0.5 to 0.5
	}
	byOffer := map[string][]int{}
	var all []ranked
	for _, k := range []kind{kindAsk, kindAward} {
		first := len(all)
		for _, s := range f.spans {
			if s.kind == k {
				all = append(all, ranked{span: s, work: f.work(s)})
			}
		}
		these := all[first:]
		slices.SortStableFunc(these, func(a, b ranked) int { return cmp.Compare(a.work, b.work) })
		for i := range these {
			these[i].rank = (float64(i)+0.5)/float64(len(these)) - 0.5
		}
	}
	for i := range all {
		byOffer[all[i].offer] = append(byOffer[all[i].offer], i)
	}
	var products float64
	pairs := 0
	for i := range all { // in this order: a sum of floats depends on it
		for _, k := range byOffer[all[i].offer] {
			if k != i {
				products += all[i].rank * all[k].rank
				pairs++
			}
		}
	}
	const variance = 1.0 / 12 // of even ranks
	correlation := products / float64(max(1, pairs)) / variance
	return int(1e6 * math.Sqrt(min(1, max(0, correlation))))
}

// load puts the spans into the timelines of their machines.
func (f *fitter) load() {
	for _, s := range f.spans {
		switch {
		case s.kind == kindStop:
		case s.start:
			f.hosts[s.host].add(s.from, s.to, 1, 0)
		case s.back != "":
			// When a question became an answer is not known without trust in clocks.
			half := s.from + (s.to-s.from)/2
			f.hosts[s.host].add(s.from, half, 0, 1)
			f.hosts[s.back].add(half, s.to, 0, 1)
		default:
			f.hosts[s.host].add(s.from, s.to, 0, 1)
		}
	}
	for _, t := range f.hosts {
		t.count()
	}
}

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

// work is what a span would take on idle machines, of a question and its answer
// one of both.
func (f *fitter) work(s span) time.Duration {
	between := func(host string, from, to time.Duration) time.Duration {
		startsFrom, messagesFrom := f.hosts[host].at(from)
		startsTo, messagesTo := f.hosts[host].at(to)
		if s.start {
			return startsTo - startsFrom
		}
		return messagesTo - messagesFrom
	}
	switch s.back {
	case "":
		return between(s.host, s.from, s.to)
	case s.host:
		return between(s.host, s.from, s.to) / 2
	}
	// The moment at which both took as much.
	turn := s.from + time.Duration(sort.Search(int(s.to-s.from), func(x int) bool {
		mid := s.from + time.Duration(x)
		return between(s.host, s.from, mid) >= between(s.back, mid, s.to)
	}))
	return between(s.host, s.from, turn)
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

package replay

import (
	"cmp"
	"math"
	"slices"
	"sort"
	"time"
)

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

package replay

import (
	"slices"
	"time"

	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/replicas"
)

// Models are the costs that a journal shows and the machines do not decide.
type Models struct {
	// Link is one way of a message between two nodes, with the work at both ends.
	Link time.Duration `json:"link_ns"`
	// Local is the same within a node.
	Local time.Duration `json:"local_ns"`
	// StartWarm is one container start, alone on its machine, where the image is;
	// StartCold where it has to be pulled first.
	StartWarm time.Duration `json:"start_warm_ns"`
	StartCold time.Duration `json:"start_cold_ns"`
	// Parallel is how many starts a machine runs at full speed; more share it.
	Parallel int `json:"parallel"`
	// Dispatch is from handing a call to a container to its begin.
	Dispatch time.Duration `json:"dispatch_ns"`
	// Stop is from letting a container go to its resources being free.
	Stop    time.Duration `json:"stop_ns"`
	Samples Samples       `json:"samples"`
}

// Samples says on how many measurements each model stands.
type Samples struct {
	Link      int `json:"link"`
	Local     int `json:"local"`
	StartWarm int `json:"start_warm"`
	StartCold int `json:"start_cold"`
	Dispatch  int `json:"dispatch"`
	Stop      int `json:"stop"`
}

// Fit measures the models in the journals of a run. Where a kind of sample is
// missing the model keeps that of Defaults. cores is Models.Parallel.
func Fit(js []Journal, cores int, hostOf func(node string) string) Models {
	f := fitter{cores: cores}
	for i := range js {
		f.owner(&js[i])
	}
	f.starts(js, hostOf)
	m := Defaults
	m.Parallel = cores
	set := func(d *time.Duration, samples []time.Duration, n *int) {
		slices.Sort(samples)
		if *n = len(samples); *n > 0 {
			*d = quantile(samples, 500)
		}
	}
	set(&m.Link, f.remote, &m.Samples.Link)
	set(&m.Local, f.local, &m.Samples.Local)
	set(&m.StartWarm, f.warm, &m.Samples.StartWarm)
	set(&m.StartCold, f.cold, &m.Samples.StartCold)
	set(&m.Dispatch, f.dispatch, &m.Samples.Dispatch)
	set(&m.Stop, f.stop, &m.Samples.Stop)
	m.StartCold = max(m.StartCold, m.StartWarm)
	return m
}

// Defaults stand in for what a recording does not show; from measurements of a
// mesh on one machine.
var Defaults = Models{
	Link: 300 * time.Microsecond, Local: 50 * time.Microsecond,
	StartWarm: 90 * time.Millisecond, StartCold: 1500 * time.Millisecond, Parallel: 2,
	Dispatch: 500 * time.Microsecond, Stop: 50 * time.Millisecond,
}

type fitter struct {
	cores                                     int
	remote, local, warm, cold, dispatch, stop []time.Duration
}

// owner reads round trips of asks and the begins of calls on idle containers.
func (f *fitter) owner(j *Journal) {
	type key struct {
		offer market.OfferID
		node  string
	}
	asked := map[key]time.Duration{}
	sent := map[replicas.CallID]time.Duration{}
	busy := map[string]int{} // calls on a container
	for k := range j.Records {
		r := &j.Records[k]
		for _, d := range r.Decisions {
			switch w := words(d); w[0] {
			case "ask":
				asked[key{market.OfferID(w[2]), w[1]}] = r.At
			case "dispatch":
				if busy[w[2]] == 0 {
					sent[replicas.CallID(w[1])] = r.At
				}
				busy[w[2]]++
			}
		}
		switch e := r.Event.(type) {
		case market.AskReply:
			k := key{e.Offer, string(e.Node)}
			if at, ok := asked[k]; ok {
				delete(asked, k)
				if e.Node == j.Node {
					f.local = append(f.local, (r.At-at)/2)
				} else {
					f.remote = append(f.remote, (r.At-at)/2)
				}
			}
		case replicas.Begun:
			if at, ok := sent[e.Call]; ok {
				delete(sent, e.Call)
				f.dispatch = append(f.dispatch, r.At-at)
			}
		case replicas.Result:
			busy[string(e.Replica)]--
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

// start is one container start. One that was let go before its container was
// ready took its share of the machine all the same.
type start struct {
	host     string
	from, to time.Duration
	cold     bool
	ready    bool
}

// starts finds what one start costs when starts of one machine share its
// processors: each sample is divided by how many ran beside it.
func (f *fitter) starts(js []Journal, hostOf func(string) string) {
	var all []start
	for i := range js {
		j := &js[i]
		hot := map[string]bool{} // only looked up
		begun := map[market.LeaseID]start{}
		released := map[market.LeaseID]time.Duration{}
		seen := map[market.LeaseID]bool{}
		for k := range j.Records {
			r := &j.Records[k]
			switch e := r.Event.(type) {
			case market.SetHotRoots:
				clear(hot)
				for _, root := range e.Roots {
					hot[root] = true
				}
			case market.Award:
				if seen[e.Lease] {
					continue // it was repeated
				}
				seen[e.Lease] = true
				s := start{host: hostOf(j.Name), from: j.at(r)}
				for _, root := range e.Demand.Roots {
					s.cold = s.cold || !hot[root.Name]
				}
				begun[e.Lease] = s
			case market.Release:
				if _, again := released[e.Lease]; e.Lease != "" && !again {
					released[e.Lease] = r.At
				}
			case market.LeaseDone:
				if at, ok := released[e.Lease]; ok {
					f.stop = append(f.stop, r.At-at)
				}
				if s, ok := begun[e.Lease]; ok {
					s.to = j.at(r)
					all = append(all, s)
					delete(begun, e.Lease)
				}
			case market.LeaseReady:
				if s, ok := begun[e.Lease]; ok {
					s.to, s.ready = j.at(r), true
					all = append(all, s)
					delete(begun, e.Lease)
				}
			}
		}
	}
	for _, s := range all {
		if !s.ready {
			continue
		}
		// Work is what a start would take alone: the time it was given a
		// processor, as if all that overlap shared the machine evenly.
		work := shared(s, all, f.cores)
		if s.cold {
			f.cold = append(f.cold, work)
		} else {
			f.warm = append(f.warm, work)
		}
	}
}

// shared integrates min(1, cores/n) over s, n being the starts of the same
// machine that run at each moment.
func shared(s start, all []start, cores int) time.Duration {
	var cuts []time.Duration
	for _, o := range all {
		if o.host == s.host && o.to > s.from && o.from < s.to {
			cuts = append(cuts, max(o.from, s.from), min(o.to, s.to))
		}
	}
	slices.Sort(cuts)
	var work time.Duration
	for i := 1; i < len(cuts); i++ {
		if cuts[i] == cuts[i-1] {
			continue
		}
		mid, n := (cuts[i]+cuts[i-1])/2, 0
		for _, o := range all {
			if o.host == s.host && o.from <= mid && mid < o.to {
				n++
			}
		}
		work += (cuts[i] - cuts[i-1]) * time.Duration(min(cores, n)) / time.Duration(n)
	}
	return work
}

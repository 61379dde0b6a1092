package replay

import (
	"slices"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/record"
	"github.com/beammesh/beammesh/scheduler/replicas"
	"github.com/beammesh/beammesh/simulations"
)

// Measured is what the journals of a mesh, a real or a simulated one, say of it.
type Measured struct {
	Calls    int             // that ended well
	Waits    []time.Duration // submission to begin of the first attempt, sorted
	Places   []time.Duration // container asked for to lease given, sorted
	Starts   []time.Duration // lease given to container ready, sorted
	GPUHours float64         // devices times the time they were taken
	Messages map[string]int  // of the market, by kind
	Awards   int
	Span     time.Duration // first submission to last end
	End      time.Duration // of the newest record
}

// Measure reads journals.
func Measure(js []Journal) Measured {
	m := Measured{Messages: map[string]int{}}
	first, last := time.Duration(-1), time.Duration(0)
	var gpuMicros int64 // thousandths of a device times microseconds
	for i := range js {
		j := &js[i]
		submitted := map[replicas.CallID]time.Duration{}
		asked := map[market.OfferID]time.Duration{}
		type held struct {
			at  time.Duration
			gpu int64
		}
		leases := map[market.LeaseID]held{}
		newest := time.Duration(0)
		end := func(id market.LeaseID, at time.Duration) {
			if h, ok := leases[id]; ok {
				gpuMicros += h.gpu * (at - h.at).Microseconds()
				delete(leases, id)
			}
		}
		for k := range j.Records {
			r := &j.Records[k]
			at := j.at(r)
			newest = max(newest, at)
			if at < j.Since {
				continue
			}
			switch e := r.Event.(type) {
			case replicas.Submit:
				submitted[e.Call.ID] = at
				if first < 0 || at < first {
					first = at
				}
			case replicas.Begun:
				if s, ok := submitted[e.Call]; ok {
					m.Waits = append(m.Waits, at-s)
					delete(submitted, e.Call)
				}
			case replicas.Result:
				if e.Failure == nil {
					m.Calls++
				}
				last = max(last, at)
			case market.Submit:
				asked[e.Offer.ID] = at
			case market.AwardReply:
				if s, ok := asked[e.Offer]; ok && e.OK {
					m.Places = append(m.Places, at-s)
					delete(asked, e.Offer)
				}
			case market.Award:
				leases[e.Lease] = held{at, milli(&e.Demand)}
			case market.LeaseReady:
				if h, ok := leases[e.Lease]; ok {
					m.Starts = append(m.Starts, at-h.at)
				}
			case market.LeaseDone:
				end(e.Lease, at)
			}
			m.count(r)
		}
		m.End = max(m.End, newest)
		for _, h := range leases { // they outlive the recording; whole numbers, so any order will do
			gpuMicros += h.gpu * (newest - h.at).Microseconds()
		}
	}
	m.GPUHours = float64(gpuMicros) / (scheduler.GPUExclusive * 3600e6)
	m.Span = max(0, last-max(first, 0))
	slices.Sort(m.Waits)
	slices.Sort(m.Places)
	slices.Sort(m.Starts)
	return m
}

// count adds the market's messages, each once, where it arrives.
func (m *Measured) count(r *record.Record) {
	kind := ""
	switch r.Event.(type) {
	case market.Ask:
		kind = "ask"
	case market.AskReply:
		kind = "bid"
	case market.Award:
		kind = "award"
		m.Awards++
	case market.AwardReply:
		kind = "award reply"
	case market.Release:
		kind = "release"
	case market.ReleaseReply:
		kind = "release reply"
	case market.Renew, market.RenewAck:
		kind = "renew"
	case market.Ended, market.EndedAck:
		kind = "end"
	case market.Pull:
		kind = "pull"
	case market.OpenOffer:
		kind = "open offer"
	default:
		return
	}
	m.Messages[kind]++
}

func milli(d *scheduler.Demand) int64 {
	if len(d.GPUs) == 0 {
		return 0
	}
	return int64(d.GPUs[0].Count) * d.Milli()
}

// messageKinds in the order of reports.
var messageKinds = []string{"ask", "bid", "award", "award reply", "release", "release reply", "end", "pull", "open offer", "renew"}

// PerAward is the number of messages per lease given, without renewals, whose
// number grows with time and not with work.
func (m *Measured) PerAward() float64 {
	return float64(m.messages()) / float64(max(1, m.Awards))
}

func (m *Measured) messages() int {
	n := 0
	for _, k := range messageKinds {
		if k != "renew" {
			n += m.Messages[k]
		}
	}
	return n
}

// quantile of sorted values; 0 when there are none.
func quantile(sorted []time.Duration, permille int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, len(sorted)*permille/1000)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Result is m as a report shows it.
func (m *Measured) Result() *simulations.Result {
	var r simulations.Result
	r.Add("calls", "", 0, float64(m.Calls))
	r.Add("wait_p50", "ms", -1, ms(quantile(m.Waits, 500)))
	r.Add("wait_p99", "ms", -1, ms(quantile(m.Waits, 990)))
	r.Add("place_p50", "ms", -1, ms(quantile(m.Places, 500)))
	r.Add("place_p99", "ms", -1, ms(quantile(m.Places, 990)))
	r.Add("start_p50", "ms", -1, ms(quantile(m.Starts, 500)))
	r.Add("gpu_hours", "h", -1, m.GPUHours)
	r.Add("awards", "", 0, float64(m.Awards))
	r.Add("messages_per_award", "", -1, m.PerAward())
	r.Add("messages_per_call", "", -1, float64(m.messages())/float64(max(1, m.Calls)))
	r.Add("span", "s", -1, m.Span.Seconds())
	r.Series = append(r.Series, cdf("wait of calls", "wait, ms", m.Waits), cdf("placement latency", "container asked for to lease given, ms", m.Places))
	return &r
}

// cdf draws sorted values with at most 200 points.
func cdf(plot, xlabel string, sorted []time.Duration) simulations.Series {
	s := simulations.Series{Plot: plot, XLabel: xlabel, YLabel: "share of all, %"}
	n := len(sorted)
	for i := 0; i < min(n, 200); i++ {
		k := i * (n - 1) / max(1, min(n, 200)-1)
		s.X = append(s.X, ms(sorted[k]))
		s.Y = append(s.Y, float64(k+1)*100/float64(n))
	}
	return s
}

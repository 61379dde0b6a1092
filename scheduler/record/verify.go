package record

import (
	"fmt"
	"slices"
	"strings"

	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/replicas"
)

// Verifier feeds the records of one node into fresh machines and compares what
// they decide with what is written. Records come in the order of the journal.
type Verifier struct {
	owner *market.Owner
	pools map[string]*replicas.Pool // only looked up
	sum   Summary
}

// Summary is what a Verifier found.
type Summary struct {
	Steps int `json:"steps"` // of owners and pools, compared
	Equal int `json:"equal"` // with the same decisions
	// Skipped steps could not be compared: their machine's Start or something
	// after it is missing.
	Skipped int   `json:"skipped"`
	Lost    int64 `json:"lost"` // records that the writer lost

	Awards          int `json:"awards"`       // in the journal
	EqualAwards     int `json:"equal_awards"` // of these, made again
	Dispatches      int `json:"dispatches"`
	EqualDispatches int `json:"equal_dispatches"`

	First string `json:"first,omitempty"` // the first difference, for people
}

// NewVerifier makes one for the journal of one node.
func NewVerifier() *Verifier { return &Verifier{pools: map[string]*replicas.Pool{}} }

// Feed takes the next record.
func (v *Verifier) Feed(r Record) {
	switch e := r.Event.(type) {
	case OwnerStart:
		e.Config.NoHistory = true
		v.owner = market.NewOwner(e.Config)
		clear(v.pools)
	case PoolStart:
		v.pools[r.Machine] = replicas.New(e.Config)
	case PoolEnd:
		delete(v.pools, r.Machine)
	case Gap:
		v.sum.Lost += e.Lost
		v.owner = nil
		clear(v.pools)
	case WorkerStart:
	default:
		v.step(r)
	}
}

func (v *Verifier) step(r Record) {
	var got []string
	switch {
	case r.Machine == Worker:
		return
	case r.Machine == Owner && v.owner != nil:
		got = OwnerDecisions(v.owner.Step(r.At, r.Event.(market.OwnerEvent)))
	case v.pools[r.Machine] != nil:
		got = PoolDecisions(v.pools[r.Machine].Step(r.At, r.Event.(replicas.Event)))
	default:
		v.sum.Skipped++
		return
	}
	v.sum.Steps++
	if slices.Equal(got, r.Decisions) {
		v.sum.Equal++
	} else if v.sum.First == "" {
		v.sum.First = fmt.Sprintf("%s at %v, %T: the journal has %q, the replay gives %q", r.Machine, r.At, r.Event, r.Decisions, got)
	}
	for _, d := range r.Decisions {
		same := slices.Contains(got, d)
		switch {
		case strings.HasPrefix(d, awardPrefix):
			v.sum.Awards++
			if same {
				v.sum.EqualAwards++
			}
		case strings.HasPrefix(d, dispatchPrefix):
			v.sum.Dispatches++
			if same {
				v.sum.EqualDispatches++
			}
		}
	}
}

// Summary is what was found so far.
func (v *Verifier) Summary() Summary { return v.sum }

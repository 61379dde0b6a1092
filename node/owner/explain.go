package owner

import (
	"fmt"

	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
)

// maxWhatIf bounds the nodes that a what-if answer lists.
const maxWhatIf = 8

// whatIfLocked looks where a container of a pool would go now if it asked for
// something else. It answers from this owner's view: nobody is asked.
func (o *Owner) whatIfLocked(key string, changes []string) (*beamv1.WhatIf, error) {
	p := o.pools[key]
	if p == nil {
		return nil, fault.New(fault.NotFound, "this node does not remember what the task asked for", "run the function again, then ask about the new task")
	}
	d := p.plan.Demand
	for _, c := range changes {
		var err error
		if d, err = d.With(c); err != nil {
			return nil, fault.New(fault.Invalid, err.Error(), "such as --if gpu=any --if memory=8GiB")
		}
	}
	view := o.market.View()
	d, note := view.Clamp(d)
	w := &beamv1.WhatIf{Demand: d.String()}
	if note != "" {
		w.Notes = append(w.Notes, note)
	}
	for i, c := range view.Rank(&d, maxWhatIf, nil, nil) {
		verdict := "would be asked"
		if i == 0 {
			verdict = "chosen"
			w.Verdict = "would be placed on " + c.Name + " now"
		}
		w.Candidates = append(w.Candidates, &beamv1.Candidate{NodeId: string(c.Node), NodeName: c.Name, Verdict: verdict,
			Score: c.Score.Total, Terms: []string{c.Score.String()}, Source: string(c.Source)})
	}
	for _, r := range view.Refusals(&d, maxWhatIf) {
		cand := &beamv1.Candidate{NodeId: string(r.Node), NodeName: r.Name, Verdict: "refused", Source: string(r.Source)}
		for _, x := range r.Reasons {
			cand.Reasons = append(cand.Reasons, x.Text)
		}
		w.Candidates = append(w.Candidates, cand)
	}
	if w.Verdict == "" {
		w.Verdict = "would wait for room"
		if view.Outlook(&d).Best == scheduler.FitNever {
			w.Verdict = "could never run: no known node is large enough"
		}
		if hint := view.Hint(&d); hint != "" {
			w.Notes = append(w.Notes, hint)
		}
	}
	return w, nil
}

// explainOfferLocked adds how the container behind an attempt was placed.
func (o *Owner) explainOfferLocked(a *beamv1.Attempt, id market.OfferID) {
	e, ok := o.market.Explain(id)
	if !ok {
		a.Notes = append(a.Notes, "the details of the placement are no longer kept")
		return
	}
	a.Rounds = uint32(e.Rounds)
	switch {
	case e.Pulled:
		a.How = "pulled the open offer"
	case e.State == market.StateWaiting:
		a.How = "waiting"
	default:
		a.How = "asked"
	}
	if e.Note != "" {
		a.Notes = append(a.Notes, e.Note)
	}
	refused := map[string]bool{}
	for _, r := range e.Refusals {
		refused[string(r.Node)] = true
	}
	for _, c := range e.Candidates {
		if refused[string(c.Node)] && c.Node != e.Node {
			continue // listed below with its reasons
		}
		v := "not chosen"
		if c.Node == e.Node {
			v = "chosen"
		}
		if c.Node == e.Node && c.Source == scheduler.SourceLookup {
			a.Notes = append(a.Notes, c.Name+" was found by DHT lookup of "+lookupKey(c.Class))
		}
		a.Candidates = append(a.Candidates, &beamv1.Candidate{NodeId: string(c.Node), NodeName: c.Name, Verdict: v,
			Score: c.Score.Total, Terms: []string{c.Score.String()}, Source: string(c.Source)})
	}
	for _, r := range e.Refusals {
		if r.Node == e.Node {
			continue
		}
		cand := &beamv1.Candidate{NodeId: string(r.Node), NodeName: r.Name, Verdict: "refused", Source: string(r.Source)}
		for _, x := range r.Reasons {
			cand.Reasons = append(cand.Reasons, x.Text)
		}
		a.Candidates = append(a.Candidates, cand)
	}
	a.Notes = append(a.Notes, o.cfg.Limits...)
	for _, m := range e.History {
		a.Notes = append(a.Notes, fmt.Sprintf("+%s %s", (m.At-e.Submitted).Round(1e6), m.Text))
	}
}

// lookupKey names the key under which a node of a class is in the DHT.
func lookupKey(class string) string {
	if class == "" {
		return "role/worker"
	}
	return "gpu/" + class
}

package market

import "time"

// Owner places the offers of one node.
type Owner struct{ cfg OwnerConfig }

// NewOwner makes an owner with an empty view.
func NewOwner(cfg OwnerConfig) *Owner { return &Owner{cfg: cfg} }

// Step takes one event and returns what the shell has to do, in order.
func (o *Owner) Step(now time.Duration, ev OwnerEvent) []OwnerAction { return nil }

// NextWake is when a Tick is due; ok is false when none is.
func (o *Owner) NextWake() (at time.Duration, ok bool) { return 0, false }

// Explain gives the record of an offer, also for a while after it is over.
func (o *Owner) Explain(id OfferID) (Explanation, bool) { return Explanation{}, false }

// Offers lists what is waiting or placed, in order of submission.
func (o *Owner) Offers() []OfferState { return nil }

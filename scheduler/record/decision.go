package record

import (
	"fmt"
	"strconv"

	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/replicas"
)

// OwnerDecisions puts into words what an owner's actions decide: who is asked,
// who gets the award, what waits, what is given up. Acknowledgements are left out.
func OwnerDecisions(actions []market.OwnerAction) []string {
	var out []string
	for _, a := range actions {
		switch a := a.(type) {
		case market.SendAsk:
			out = append(out, "ask "+string(a.To)+" "+string(a.Ask.Offer))
		case market.SendAward:
			out = append(out, awardPrefix+string(a.To)+" "+string(a.Award.Lease)+" "+a.Award.Fence.String())
		case market.SendRelease:
			out = append(out, "release "+string(a.To)+" "+string(a.Release.Offer)+" "+string(a.Release.Lease))
		case market.Placed:
			out = append(out, "placed "+string(a.Node)+" "+string(a.Lease))
		case market.Waiting:
			out = append(out, fmt.Sprintf("waits %s never=%t", a.Offer, a.Never))
		case market.Infeasible:
			out = append(out, "infeasible "+string(a.Offer))
		case market.Lost:
			out = append(out, "lost "+string(a.Lease)+" "+string(a.Reason))
		}
	}
	return out
}

// awardPrefix begins the decision to give a lease away.
const awardPrefix = "award "

// dispatchPrefix begins the decision which container runs a call.
const dispatchPrefix = "dispatch "

// PoolDecisions does the same for a pool.
func PoolDecisions(actions []replicas.Action) []string {
	var out []string
	for _, a := range actions {
		switch a := a.(type) {
		case replicas.Acquire:
			out = append(out, "acquire "+strconv.Itoa(a.N))
		case replicas.Unacquire:
			out = append(out, "unacquire "+strconv.Itoa(a.N))
		case replicas.ReleaseReplica:
			out = append(out, "release "+string(a.Replica))
		case replicas.Dispatch:
			out = append(out, dispatchPrefix+string(a.Call)+" "+string(a.Replica)+" "+strconv.Itoa(a.Attempt))
		case replicas.Recall:
			out = append(out, "recall "+string(a.Call)+" "+strconv.Itoa(a.Attempt))
		case replicas.Finished:
			out = append(out, "finished "+string(a.Call)+" "+strconv.Itoa(a.Attempt))
		}
	}
	return out
}

package market_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/market/markettest"
	"github.com/beammesh/beammesh/scheduler/replicas"
)

// mapRun joins a pool to an owner as a node does and runs a map of calls over
// three equal nodes, in steps of a millisecond.
type mapRun struct {
	t      *testing.T
	sim    *markettest.Sim
	pool   *replicas.Pool
	offers int
	asked  []market.OfferID // not placed yet
	nodeOf map[replicas.ReplicaID]scheduler.NodeID
	timers map[int64][]func()
	done   map[replicas.CallID]scheduler.NodeID
	speed  func(scheduler.NodeID) time.Duration // of one call
	line   map[replicas.ReplicaID][]replicas.Dispatch
}

func (r *mapRun) after(d time.Duration, do func()) {
	ms := (r.sim.Now() + d).Milliseconds()
	r.timers[ms] = append(r.timers[ms], do)
}

func (r *mapRun) step(ev replicas.Event) {
	for _, a := range slices.Clone(r.pool.Step(r.sim.Now(), ev)) {
		switch a := a.(type) {
		case replicas.Acquire:
			for range a.N {
				r.offers++
				id := market.OfferID(fmt.Sprintf("f%d", r.offers))
				r.asked = append(r.asked, id)
				r.sim.Submit("box1", market.Offer{ID: id, Demand: scheduler.Demand{CPUMillis: 1000, MemoryMiB: 512}, Group: "f"})
			}
		case replicas.Unacquire:
			for range a.N {
				id := r.asked[len(r.asked)-1]
				r.asked = r.asked[:len(r.asked)-1]
				r.sim.StepOwner("box1", market.Withdraw{Offer: id, Reason: "not needed"})
			}
		case replicas.ReleaseReplica:
			r.sim.StepOwner("box1", market.ReleaseLease{Lease: market.LeaseID(a.Replica), Reason: a.Reason})
		case replicas.Dispatch:
			r.after(time.Millisecond, func() { r.enqueue(a) })
		case replicas.Recall:
			given := false
			q := r.line[a.Replica]
			for i := 1; i < len(q); i++ { // the first runs
				if q[i].Call == a.Call {
					r.line[a.Replica], given = slices.Delete(q, i, i+1), true
					break
				}
			}
			r.after(time.Millisecond, func() { r.step(replicas.Recalled{Replica: a.Replica, Call: a.Call, Attempt: a.Attempt, Given: given}) })
		case replicas.Finished:
			if _, twice := r.done[a.Call]; twice || a.Failure != nil {
				r.t.Fatalf("%s finished: twice %v, %+v", a.Call, twice, a.Failure)
			}
			r.done[a.Call] = r.nodeOf[a.Replica]
		}
	}
}

func (r *mapRun) enqueue(d replicas.Dispatch) {
	q, ok := r.line[d.Replica]
	if !ok {
		return // it is known to be lost
	}
	r.line[d.Replica] = append(q, d)
	if len(q) == 0 {
		r.begin(d.Replica)
	}
}

func (r *mapRun) begin(id replicas.ReplicaID) {
	d := r.line[id][0]
	up := func() bool { return r.sim.Node(r.nodeOf[id]).Up }
	r.after(time.Millisecond, func() {
		if up() {
			r.step(replicas.Begun{Replica: id, Call: d.Call, Attempt: d.Attempt})
		}
	})
	r.after(r.speed(r.nodeOf[id]), func() {
		q, ok := r.line[id]
		if !ok || !up() {
			return
		}
		r.after(time.Millisecond, func() { r.step(replicas.Result{Replica: id, Call: d.Call, Attempt: d.Attempt}) })
		if r.line[id] = q[1:]; len(q) > 1 {
			r.begin(id)
		}
	})
}

func (r *mapRun) action(_ *markettest.Node, a market.OwnerAction) {
	switch a := a.(type) {
	case market.Placed:
		r.asked = slices.DeleteFunc(r.asked, func(id market.OfferID) bool { return id == a.Offer })
		id := replicas.ReplicaID(a.Lease)
		r.nodeOf[id] = a.Node
		r.after(time.Second, func() { // the container starts
			if r.sim.Node(a.Node).Up {
				r.line[id] = nil
				r.step(replicas.ReplicaReady{Replica: id, Node: string(a.Node), Took: time.Second})
			}
		})
	case market.Lost:
		id := replicas.ReplicaID(a.Lease)
		if _, ready := r.line[id]; !ready {
			r.step(replicas.AcquireFailed{N: 1, Reason: string(a.Reason)})
			return
		}
		delete(r.line, id)
		r.step(replicas.ReplicaLost{Replica: id, NodeLost: true})
	}
}

func (r *mapRun) run(until func() bool, limit time.Duration) {
	for r.sim.Now() < limit && !until() {
		r.sim.Run(time.Millisecond)
		ms := r.sim.Now().Milliseconds()
		for len(r.timers[ms]) > 0 {
			do := r.timers[ms][0]
			r.timers[ms] = r.timers[ms][1:]
			do()
		}
		delete(r.timers, ms)
		if at, ok := r.pool.NextWake(); ok && at <= r.sim.Now() {
			r.step(replicas.Tick{})
		}
	}
}

// TestMapOverThreeNodes: map(range(1000)) of 50 ms calls over three equal nodes.
// Each runs its share; one throttled to a fifth runs little; and when one dies in
// the middle no call is lost and none is accepted twice.
func TestMapOverThreeNodes(t *testing.T) {
	for _, c := range []string{"equal", "throttled", "killed"} {
		t.Run(c, func(t *testing.T) {
			r := &mapRun{
				t: t, nodeOf: map[replicas.ReplicaID]scheduler.NodeID{}, timers: map[int64][]func(){},
				done: map[replicas.CallID]scheduler.NodeID{}, line: map[replicas.ReplicaID][]replicas.Dispatch{},
				pool: replicas.New(replicas.Config{Max: 50, KeepWarm: 10 * time.Second}),
			}
			r.speed = func(n scheduler.NodeID) time.Duration {
				if c == "throttled" && n == "box2" {
					return 250 * time.Millisecond
				}
				return 50 * time.Millisecond
			}
			r.sim = markettest.New(markettest.Config{
				Latency: time.Millisecond, StartTime: time.Second, DetectDown: 500 * time.Millisecond, OnAction: r.action,
			})
			for i := 1; i <= 3; i++ {
				box := markettest.Box(1, 8)
				box.Total.CPUMillis = 2667 // two cores, overcommitted four times, over three nodes
				box.Free.CPUMillis = 2667
				r.sim.AddNode(scheduler.NodeID(fmt.Sprintf("box%d", i)), box)
			}
			for i := range 1000 {
				r.step(replicas.Submit{Call: replicas.Call{ID: replicas.CallID(fmt.Sprint(i))}})
			}
			if c == "killed" {
				r.run(func() bool { return len(r.done) >= 300 }, time.Minute)
				r.sim.Kill("box3")
			}
			r.run(func() bool { return len(r.done) == 1000 }, 5*time.Minute)
			share := map[scheduler.NodeID]int{}
			for _, n := range r.done {
				share[n]++
			}
			t.Logf("%d done at %v: %v, %d containers asked for", len(r.done), r.sim.Now(), share, r.offers)
			if len(r.done) != 1000 {
				t.Fatalf("%d of 1000 done: %+v", len(r.done), r.pool.Stats())
			}
			for n, k := range share {
				switch {
				case c == "equal" && (k < 250 || k > 420):
					t.Errorf("%s ran %d of 1000", n, k)
				case c == "throttled" && n == "box2" && k > 120:
					t.Errorf("the throttled node ran %d of 1000", k)
				}
			}
			// When all is done the containers go, and with them the resources.
			r.run(func() bool { return false }, r.sim.Now()+30*time.Second)
			for _, n := range r.sim.Nodes() {
				if cap := n.Worker.Capacity(); n.Up && cap.Free != cap.Total {
					t.Errorf("%s: %+v free of %+v", n.ID, cap.Free, cap.Total)
				}
			}
			if len(r.sim.Violations) > 0 {
				t.Errorf("broken promises: %v", r.sim.Violations)
			}
		})
	}
}

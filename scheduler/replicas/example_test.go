package replicas_test

import (
	"fmt"
	"time"

	"github.com/beammesh/beammesh/scheduler/replicas"
)

func Example() {
	p := replicas.New(replicas.Config{Max: 8, KeepWarm: 30 * time.Second})
	step := func(now time.Duration, ev replicas.Event) {
		for _, a := range p.Step(now, ev) {
			fmt.Printf("%T%+v\n", a, a)
		}
	}
	step(0, replicas.Submit{Call: replicas.Call{ID: "t1"}})
	step(2*time.Second, replicas.ReplicaReady{Replica: "f-1-1", Node: "box2"})
	step(2*time.Second, replicas.Begun{Replica: "f-1-1", Call: "t1", Attempt: 1})
	step(3*time.Second, replicas.Result{Replica: "f-1-1", Call: "t1", Attempt: 1})
	at, _ := p.NextWake()
	step(at, replicas.Tick{})
	// Output:
	// replicas.Acquire{N:1}
	// replicas.Dispatch{Replica:f-1-1 Call:t1 Attempt:1}
	// replicas.Finished{Call:t1 Attempt:1 Replica:f-1-1 Failure:<nil>}
	// replicas.ReleaseReplica{Replica:f-1-1 Reason:idle}
}

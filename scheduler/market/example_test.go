package market_test

import (
	"fmt"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/market/markettest"
)

// An owner and a worker, with the shell between them written out: what one
// sends is fed into the other.
func Example() {
	gpus, _ := gpu.Parse("H100", 1)
	demand := scheduler.Demand{CPUMillis: 2000, MemoryMiB: 4096, GPUs: gpus}

	owner := market.NewOwner(market.OwnerConfig{ID: market.OwnerID{Peer: "laptop", Epoch: 1}})
	worker := market.NewWorker(market.WorkerConfig{Node: "box2", Boot: "x7", Capacity: markettest.Box(8, 64, "H100")})

	now := time.Second // monotonic, from any start
	var toOwner []market.OwnerEvent
	toOwner = append(toOwner,
		market.AdvertSeen{Advert: worker.Advert(), Source: scheduler.SourceHello},
		market.Submit{Offer: market.Offer{ID: "f-1", Demand: demand}})
	for len(toOwner) > 0 {
		ev := toOwner[0]
		toOwner = toOwner[1:]
		var toWorker []market.WorkerEvent
		for _, a := range owner.Step(now, ev) {
			switch a := a.(type) {
			case market.SendAsk:
				fmt.Println("ask", a.To)
				toWorker = append(toWorker, a.Ask)
			case market.SendAward:
				fmt.Println("award", a.Award.Lease, "to", a.To)
				toWorker = append(toWorker, a.Award)
			case market.Placed:
				fmt.Println("placed on", a.Node, "with", a.Grant.Devices)
			}
		}
		for _, m := range toWorker {
			for _, a := range worker.Step(now, m) {
				switch a := a.(type) {
				case market.ReplyAsk:
					toOwner = append(toOwner, a.Reply)
				case market.ReplyAward:
					toOwner = append(toOwner, a.Reply)
				case market.Start:
					fmt.Println("start", a.Lease)
				}
			}
		}
	}
	// Output:
	// ask box2
	// award f-1-1 to box2
	// start f-1-1
	// placed on box2 with [h100-0]
}

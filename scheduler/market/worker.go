package market

import (
	"time"

	"github.com/beammesh/beammesh/scheduler"
)

// Worker guards the resources of one node.
type Worker struct{ cfg WorkerConfig }

// NewWorker makes a worker with nothing granted.
func NewWorker(cfg WorkerConfig) *Worker { return &Worker{cfg: cfg} }

// Step takes one event and returns what the shell has to do, in order.
func (w *Worker) Step(now time.Duration, ev WorkerEvent) []WorkerAction { return nil }

// NextWake is when a Tick is due; ok is false when none is.
func (w *Worker) NextWake() (at time.Duration, ok bool) { return 0, false }

// Advert is what this node would say of itself now.
func (w *Worker) Advert() scheduler.Advert { return scheduler.Advert{} }

// Leases lists what is granted, oldest first.
func (w *Worker) Leases() []LeaseState { return nil }

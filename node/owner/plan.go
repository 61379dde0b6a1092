package owner

import (
	"context"

	"github.com/beammesh/beammesh/node/stub"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/scheduler"
)

// Plan is all that is needed to run a stub, put together once per pool.
type Plan struct {
	StubID    string
	StubName  string
	Workspace string
	Config    stub.Config
	Demand    scheduler.Demand
	// Order is the work order without lease-specific fields; it is not modified.
	Order *peerv1.WorkOrder
}

// Planner turns a stub id into a plan. Errors are *fault.Error.
type Planner interface {
	Plan(ctx context.Context, workspace, stubID string) (*Plan, error)
	// Complete fills in what differs per lease: the token for user code, and
	// the peers that hold the roots now. It must not block.
	Complete(p *Plan, order *peerv1.WorkOrder, leaseID, worker string)
}

// Journal keeps tasks over kill -9. Every method returns after fsync.
type Journal interface {
	Submitted(ctx context.Context, r TaskRecord) error
	// Attempted records where a headless task runs, so that a new life of this
	// owner can take it over.
	Attempted(ctx context.Context, task string, a AttemptRecord) error
	Ended(ctx context.Context, task string, e EndRecord) error
	Get(task string) (StoredTask, bool, error)
	// List gives the newest tasks of a workspace ("" = all), without results.
	List(workspace string, limit int) ([]StoredTask, error)
	// Open gives the tasks that have not ended.
	Open() ([]StoredTask, error)
}

// TaskRecord is a submitted task.
type TaskRecord struct {
	ID, Workspace, StubID, StubName, Format, CallbackURL string
	Args                                                 []byte
	Headless                                             bool
	CreatedUnixMicro                                     int64
}

// AttemptRecord is one attempt of a headless task.
type AttemptRecord struct {
	Number       uint32
	Lease, Offer string
	Node         string
	Epoch        uint64
}

// EndRecord is how a task ended. Outcome is a beammesh.v1.Outcome.
type EndRecord struct {
	Status           string
	Outcome          []byte
	StartedUnixMicro int64 // 0 = not known
	EndedUnixMicro   int64
	Node             string
	Lease            string
	Attempt          uint32
}

// StoredTask is what the journal has of a task.
type StoredTask struct {
	TaskRecord
	Attempt *AttemptRecord // the newest
	End     *EndRecord     // nil while it is open
	Damaged error          // its arguments cannot be read any more
}

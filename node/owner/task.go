package owner

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"sync"
	"time"

	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/replicas"
)

// Statuses of a task, as the stock client knows them.
const (
	Pending   = "PENDING"
	Running   = "RUNNING"
	Complete  = "COMPLETE"
	Error     = "ERROR"
	Cancelled = "CANCELLED"
	TimedOut  = "TIMEOUT"
	Retrying  = "RETRY"
)

// Ended tells whether a status is final.
func Ended(status string) bool {
	return status == Complete || status == Error || status == Cancelled || status == TimedOut
}

// Request asks for one call of a stub.
type Request struct {
	Workspace   string
	StubID      string
	Args        []byte
	Format      string // "pickle" or "json"
	Headless    bool
	CallbackURL string
	// Notify gets the task's events; nil for a detached task. The owner never
	// calls it under its lock and never concurrently for one task.
	Notify Notify
}

// Notify takes what happens to a task. ctx ends with the task's interest in
// being told; a slow Notify slows the program that prints, and Done the workers
// whose results are not taken.
type Notify interface {
	Log(ctx context.Context, task string, fd int, data []byte)
	Done(task string, o *beamv1.Outcome)
}

// task is one task of this owner, in memory from submission until it is pruned.
type task struct {
	id        string
	workspace string
	stubID    string
	stubName  string
	args      []byte
	format    string
	headless  bool
	callback  string
	created   time.Time

	// guarded by Owner.mu
	status   string
	attempts []*attempt
	started  time.Time
	ended    time.Time
	outcome  *beamv1.Outcome
	accepted uint32            // results taken; more than one is a broken promise
	told     bool              // the journal has its end: others may know it
	slim     bool              // outcome lacks its result, which is in the journal
	answers  map[uint32]answer // by attempt, until the pool decides
	holds    []func()          // ends that workers keep until we have journalled
	notify   Notify
	ctx      context.Context // over when nobody listens any more
	stop     context.CancelFunc

	logMu sync.Mutex // keeps Notify calls of one task in order
}

// answer is what a container said of an attempt, and what the pool was told.
type answer struct {
	outcome *beamv1.Outcome
	failure *replicas.Failure
}

// answers tells whether the pool's decision is that of this answer.
func (a answer) answers(f *replicas.Failure) bool {
	if a.failure == nil || f == nil {
		return a.outcome != nil && a.failure == f
	}
	return *a.failure == *f
}

// attempt is one dispatch of a task to a container.
type attempt struct {
	number     uint32
	lease      market.LeaseID
	offer      market.OfferID
	node       string
	warm       bool
	dispatched time.Time
	started    time.Time
	ended      time.Time
	end        string
	sent       bool // on its way to the container
	dropped    bool // stopped or recalled before it was sent
}

// attempt finds the newest dispatch with a number: one that was recalled comes
// again under the same.
func (t *task) attempt(n uint32) *attempt {
	for _, a := range slices.Backward(t.attempts) {
		if a.number == n {
			return a
		}
	}
	return nil
}

// ranOn tells whether the task was ever given to a lease.
func (t *task) ranOn(id market.LeaseID) bool {
	return slices.ContainsFunc(t.attempts, func(a *attempt) bool { return a.lease == id })
}

func (t *task) last() *attempt {
	if len(t.attempts) == 0 {
		return nil
	}
	return t.attempts[len(t.attempts)-1]
}

// NewTaskID makes a UUIDv8 whose first six bytes name the owner's peer, so that
// any node can route a question about the task.
func NewTaskID(peer string) string {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // crypto/rand does not fail on Linux
	}
	tag := peerTag(peer)
	copy(b[:6], tag[:])
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	x := hex.EncodeToString(b[:])
	return x[:8] + "-" + x[8:12] + "-" + x[12:16] + "-" + x[16:20] + "-" + x[20:]
}

func peerTag(peer string) (tag [6]byte) {
	sum := sha256.Sum256([]byte(peer))
	copy(tag[:], sum[:])
	return tag
}

// IsOwnedBy tells whether a task id was made by a peer.
func IsOwnedBy(taskID, peer string) bool {
	tag := peerTag(peer)
	x := hex.EncodeToString(tag[:])
	return len(taskID) == 36 && taskID[:8] == x[:8] && taskID[9:13] == x[8:12]
}

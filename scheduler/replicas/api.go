package replicas

import "time"

// CallID names a call (a task), unique in its pool.
type CallID string

// ReplicaID names a container: its lease id.
type ReplicaID string

// Config of a pool. Zeros have the default that is named.
type Config struct {
	Min int // containers kept even when idle; 0
	Max int // containers at most; 1
	// Concurrency is how many calls one container runs at a time; 1.
	Concurrency int
	// Window is how many calls a container may have sent to it beyond the
	// Concurrency that it runs, 1 to 4; see WindowBelow. -1 = none; 0 = 1.
	// Calls below 5 ms have four times as many: the way there takes longer.
	Window int
	// WindowBelow: calls are only sent ahead when they last less than this on
	// average; 250 ms. Longer ones gain nothing from it.
	WindowBelow time.Duration
	// KeepWarm is how long a container stays idle before it is released; 0 =
	// released at once, negative = never.
	KeepWarm time.Duration
	// MaxQueue bounds the calls that wait; 100,000. More are rejected.
	MaxQueue int
	// MaxNodeLosses bounds how often a begun call is placed again because its
	// container or node was lost, apart from the user's retries; 5.
	MaxNodeLosses int
	// StartHint is how long a container takes to start until that was measured; 3 s.
	StartHint time.Duration
	// CallHint is how long a call lasts until that was measured; 0 = unknown.
	CallHint time.Duration
	// Unknown is how many containers are asked for at first when nothing is
	// known of the calls' length; 4.
	Unknown int
	// CancelWait is how long a container has to give up a call that was
	// cancelled or ran out of time before it is released; 15 s.
	CancelWait time.Duration
	// AcquireBackoff is waited after AcquireFailed before asking again, doubled
	// up to 32 times itself; 1 s.
	AcquireBackoff time.Duration
}

// Call is one call of the stub.
type Call struct {
	ID CallID
	// Timeout counts from the begin of an attempt; 0 = none.
	Timeout time.Duration
	// Deadline is when the call expires if it has not begun; 0 = never.
	Deadline time.Duration
	Retries  int      // after failures of the user's code
	RetryFor []string // exception names (ValueError) and kinds of failure (crash); empty = every failure
}

// Event is an input of Pool.
type Event interface{ event() }

// Submit queues a call. The same id twice is ignored while the first lives.
type Submit struct{ Call Call }

// Cancel ends a call, wherever it is.
type Cancel struct {
	Call   CallID
	Reason string
}

// ReplicaReady says that a container that was acquired takes calls.
type ReplicaReady struct {
	Replica ReplicaID
	Node    string
	// Took is how long the container took to start; 0 = count from Acquire.
	Took time.Duration
}

// AcquireFailed says that N of the containers asked for will not come.
type AcquireFailed struct {
	N int
	// Final: waiting does not help (Infeasible). With no container left, the
	// queued calls fail with Reason.
	Final  bool
	Reason string
}

// ReplicaLost says that a container is gone. NodeLost tells a vanished node
// from a container that ended by itself (crash, out of memory): calls that had
// begun are placed again on MaxNodeLosses or else on the user's retries. Without
// NodeLost it is the container's last word, behind the Begun of every call that
// ran there: the others are sent again as the same attempt.
type ReplicaLost struct {
	Replica  ReplicaID
	NodeLost bool
	Failure  Failure // when not NodeLost
}

// ReplicaDraining says that a container's node is about to leave: it gets no
// more calls, finishes what it has and is released.
type ReplicaDraining struct{ Replica ReplicaID }

// Begun says that a container began to run a call. Its timeout starts.
type Begun struct {
	Replica ReplicaID
	Call    CallID
	Attempt int
}

// Result ends an attempt. A nil Failure is success. FailOOM is also the end of
// its container: that gets no more calls and is released.
type Result struct {
	Replica ReplicaID
	Call    CallID
	Attempt int
	Failure *Failure
}

// Recalled answers Recall. Given says that the call had not begun and will not.
type Recalled struct {
	Replica ReplicaID
	Call    CallID
	Attempt int
	Given   bool
}

// SetLimits changes Min, Max and KeepWarm.
type SetLimits struct {
	Min, Max int
	KeepWarm time.Duration
}

// Close cancels all calls and releases all containers.
type Close struct{ Reason string }

// Tick is due at NextWake.
type Tick struct{}

func (Submit) event()          {}
func (Cancel) event()          {}
func (ReplicaReady) event()    {}
func (AcquireFailed) event()   {}
func (ReplicaLost) event()     {}
func (ReplicaDraining) event() {}
func (Begun) event()           {}
func (Result) event()          {}
func (Recalled) event()        {}
func (SetLimits) event()       {}
func (Close) event()           {}
func (Tick) event()            {}

// FailureKind says what failed.
type FailureKind string

// The kinds of failure.
const (
	FailException FailureKind = "exception" // the user's code raised
	FailCrash     FailureKind = "crash"     // its process ended
	FailOOM       FailureKind = "out_of_memory"
	FailTimeout   FailureKind = "timeout"
	FailCancelled FailureKind = "cancelled"
	FailNodeLost  FailureKind = "node_lost"
	FailNoPlace   FailureKind = "no_capacity"
	FailExpired   FailureKind = "expired" // its deadline passed in the queue
	FailRejected  FailureKind = "rejected"
)

// Failure is why a call or an attempt failed.
type Failure struct {
	Kind FailureKind
	Name string // exception class for FailException
	Text string
}

// Action is an output of Pool.
type Action interface{ action() }

// Acquire asks for N more containers; each answers with ReplicaReady or counts
// in an AcquireFailed.
type Acquire struct{ N int }

// Unacquire takes back N containers asked for that did not come yet; the shell
// withdraws the youngest offers. One that comes nevertheless is used, or released
// as any idle one. The pool no longer counts on them: no AcquireFailed for these.
type Unacquire struct{ N int }

// ReleaseReplica lets a container go. The pool has forgotten it.
type ReleaseReplica struct {
	Replica ReplicaID
	Reason  string
}

// Dispatch sends a call to a container.
type Dispatch struct {
	Replica ReplicaID
	Call    CallID
	Attempt int
}

// Recall asks for a call back that was sent ahead. Answer with Recalled, or
// with Begun or Result when it was too late.
type Recall struct {
	Replica ReplicaID
	Call    CallID
	Attempt int
}

// StopCall ends a running attempt: cancelled or out of time. The call itself is
// over or queued again already; a Result for the attempt only frees the slot.
type StopCall struct {
	Replica ReplicaID
	Call    CallID
	Attempt int
	Kind    FailureKind
}

// Finished: the call is over. Failure nil = the result of this attempt counts.
// Comes once per call.
type Finished struct {
	Call    CallID
	Attempt int
	Replica ReplicaID // "" when it never ran
	Failure *Failure
}

// Retrying: an attempt failed and the call is queued again.
type Retrying struct {
	Call    CallID
	Attempt int // that failed
	Failure Failure
}

func (Acquire) action()        {}
func (Unacquire) action()      {}
func (ReleaseReplica) action() {}
func (Dispatch) action()       {}
func (Recall) action()         {}
func (StopCall) action()       {}
func (Finished) action()       {}
func (Retrying) action()       {}

// Stats is a snapshot for people and autoscalers.
type Stats struct {
	Queued   int // waiting here
	Sent     int // sent, not begun
	Running  int
	Starting int // containers asked for
	Replicas int
	Idle     int
	CallMean time.Duration // measured; 0 = unknown
	Start    time.Duration // how long a container takes to start
}

// Package ledger is the contract for the mesh's durable records: workspaces,
// issued tokens, stubs, code objects and images.
//
// There is one Ledger per node and all of them answer alike. On the node that
// votes it is ledger/local (a state machine on disk); on every other node it is
// ledger/remote, which forwards to the voter and keeps what it read, so that a
// known stub runs while the voter is away. ledgertest holds the conformance
// suite and an in-memory fake.
//
//	res, err := l.Propose(ctx, ledger.PutStub{Workspace: ws, Config: cfg, Name: "square", Type: "function"})
//	stub, ans, err := ledger.Get[ledger.Stub](ctx, l, ws, res.Record.ID, 0)
//
// Promises:
//   - A Propose that returned nil was fsynced: it survives kill -9 and power loss.
//   - A read with maxAge 0 that the voter answered (Answer.Cached false) sees
//     every write acknowledged before the read began.
//   - Commands are idempotent by content: repeating one whose answer was lost
//     changes nothing and gives the record that stands.
//   - Every record belongs to one workspace; what belongs to nobody in
//     particular (a base image) is kept under MeshScope.
//
// Errors are *fault.Error. Callers branch on the code: NotFound, Conflict (a
// compare-and-set that lost, or other content under the same id), Invalid,
// TooLarge (a stated bound), Unreachable (the voter did not answer; a write may
// or may not have happened), and on ErrCompacted for Watch.
//
// The ledger trusts its callers: who may read or write which workspace is
// decided by the services above it. Values are safe to share; do not modify a
// Record that a Ledger returned.
package ledger

import (
	"context"
	"errors"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
)

// Protocol is the mesh protocol name of the stream between remote and voter.
const Protocol = "ledger/1"

// MeshScope is the workspace of records that every workspace may use.
const MeshScope = "_mesh"

// AllWorkspaces in a Query or Filter asks for every workspace.
const AllWorkspaces = "*"

// Kind names a type of record. It is part of keys on disk: never renamed.
type Kind string

// The kinds of this version. Deployments, apps, secrets and queues follow.
const (
	KindWorkspace Kind = "workspace"
	KindToken     Kind = "token"
	KindStub      Kind = "stub"
	KindObject    Kind = "object"
	KindImage     Kind = "image"
)

// Key names one record.
type Key struct {
	Kind      Kind   `json:"kind"`
	Workspace string `json:"workspace"`
	ID        string `json:"id"`
}

// Record is one entry of the ledger. Its JSON form is what disk and wire carry.
type Record struct {
	Key
	Revision uint64    // of the change that made it what it is; never 0
	Created  time.Time // leader's clock, UTC
	Changed  time.Time // leader's clock, UTC
	Body     Body      // nil: of a kind that only newer versions know
}

// Answer is a record and where it came from.
type Answer struct {
	Record
	Cached bool          // from this node's copy, not from the voter
	Age    time.Duration // since the voter confirmed it; 0 when it just did
}

// Query selects records of one kind, in order of (workspace, id).
type Query struct {
	Kind      Kind
	Workspace string // one workspace, or AllWorkspaces
	After     string // a previous Page.Next; "" starts
	Limit     int    // 0 or above MaxPage = MaxPage
}

// Page is one part of a listing.
type Page struct {
	Records  []Record
	Next     string        // for Query.After; "" = that was all
	Revision uint64        // of the ledger when it was read
	Cached   bool          // from this node's copies: may lack records
	Age      time.Duration // of the oldest copy in it
}

// Filter selects what Watch delivers. Zero fields match everything.
type Filter struct {
	Kind      Kind   `json:"kind,omitempty"`
	Workspace string `json:"workspace,omitempty"` // "" or AllWorkspaces = all
	IDPrefix  string `json:"id_prefix,omitempty"`
}

// Match tells whether k passes the filter.
func (f Filter) Match(k Key) bool {
	return (f.Kind == "" || f.Kind == k.Kind) &&
		(f.Workspace == "" || f.Workspace == AllWorkspaces || f.Workspace == k.Workspace) &&
		len(k.ID) >= len(f.IDPrefix) && k.ID[:len(f.IDPrefix)] == f.IDPrefix
}

// Event is one change. Revisions grow by one per change over the whole ledger,
// so a filtered watch sees gaps.
type Event struct {
	Revision uint64 `json:"rev"`
	Deleted  bool   `json:"deleted,omitempty"`
	Record   Record `json:"record"` // the new state, or the last one when Deleted
}

// Result is the outcome of a command that was accepted.
type Result struct {
	Record  Record // as it stands now; the last state when the command removed it
	Changed bool   // false: it stood like that already
}

// Role says how a Ledger answers.
type Role string

const (
	RoleVoter    Role = "voter"
	RoleFollower Role = "follower"
)

// Status is for people and health checks.
type Status struct {
	Role        Role
	Revision    uint64        // newest known here
	Connected   bool          // voter: always; follower: a stream to it is open
	LastContact time.Duration // follower: since the voter last said something; -1 = never
	CachedCount int           // follower: records kept here
}

// Reader is the reading half of a Ledger.
type Reader interface {
	// Get gives one record. maxAge > 0 accepts a copy that the voter confirmed
	// that recently without asking again; records that can never change (stubs,
	// objects) are served from the copy at any age. When the voter is away any
	// copy is given, marked Cached, and Unreachable only when there is none.
	Get(ctx context.Context, k Key, maxAge time.Duration) (Answer, error)
	// List gives a page of records; when the voter is away, of the copies.
	List(ctx context.Context, q Query) (Page, error)
	// Watch calls fn for every change after revision from that matches f, in
	// order and none twice, from the calling goroutine, until ctx ends or fn
	// fails (fn's error is returned). A slow fn slows only itself. It wraps
	// ErrCompacted when events after from are no longer kept: List, and watch
	// from that page's revision. A follower returns Unreachable when the stream
	// breaks; call again with the last revision seen.
	Watch(ctx context.Context, f Filter, from uint64, fn func(Event) error) error
}

// Ledger is the whole contract. Safe for concurrent use.
type Ledger interface {
	Reader
	// Propose applies one command. When ctx ends while it waits, the command
	// may still be applied.
	Propose(ctx context.Context, cmd Command) (Result, error)
	Status() Status
	// Close waits for work in progress and may be called twice.
	Close() error
}

// ErrCompacted is wrapped by Watch's error when it must start over from a List.
var ErrCompacted = errors.New("revision is no longer kept")

// Bounds. They are checked when a command is applied, so no peer can exceed them.
const (
	MaxIDBytes      = 128
	MaxNameBytes    = 256
	MaxConfigBytes  = 256 << 10 // stub and image configuration
	MaxRoots        = 512       // layers of an image
	MaxScopes       = 64
	MaxPerWorkspace = 100_000 // records of one kind in one workspace
	MaxPage         = 1000    // records of a page
	MaxPageBytes    = 1 << 20 // a page ends with the record that crosses it
	MaxEvents       = 10_000  // changes kept for Watch
	MaxCommandBytes = 1 << 20 // encoded
)

// NotFound is the error for a missing record.
func NotFound(k Key) error {
	return fault.New(fault.NotFound, string(k.Kind)+" "+k.ID+" is not known in workspace "+k.Workspace, "")
}

// Compacted is the error for a watch from a revision that is gone.
func Compacted(from, oldest uint64) error {
	return fault.Wrap(fault.Conflict, ErrCompacted, "watch must start over",
		"list again and watch from the revision of that page")
}

// Closed is the error for a ledger that was closed.
func Closed() error {
	return fault.New(fault.Unreachable, "ledger is closed", "the node is stopping")
}

// CheckQuery refuses queries that cannot be answered.
func CheckQuery(q Query) error {
	if !q.Kind.known() {
		return fault.Newf(fault.Invalid, "record kind %q is not known", string(q.Kind))
	}
	return checkText("workspace id", q.Workspace, MaxIDBytes, true)
}

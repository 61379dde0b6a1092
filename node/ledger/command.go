package ledger

import (
	"reflect"
	"slices"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
)

// Command is one typed write. It touches exactly one record; what it does is a
// pure function of that record and the leader's time, so that every replica
// and the fake in ledgertest decide alike.
type Command interface {
	// Target is the record it touches.
	Target() Key
	// next gives the body that shall stand after it: nil to remove the record,
	// cur.Body (or an equal one) to leave it alone.
	next(cur *Record, now time.Time) (Body, error)
}

// PutWorkspace creates a workspace, or renames it. IfRevision 0 creates it or
// confirms the same name; otherwise the record must stand at that revision.
type PutWorkspace struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	IfRevision uint64 `json:"if_revision,omitempty"`
}

// PutToken records an issued token. The same id with other content is a Conflict.
type PutToken struct {
	Workspace string `json:"workspace"`
	ID        string `json:"id"`
	Token     Token  `json:"token"`
}

// SetTokenActive switches a token off or on. IfRevision 0 = whatever stands.
type SetTokenActive struct {
	Workspace  string `json:"workspace"`
	ID         string `json:"id"`
	Active     bool   `json:"active"`
	IfRevision uint64 `json:"if_revision,omitempty"`
}

// PutStub registers a stub; its id follows from workspace and configuration.
type PutStub struct {
	Workspace string `json:"workspace"`
	Config    []byte `json:"config"`
	Name      string `json:"name"`
	Type      string `json:"type"`
}

// PutObject registers the code tree of an archive.
type PutObject struct {
	Workspace string `json:"workspace"`
	ID        string `json:"id"` // hash of the archive
	Object    Object `json:"object"`
}

// PutImage registers a built image. When one stands already, the lowest list
// of roots wins; the Result holds the winner.
type PutImage struct {
	Workspace string `json:"workspace"` // MeshScope for images that hold nothing private
	ID        string `json:"id"`
	Image     Image  `json:"image"`
}

// Delete removes a record; a missing one is no error. IfRevision 0 = whatever
// stands.
type Delete struct {
	Key        Key    `json:"key"`
	IfRevision uint64 `json:"if_revision,omitempty"`
}

// Expire removes a record whose time has come by the leader's clock, else it
// does nothing. The voter proposes it: replicas never look at a clock.
type Expire struct {
	Key Key `json:"key"`
}

func (c PutWorkspace) Target() Key   { return Key{KindWorkspace, c.ID, c.ID} }
func (c PutToken) Target() Key       { return Key{KindToken, c.Workspace, c.ID} }
func (c SetTokenActive) Target() Key { return Key{KindToken, c.Workspace, c.ID} }
func (c PutStub) Target() Key {
	return Key{KindStub, c.Workspace, StubID(c.Workspace, c.Config)}
}
func (c PutObject) Target() Key { return Key{KindObject, c.Workspace, c.ID} }
func (c PutImage) Target() Key  { return Key{KindImage, c.Workspace, c.ID} }
func (c Delete) Target() Key    { return c.Key }
func (c Expire) Target() Key    { return c.Key }

func (c PutWorkspace) next(cur *Record, _ time.Time) (Body, error) {
	want := Workspace{Name: c.Name}
	if cur == nil {
		if c.IfRevision != 0 {
			return nil, NotFound(c.Target())
		}
		return want, nil
	}
	if cur.Body.(Workspace) == want {
		return want, nil // also the repeat of a rename whose answer was lost
	}
	if c.IfRevision != cur.Revision {
		return nil, stale(cur, c.IfRevision)
	}
	return want, nil
}

func (c PutToken) next(cur *Record, _ time.Time) (Body, error) {
	want := c.Token
	want.Expires = canonicalTime(want.Expires)
	want.Scopes = slices.Clone(want.Scopes)
	if cur == nil {
		return want, nil
	}
	// A repeat must not switch a revoked token on again.
	have := cur.Body.(Token)
	same := have
	same.Active = want.Active
	if !sameBody(same, want) {
		return nil, differs(cur)
	}
	return have, nil
}

func (c SetTokenActive) next(cur *Record, _ time.Time) (Body, error) {
	if cur == nil {
		return nil, NotFound(c.Target())
	}
	t := cur.Body.(Token)
	if t.Active == c.Active {
		return t, nil
	}
	if c.IfRevision != 0 && c.IfRevision != cur.Revision {
		return nil, stale(cur, c.IfRevision)
	}
	t.Active = c.Active
	return t, nil
}

func (c PutStub) next(cur *Record, _ time.Time) (Body, error) {
	if cur != nil {
		return cur.Body, nil // the id is the content; the first name stays
	}
	return Stub{Name: c.Name, Type: c.Type, Config: slices.Clone(c.Config)}, nil
}

func (c PutObject) next(cur *Record, _ time.Time) (Body, error) {
	if cur == nil {
		return c.Object, nil
	}
	if cur.Body.(Object).Root != c.Object.Root {
		return nil, differs(cur)
	}
	return cur.Body, nil
}

func (c PutImage) next(cur *Record, _ time.Time) (Body, error) {
	if cur != nil && !c.Image.beats(cur.Body.(Image)) {
		return cur.Body, nil
	}
	i := c.Image
	i.Roots, i.Config, i.Signature = slices.Clone(i.Roots), slices.Clone(i.Config), slices.Clone(i.Signature)
	return i, nil
}

func (c Delete) next(cur *Record, _ time.Time) (Body, error) {
	if cur != nil && c.IfRevision != 0 && c.IfRevision != cur.Revision {
		return nil, stale(cur, c.IfRevision)
	}
	return nil, nil
}

func (c Expire) next(cur *Record, now time.Time) (Body, error) {
	if cur == nil {
		return nil, nil
	}
	if at := cur.RemoveAt(); at.IsZero() || at.After(now) {
		return cur.Body, nil
	}
	return nil, nil
}

// Outcome is what a command does to its record.
type Outcome struct {
	Changed bool
	Deleted bool
	Record  Record // as it stands after; the last state when Deleted
}

// Step decides cmd. cur is the record at cmd.Target (nil = none), count the
// number of records of that kind in that workspace, rev the revision a change
// would get, now the leader's time. It is pure: same input, same outcome.
func Step(cmd Command, cur *Record, count int, rev uint64, now time.Time) (Outcome, error) {
	k := cmd.Target()
	if err := CheckKey(k); err != nil {
		return Outcome{}, err
	}
	now = canonicalTime(now)
	body, err := cmd.next(cur, now)
	switch {
	case err != nil:
		return Outcome{}, err
	case body == nil && cur == nil:
		return Outcome{Record: Record{Key: k}}, nil
	case body == nil:
		return Outcome{Changed: true, Deleted: true, Record: *cur}, nil
	case cur != nil && sameBody(body, cur.Body):
		return Outcome{Record: *cur}, nil
	}
	if err := body.check(); err != nil {
		return Outcome{}, err
	}
	r := Record{Key: k, Revision: rev, Created: now, Changed: now, Body: body}
	if cur != nil {
		r.Created = cur.Created
	} else if count >= MaxPerWorkspace {
		return Outcome{}, fault.New(fault.TooLarge,
			"workspace "+k.Workspace+" holds the most "+string(k.Kind)+" records it may", "remove some that are no longer used")
	}
	return Outcome{Changed: true, Record: r}, nil
}

func sameBody(a, b Body) bool { return reflect.DeepEqual(normal(a), normal(b)) }

// normal makes nil and empty slices alike, as they are on disk.
func normal(b Body) Body {
	switch t := b.(type) {
	case Token:
		if len(t.Scopes) == 0 {
			t.Scopes = nil
		}
		t.Expires = canonicalTime(t.Expires)
		return t
	case Stub:
		if len(t.Config) == 0 {
			t.Config = nil
		}
		return t
	case Image:
		if len(t.Config) == 0 {
			t.Config = nil
		}
		if len(t.Signature) == 0 {
			t.Signature = nil
		}
		return t
	}
	return b
}

// canonicalTime drops zone, monotonic reading and what milliseconds cannot hold,
// so that a time survives disk and wire unchanged.
func canonicalTime(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return time.UnixMilli(t.UnixMilli()).UTC()
}

func stale(cur *Record, want uint64) error {
	return fault.Newf(fault.Conflict, "%s %s is at revision %d, not %d", cur.Kind, cur.ID, cur.Revision, want)
}

func differs(cur *Record) error {
	return fault.Newf(fault.Conflict, "%s %s exists with other content", cur.Kind, cur.ID)
}

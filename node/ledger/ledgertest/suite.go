// Package ledgertest holds the conformance suite that every ledger.Ledger must
// pass, a linearizability check, and an in-memory fake.
//
//	func TestConformance(t *testing.T) {
//		ledgertest.Run(t, func(t *testing.T) ledger.Ledger { return open(t) })
//	}
package ledgertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/proto/fault"
)

// Patience is how long a test waits for what must happen.
const Patience = 60 * time.Second

// Run runs the suite. open gives an empty ledger; the suite closes it.
func Run(t *testing.T, open func(t *testing.T) ledger.Ledger) {
	for _, c := range []struct {
		name string
		run  func(context.Context, *testing.T, ledger.Ledger)
	}{
		{"stub is derived from its content", stubs},
		{"every kind keeps its content", kinds},
		{"workspaces do not see each other", scoping},
		{"compare and set", compareAndSet},
		{"other content under one id is refused", conflicts},
		{"lowest image roots win", images},
		{"revoked token stays revoked", tokens},
		{"bad input is refused with a code", badInput},
		{"missing record", missing},
		{"listing in pages", paging},
		{"watch misses nothing and repeats nothing", watch},
		{"watch ends with its caller's error", watchStops},
		{"concurrent writers and watchers", concurrent},
		{"closed", closed},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), Patience)
			defer cancel()
			l := open(t)
			t.Cleanup(func() {
				if err := l.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			c.run(ctx, t, l)
		})
	}
}

func must(t testing.TB, l ledger.Ledger, cmd ledger.Command) ledger.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	res, err := l.Propose(ctx, cmd)
	if err != nil {
		t.Fatalf("propose %#v: %v", cmd, err)
	}
	return res
}

func wantCode(t testing.TB, what string, err error, code fault.Code) {
	t.Helper()
	if fault.CodeOf(err) != code {
		t.Fatalf("%s: got error %v (code %q), want code %q", what, err, fault.CodeOf(err), code)
	}
}

func stubs(ctx context.Context, t *testing.T, l ledger.Ledger) {
	cfg := []byte(`{"handler":"app:square"}`)
	a := must(t, l, ledger.PutStub{Workspace: "w1", Config: cfg, Name: "square", Type: "function"})
	if !a.Changed || a.Record.ID != ledger.StubID("w1", cfg) || len(a.Record.ID) != 36 {
		t.Fatalf("first put: %+v", a)
	}
	b := must(t, l, ledger.PutStub{Workspace: "w1", Config: cfg, Name: "square", Type: "function"})
	if b.Changed || b.Record.Revision != a.Record.Revision {
		t.Fatalf("repeat changed something: %+v", b)
	}
	if other := must(t, l, ledger.PutStub{Workspace: "w2", Config: cfg, Name: "square", Type: "function"}); other.Record.ID == a.Record.ID {
		t.Fatal("two workspaces share a stub id")
	}
	s, ans, err := ledger.Get[ledger.Stub](ctx, l, "w1", a.Record.ID, 0)
	if err != nil || s.Name != "square" || s.Type != "function" || !bytes.Equal(s.Config, cfg) {
		t.Fatalf("get: %+v %v", s, err)
	}
	if ans.Workspace != "w1" || ans.Created.IsZero() || ans.Revision != a.Record.Revision {
		t.Fatalf("record: %+v", ans.Record)
	}
}

func kinds(ctx context.Context, t *testing.T, l ledger.Ledger) {
	exp := time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond)
	must(t, l, ledger.PutWorkspace{ID: "w1", Name: "lab"})
	must(t, l, ledger.PutToken{Workspace: "w1", ID: "t1", Token: ledger.Token{
		Name: "ci", Scopes: []string{"invoke", "read"}, Issuer: "k1", Expires: exp, Active: true}})
	must(t, l, ledger.PutObject{Workspace: "w1", ID: "zip1", Object: ledger.Object{Root: "bafy1", Size: 9}})
	must(t, l, ledger.PutImage{Workspace: ledger.MeshScope, ID: "i1", Image: ledger.Image{
		Roots: []string{"r1", "r2"}, Config: []byte{0, 1, 255}, Python: "3.11", Builder: "p1", Signature: []byte("sig")}})
	w, _, err := ledger.Get[ledger.Workspace](ctx, l, "w1", "w1", 0)
	if err != nil || w.Name != "lab" {
		t.Fatalf("workspace %+v %v", w, err)
	}
	tok, _, err := ledger.Get[ledger.Token](ctx, l, "w1", "t1", 0)
	if err != nil || fmt.Sprint(tok.Scopes) != "[invoke read]" || !tok.Expires.Equal(exp) || !tok.Active || tok.Issuer != "k1" {
		t.Fatalf("token %+v %v", tok, err)
	}
	o, _, err := ledger.Get[ledger.Object](ctx, l, "w1", "zip1", 0)
	if err != nil || o.Root != "bafy1" || o.Size != 9 {
		t.Fatalf("object %+v %v", o, err)
	}
	i, ans, err := ledger.FindImage(ctx, l, "w1", "i1", 0)
	if err != nil || fmt.Sprint(i.Roots) != "[r1 r2]" || !bytes.Equal(i.Config, []byte{0, 1, 255}) || string(i.Signature) != "sig" {
		t.Fatalf("image %+v %v", i, err)
	}
	if ans.Workspace != ledger.MeshScope {
		t.Fatalf("image found in %q", ans.Workspace)
	}
	if _, _, err := ledger.FindImage(ctx, l, "w1", "none", 0); fault.CodeOf(err) != fault.NotFound {
		t.Fatalf("missing image: %v", err)
	}
}

func scoping(ctx context.Context, t *testing.T, l ledger.Ledger) {
	must(t, l, ledger.PutObject{Workspace: "w1", ID: "z", Object: ledger.Object{Root: "a"}})
	must(t, l, ledger.PutObject{Workspace: "w10", ID: "z", Object: ledger.Object{Root: "b"}})
	if o, _, err := ledger.Get[ledger.Object](ctx, l, "w10", "z", 0); err != nil || o.Root != "b" {
		t.Fatalf("%+v %v", o, err)
	}
	for ws, want := range map[string]int{"w1": 1, "w10": 1, "w": 0, ledger.AllWorkspaces: 2} {
		p, err := l.List(ctx, ledger.Query{Kind: ledger.KindObject, Workspace: ws})
		if err != nil || len(p.Records) != want {
			t.Fatalf("list %q: %d records, want %d (%v)", ws, len(p.Records), want, err)
		}
	}
}

func compareAndSet(ctx context.Context, t *testing.T, l ledger.Ledger) {
	_, err := l.Propose(ctx, ledger.PutWorkspace{ID: "w1", Name: "x", IfRevision: 7})
	wantCode(t, "update of nothing", err, fault.NotFound)
	a := must(t, l, ledger.PutWorkspace{ID: "w1", Name: "one"})
	_, err = l.Propose(ctx, ledger.PutWorkspace{ID: "w1", Name: "two"})
	wantCode(t, "rename without revision", err, fault.Conflict)
	b := must(t, l, ledger.PutWorkspace{ID: "w1", Name: "two", IfRevision: a.Record.Revision})
	if !b.Changed || b.Record.Revision <= a.Record.Revision || !b.Record.Created.Equal(a.Record.Created) {
		t.Fatalf("rename: %+v after %+v", b, a)
	}
	_, err = l.Propose(ctx, ledger.PutWorkspace{ID: "w1", Name: "three", IfRevision: a.Record.Revision})
	wantCode(t, "stale rename", err, fault.Conflict)
	if c := must(t, l, ledger.PutWorkspace{ID: "w1", Name: "two", IfRevision: a.Record.Revision}); c.Changed {
		t.Fatal("repeat of an applied rename changed something")
	}
	_, err = l.Propose(ctx, ledger.Delete{Key: a.Record.Key, IfRevision: a.Record.Revision})
	wantCode(t, "stale delete", err, fault.Conflict)
	must(t, l, ledger.Delete{Key: a.Record.Key, IfRevision: b.Record.Revision})
	if again := must(t, l, ledger.Delete{Key: a.Record.Key}); again.Changed {
		t.Fatal("delete of nothing changed something")
	}
	_, err = l.Get(ctx, a.Record.Key, 0)
	wantCode(t, "get after delete", err, fault.NotFound)
}

func conflicts(ctx context.Context, t *testing.T, l ledger.Ledger) {
	must(t, l, ledger.PutObject{Workspace: "w1", ID: "z", Object: ledger.Object{Root: "a"}})
	_, err := l.Propose(ctx, ledger.PutObject{Workspace: "w1", ID: "z", Object: ledger.Object{Root: "b"}})
	wantCode(t, "object", err, fault.Conflict)
	must(t, l, ledger.PutToken{Workspace: "w1", ID: "t", Token: ledger.Token{Scopes: []string{"read"}, Active: true}})
	_, err = l.Propose(ctx, ledger.PutToken{Workspace: "w1", ID: "t", Token: ledger.Token{Scopes: []string{"admin"}, Active: true}})
	wantCode(t, "token", err, fault.Conflict)
}

func images(ctx context.Context, t *testing.T, l ledger.Ledger) {
	put := func(roots ...string) ledger.Result {
		return must(t, l, ledger.PutImage{Workspace: "w1", ID: "i", Image: ledger.Image{Roots: roots}})
	}
	put("m", "z")
	if r := put("n", "a"); r.Changed || r.Record.Body.(ledger.Image).Roots[0] != "m" {
		t.Fatalf("higher roots won: %+v", r)
	}
	if r := put("m", "b"); !r.Changed {
		t.Fatal("lower roots lost")
	}
	if r := put("m", "b"); r.Changed {
		t.Fatal("repeat changed something")
	}
	i, _, err := ledger.Get[ledger.Image](ctx, l, "w1", "i", 0)
	if err != nil || fmt.Sprint(i.Roots) != "[m b]" {
		t.Fatalf("%+v %v", i, err)
	}
}

func tokens(ctx context.Context, t *testing.T, l ledger.Ledger) {
	issue := ledger.PutToken{Workspace: "w1", ID: "t", Token: ledger.Token{Scopes: []string{"read"}, Active: true}}
	must(t, l, issue)
	off := must(t, l, ledger.SetTokenActive{Workspace: "w1", ID: "t", Active: false})
	if !off.Changed || off.Record.Body.(ledger.Token).Active {
		t.Fatalf("switch off: %+v", off)
	}
	if r := must(t, l, issue); r.Changed || r.Record.Body.(ledger.Token).Active {
		t.Fatalf("repeat of the issue switched it on: %+v", r)
	}
	_, err := l.Propose(ctx, ledger.SetTokenActive{Workspace: "w1", ID: "t", Active: true, IfRevision: off.Record.Revision - 1})
	wantCode(t, "stale switch", err, fault.Conflict)
	must(t, l, ledger.SetTokenActive{Workspace: "w1", ID: "t", Active: true, IfRevision: off.Record.Revision})
	_, err = l.Propose(ctx, ledger.SetTokenActive{Workspace: "w1", ID: "nope", Active: true})
	wantCode(t, "unknown token", err, fault.NotFound)
}

func badInput(ctx context.Context, t *testing.T, l ledger.Ledger) {
	big := bytes.Repeat([]byte{'x'}, ledger.MaxConfigBytes+1)
	long := string(bytes.Repeat([]byte{'x'}, ledger.MaxIDBytes+1))
	for name, c := range map[string]struct {
		cmd  ledger.Command
		code fault.Code
	}{
		"no workspace":      {ledger.PutStub{Config: []byte("x"), Type: "function"}, fault.Invalid},
		"all workspaces":    {ledger.PutObject{Workspace: ledger.AllWorkspaces, ID: "z", Object: ledger.Object{Root: "r"}}, fault.Invalid},
		"NUL in workspace":  {ledger.PutObject{Workspace: "a\x00b", ID: "z", Object: ledger.Object{Root: "r"}}, fault.Invalid},
		"escape in name":    {ledger.PutStub{Workspace: "w", Config: []byte("x"), Type: "function", Name: "\x1b[2J"}, fault.Invalid},
		"big stub":          {ledger.PutStub{Workspace: "w", Config: big, Type: "function"}, fault.TooLarge},
		"long id":           {ledger.PutObject{Workspace: "w", ID: long, Object: ledger.Object{Root: "r"}}, fault.TooLarge},
		"object of nothing": {ledger.PutObject{Workspace: "w", ID: "z"}, fault.Invalid},
		"image of nothing":  {ledger.PutImage{Workspace: "w", ID: "i"}, fault.Invalid},
		"unknown kind":      {ledger.Delete{Key: ledger.Key{Kind: "moon", Workspace: "w", ID: "i"}}, fault.Invalid},
	} {
		_, err := l.Propose(ctx, c.cmd)
		wantCode(t, name, err, c.code)
	}
	_, err := l.List(ctx, ledger.Query{Kind: "moon", Workspace: "w"})
	wantCode(t, "list of unknown kind", err, fault.Invalid)
	_, err = l.Get(ctx, ledger.Key{Kind: ledger.KindStub, ID: "x"}, 0)
	wantCode(t, "get without workspace", err, fault.Invalid)
	if rev := l.Status().Revision; rev != 0 {
		t.Fatalf("refused commands moved the revision to %d", rev)
	}
}

func missing(ctx context.Context, t *testing.T, l ledger.Ledger) {
	_, err := l.Get(ctx, ledger.Key{Kind: ledger.KindStub, Workspace: "w", ID: "none"}, 0)
	wantCode(t, "get", err, fault.NotFound)
	p, err := l.List(ctx, ledger.Query{Kind: ledger.KindStub, Workspace: "w"})
	if err != nil || len(p.Records) != 0 || p.Next != "" {
		t.Fatalf("list: %+v %v", p, err)
	}
}

func paging(ctx context.Context, t *testing.T, l ledger.Ledger) {
	const n = 25
	for i := range n {
		must(t, l, ledger.PutObject{Workspace: "w", ID: fmt.Sprintf("z%02d", i), Object: ledger.Object{Root: "r"}})
	}
	q := ledger.Query{Kind: ledger.KindObject, Workspace: "w", Limit: 10}
	var got []string
	for pages := 0; ; pages++ {
		p, err := l.List(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Records) > 10 || pages > 3 {
			t.Fatalf("page %d has %d records", pages, len(p.Records))
		}
		for _, r := range p.Records {
			got = append(got, r.ID)
		}
		if p.Next == "" {
			break
		}
		q.After = p.Next
	}
	for i, id := range got {
		if id != fmt.Sprintf("z%02d", i) {
			t.Fatalf("record %d is %s", i, id)
		}
	}
	if len(got) != n {
		t.Fatalf("%d records listed, want %d", len(got), n)
	}
	seen := 0
	rev, err := ledger.Each(ctx, l, "w", func(o ledger.Object, r ledger.Record) bool { seen++; return true })
	if err != nil || seen != n || rev != n {
		t.Fatalf("each: %d records at revision %d: %v", seen, rev, err)
	}
}

var errEnough = errors.New("enough")

func watch(ctx context.Context, t *testing.T, l ledger.Ledger) {
	put := func(ws, id string) {
		must(t, l, ledger.PutObject{Workspace: ws, ID: id, Object: ledger.Object{Root: "r"}})
	}
	put("w", "before-1")
	put("other", "x")
	put("w", "before-2")
	got := make(chan ledger.Event)
	done := make(chan error, 1)
	go func() {
		done <- l.Watch(ctx, ledger.Filter{Kind: ledger.KindObject, Workspace: "w"}, 1, func(e ledger.Event) error {
			got <- e
			if e.Deleted {
				return errEnough
			}
			return nil
		})
	}()
	expect := func(id string, deleted bool) {
		t.Helper()
		select {
		case e := <-got:
			if e.Record.ID != id || e.Deleted != deleted || e.Record.Workspace != "w" {
				t.Fatalf("event %+v, want %s deleted=%v", e, id, deleted)
			}
		case err := <-done:
			t.Fatalf("watch ended: %v", err)
		case <-ctx.Done():
			t.Fatalf("no event for %s", id)
		}
	}
	expect("before-2", false) // from revision 1: the first put is not repeated
	put("w", "after-1")
	expect("after-1", false)
	put("other", "y")
	must(t, l, ledger.PutWorkspace{ID: "w", Name: "w"})
	put("w", "after-2")
	expect("after-2", false)
	must(t, l, ledger.Delete{Key: ledger.Key{Kind: ledger.KindObject, Workspace: "w", ID: "after-1"}})
	expect("after-1", true)
	select {
	case err := <-done:
		if !errors.Is(err, errEnough) {
			t.Fatalf("watch gave %v", err)
		}
	case <-ctx.Done():
		t.Fatal("watch does not end")
	}
}

func watchStops(ctx context.Context, t *testing.T, l ledger.Ledger) {
	sub, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		first := true
		done <- l.Watch(sub, ledger.Filter{}, 0, func(ledger.Event) error {
			if first {
				close(started)
				first = false
			}
			return nil
		})
	}()
	must(t, l, ledger.PutWorkspace{ID: "w", Name: "w"})
	select {
	case <-started:
	case <-ctx.Done():
		t.Fatal("no event")
	}
	cancel()
	select {
	case err := <-done:
		wantCode(t, "cancelled watch", err, fault.Cancelled)
	case <-ctx.Done():
		t.Fatal("watch does not end")
	}
}

func concurrent(ctx context.Context, t *testing.T, l ledger.Ledger) {
	const writers, each, watchers = 8, 20, 3
	var wg sync.WaitGroup
	for range watchers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var last uint64
			n := 0
			err := l.Watch(ctx, ledger.Filter{}, 0, func(e ledger.Event) error {
				if e.Revision != last+1 {
					return fmt.Errorf("event %d after %d", e.Revision, last)
				}
				last = e.Revision
				if n++; n == writers*each {
					return errEnough
				}
				return nil
			})
			if !errors.Is(err, errEnough) {
				t.Errorf("watch after %d events: %v", n, err)
			}
		}()
	}
	for w := range writers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range each {
				res, err := l.Propose(ctx, ledger.PutObject{Workspace: fmt.Sprint("w", w), ID: fmt.Sprint("z", i), Object: ledger.Object{Root: "r"}})
				if err != nil || !res.Changed {
					t.Errorf("writer %d item %d: %+v %v", w, i, res, err)
					return
				}
				if _, err := l.Get(ctx, res.Record.Key, 0); err != nil {
					t.Errorf("read own write: %v", err)
				}
			}
		}()
	}
	wg.Wait()
}

func closed(ctx context.Context, t *testing.T, l ledger.Ledger) {
	must(t, l, ledger.PutWorkspace{ID: "w", Name: "w"})
	done := make(chan error, 1)
	begun := make(chan struct{}, 16)
	go func() {
		done <- l.Watch(ctx, ledger.Filter{}, 0, func(ledger.Event) error { begun <- struct{}{}; return nil })
	}()
	select {
	case <-begun:
	case <-ctx.Done():
		t.Fatal("no event")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		wantCode(t, "watch of a closed ledger", err, fault.Unreachable)
	case <-ctx.Done():
		t.Fatal("watch outlives the ledger")
	}
	_, err := l.Propose(ctx, ledger.PutWorkspace{ID: "v", Name: "v"})
	wantCode(t, "propose", err, fault.Unreachable)
	_, err = l.Get(ctx, ledger.Key{Kind: ledger.KindWorkspace, Workspace: "w", ID: "w"}, 0)
	wantCode(t, "get", err, fault.Unreachable)
	if err := l.Close(); err != nil {
		t.Fatalf("second close: %v", err)
	}
}

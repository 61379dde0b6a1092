package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/ledger/ledgertest"
	"github.com/beammesh/beammesh/proto/fault"
)

// voter serves a fake ledger over in-memory pipes and can be taken down.
type voter struct {
	l *ledgertest.Fake

	mu      sync.Mutex
	down    bool
	silent  bool // accepts, then reads and says nothing
	streams []io.Closer
	dials   int
	work    sync.WaitGroup
}

func newVoter(t testing.TB) *voter {
	v := &voter{l: ledgertest.NewFake(nil)}
	t.Cleanup(func() { v.set(true, false); v.work.Wait() })
	return v
}

func (v *voter) OpenLedger(ctx context.Context) (io.ReadWriteCloser, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.dials++
	if v.down {
		return nil, errors.New("connection refused")
	}
	here, there := net.Pipe()
	v.streams = append(v.streams, there)
	v.work.Add(1)
	if v.silent {
		go func() { defer v.work.Done(); _, _ = io.Copy(io.Discard, there) }()
	} else {
		go func() { defer v.work.Done(); _ = Serve(context.Background(), v.l, there) }()
	}
	return here, nil
}

// set changes how the voter answers and breaks all of its streams.
func (v *voter) set(down, silent bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.down, v.silent = down, silent
	for _, s := range v.streams {
		_ = s.Close()
	}
	v.streams = nil
}

func open(t testing.TB, dir string, v *voter, o Options) *Ledger {
	t.Helper()
	l, err := Open(dir, v, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestConformance(t *testing.T) {
	ledgertest.Run(t, func(t *testing.T) ledger.Ledger { return open(t, t.TempDir(), newVoter(t), Options{}) })
}

func TestLinearizableOverVoterAndFollowers(t *testing.T) {
	v := newVoter(t)
	ledgertest.Linearizable(t, 11, v.l, open(t, t.TempDir(), v, Options{}), open(t, t.TempDir(), v, Options{}))
}

func TestKnownRecordsOutliveTheVoter(t *testing.T) {
	ctx := context.Background()
	v, dir := newVoter(t), t.TempDir()
	l := open(t, dir, v, Options{Voter: "box1"})
	res, err := l.Propose(ctx, ledger.PutStub{Workspace: "w", Config: []byte("c"), Name: "f", Type: "function"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.l.Propose(ctx, ledger.PutToken{Workspace: "w", ID: "t", Token: ledger.Token{Active: true}}); err != nil {
		t.Fatal(err)
	}
	tok := ledger.Key{Kind: ledger.KindToken, Workspace: "w", ID: "t"}
	if a, err := l.Get(ctx, tok, 0); err != nil || a.Cached {
		t.Fatalf("fresh read: %+v %v", a, err)
	}
	if a, err := l.Get(ctx, tok, time.Hour); err != nil || !a.Cached {
		t.Fatalf("read that accepts an hour: %+v %v", a, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	v.set(true, false)

	// The node restarts while the founder is down.
	later := time.Now().Add(90 * time.Second)
	l = open(t, dir, v, Options{Voter: "box1", Now: func() time.Time { return later }})
	if a, err := l.Get(ctx, res.Record.Key, 0); err != nil || !a.Cached || a.Body.(ledger.Stub).Name != "f" {
		t.Fatalf("known stub: %+v %v", a, err)
	}
	a, err := l.Get(ctx, tok, 0)
	if err != nil || !a.Cached || a.Age < 60*time.Second {
		t.Fatalf("known token: %+v %v", a, err)
	}
	p, err := l.List(ctx, ledger.Query{Kind: ledger.KindToken, Workspace: "w"})
	if err != nil || !p.Cached || len(p.Records) != 1 || p.Age < 60*time.Second {
		t.Fatalf("list: %+v %v", p, err)
	}
	_, err = l.Get(ctx, ledger.Key{Kind: ledger.KindStub, Workspace: "w", ID: "unknown"}, 0)
	if fault.CodeOf(err) != fault.Unreachable {
		t.Fatalf("unknown stub: %v", err)
	}
	_, err = l.Propose(ctx, ledger.PutWorkspace{ID: "n", Name: "n"})
	if f := fault.From(err); f.Code != fault.Unreachable || f.Hint == "" {
		t.Fatalf("write: %+v", f)
	}
	v.mu.Lock()
	dials := v.dials
	v.mu.Unlock()
	for range 50 { // known reads do not dial a node that just failed
		if _, err := l.Get(ctx, tok, 0); err != nil {
			t.Fatal(err)
		}
	}
	v.mu.Lock()
	if v.dials > dials+5 {
		t.Errorf("50 reads dialled %d times", v.dials-dials)
	}
	v.mu.Unlock()

	v.set(false, false)
	l.Nudge()
	if a, err := l.Get(ctx, tok, 0); err != nil || a.Cached {
		t.Fatalf("after the founder is back: %+v %v", a, err)
	}
	if s := l.Status(); s.Role != ledger.RoleFollower || !s.Connected || s.Revision != 2 || s.LastContact < 0 {
		t.Fatalf("status %+v", s)
	}
}

func TestRevokedTokenIsSeenAtOnce(t *testing.T) {
	ctx := context.Background()
	v := newVoter(t)
	l := open(t, t.TempDir(), v, Options{})
	if _, err := l.Propose(ctx, ledger.PutToken{Workspace: "w", ID: "t", Token: ledger.Token{Active: true}}); err != nil {
		t.Fatal(err)
	}
	if _, err := v.l.Propose(ctx, ledger.SetTokenActive{Workspace: "w", ID: "t"}); err != nil {
		t.Fatal(err)
	}
	if tok, _, err := ledger.Get[ledger.Token](ctx, l, "w", "t", 0); err != nil || tok.Active {
		t.Fatalf("%+v %v", tok, err)
	}
}

func TestSilentVoterIsGivenUp(t *testing.T) {
	v := newVoter(t)
	l := open(t, t.TempDir(), v, Options{CallTimeout: time.Second})
	ctx := context.Background()
	if _, err := l.Propose(ctx, ledger.PutWorkspace{ID: "w", Name: "w"}); err != nil {
		t.Fatal(err)
	}
	v.set(false, true)
	begin := time.Now()
	a, err := l.Get(ctx, ledger.Key{Kind: ledger.KindWorkspace, Workspace: "w", ID: "w"}, 0)
	if err != nil || !a.Cached {
		t.Fatalf("read: %+v %v", a, err)
	}
	_, err = l.Propose(ctx, ledger.PutWorkspace{ID: "x", Name: "x"})
	if fault.CodeOf(err) != fault.Unreachable {
		t.Fatalf("write: %v", err)
	}
	if d := time.Since(begin); d > 20*time.Second {
		t.Fatalf("gave up after %v", d)
	}
	v.set(false, false)
	l.Nudge()
	if _, err := l.Propose(ctx, ledger.PutWorkspace{ID: "x", Name: "x"}); err != nil {
		t.Fatalf("write after it is back: %v", err)
	}
}

func TestCallerGivesUpFirst(t *testing.T) {
	v := newVoter(t)
	v.set(false, true)
	l := open(t, t.TempDir(), v, Options{CallTimeout: time.Hour})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := l.Propose(ctx, ledger.PutWorkspace{ID: "x", Name: "x"})
	if fault.CodeOf(err) != fault.Timeout {
		t.Fatalf("got %v", err)
	}
}

func TestBrokenStreamIsRepeatedOnANewOne(t *testing.T) {
	v := newVoter(t)
	l := open(t, t.TempDir(), v, Options{})
	ctx := context.Background()
	for i := range 20 {
		v.set(false, false) // breaks the stream of the call before
		if _, err := l.Propose(ctx, ledger.PutWorkspace{ID: fmt.Sprint("w", i), Name: "w"}); err != nil {
			t.Fatalf("write %d: %v", i, err)
		}
	}
}

func TestWatchBreaksWithTheStreamAndResumes(t *testing.T) {
	v := newVoter(t)
	l := open(t, t.TempDir(), v, Options{})
	ctx, cancel := context.WithTimeout(context.Background(), ledgertest.Patience)
	defer cancel()
	if _, err := v.l.Propose(ctx, ledger.PutWorkspace{ID: "a", Name: "a"}); err != nil {
		t.Fatal(err)
	}
	var last uint64
	err := l.Watch(ctx, ledger.Filter{}, 0, func(e ledger.Event) error {
		last = e.Revision
		go v.set(false, false)
		return nil
	})
	if fault.CodeOf(err) != fault.Unreachable || last != 1 {
		t.Fatalf("broken watch at %d gave %v", last, err)
	}
	if _, err := v.l.Propose(ctx, ledger.PutWorkspace{ID: "b", Name: "b"}); err != nil {
		t.Fatal(err)
	}
	stop := errors.New("stop")
	err = l.Watch(ctx, ledger.Filter{}, last, func(e ledger.Event) error {
		if e.Revision != 2 {
			return fmt.Errorf("event %d", e.Revision)
		}
		return stop
	})
	if !errors.Is(err, stop) {
		t.Fatalf("resumed watch gave %v", err)
	}
}

// forgetful is a voter whose events are all gone.
type forgetful struct{ *ledgertest.Fake }

func (forgetful) Watch(context.Context, ledger.Filter, uint64, func(ledger.Event) error) error {
	return ledger.Compacted(0, 7)
}

func TestWatchFromACompactedRevision(t *testing.T) {
	var work sync.WaitGroup
	defer work.Wait()
	l, err := Open(t.TempDir(), OpenerFunc(func(context.Context) (io.ReadWriteCloser, error) {
		here, there := net.Pipe()
		work.Add(1)
		go func() { defer work.Done(); _ = Serve(context.Background(), forgetful{ledgertest.NewFake(nil)}, there) }()
		return here, nil
	}), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = l.Watch(context.Background(), ledger.Filter{}, 0, func(ledger.Event) error { return nil })
	if !errors.Is(err, ledger.ErrCompacted) || fault.CodeOf(err) != fault.Conflict {
		t.Fatalf("got %v", err)
	}
}

func TestCopiesAreBounded(t *testing.T) {
	v := newVoter(t)
	dir := t.TempDir()
	l := open(t, dir, v, Options{MaxCached: 10})
	ctx := context.Background()
	for i := range 25 {
		if _, err := l.Propose(ctx, ledger.PutObject{Workspace: "w", ID: fmt.Sprint(i), Object: ledger.Object{Root: "r"}}); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.Status().CachedCount; n != 10 {
		t.Fatalf("%d copies", n)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	v.set(true, false)
	l = open(t, dir, v, Options{MaxCached: 10})
	if n := l.Status().CachedCount; n != 10 {
		t.Fatalf("%d copies after a restart", n)
	}
	if _, err := l.Get(ctx, ledger.Key{Kind: ledger.KindObject, Workspace: "w", ID: "24"}, 0); err != nil {
		t.Fatalf("newest copy: %v", err)
	}
}

func TestServeRefusesBadFrames(t *testing.T) {
	for name, bytes := range map[string][]byte{
		"too long":   {0xff, 0xff, 0xff, 0xff},
		"not JSON":   {0, 0, 0, 1, '{'},
		"late watch": append(append([]byte{0, 0, 0, 23}, `{"seq":1,"op":"moon"}  `...), append([]byte{0, 0, 0, 27}, `{"op":"watch","filter":{}} `...)...),
	} {
		here, there := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- Serve(context.Background(), ledgertest.NewFake(nil), there) }()
		go func() { _, _ = io.Copy(io.Discard, here) }()
		if _, err := here.Write(bytes); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if err == nil {
				t.Errorf("%s: accepted", name)
			}
		case <-time.After(ledgertest.Patience):
			t.Fatalf("%s: serve does not end", name)
		}
		_ = here.Close()
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	here, there := net.Pipe()
	defer here.Close()
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ledgertest.NewFake(nil), there) }()
	if err := writeFrame(here, request{Op: "watch", Filter: &ledger.Filter{}}); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(ledgertest.Patience):
		t.Fatal("serve outlives its context")
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, b []byte) {
		here, there := net.Pipe()
		go func() { _, _ = here.Write(b); _ = here.Close() }()
		go func() { _, _ = io.Copy(io.Discard, here) }()
		_ = Serve(context.Background(), ledgertest.NewFake(nil), there)
	})
}

package call

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/beammesh/beammesh/node/auth"
	"github.com/beammesh/beammesh/node/owner"
	"github.com/beammesh/beammesh/node/token"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/beammesh/v1/beammeshv1connect"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/proto/fault/faultconnect"
)

const patience = time.Minute

// fakeTasks is an owner whose tasks end when the test says so.
type fakeTasks struct {
	mu        sync.Mutex
	seq       int
	tasks     map[string]owner.Request
	cancelled map[string]string
	submit    func(owner.Request) error // before a task is taken
	auto      bool                      // end at once with the arguments as the result
	more      chan struct{}             // one token: something changed
}

func newFakeTasks() *fakeTasks {
	return &fakeTasks{tasks: map[string]owner.Request{}, cancelled: map[string]string{}, more: make(chan struct{}, 1)}
}

func (f *fakeTasks) poke() {
	select {
	case f.more <- struct{}{}:
	default:
	}
}

func (f *fakeTasks) Submit(_ context.Context, r owner.Request) (string, error) {
	if f.submit != nil {
		if err := f.submit(r); err != nil {
			return "", err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.poke()
	f.seq++
	id := fmt.Sprint("task-", f.seq)
	f.tasks[id] = r
	if f.auto {
		go r.Notify.Done(id, &beamv1.Outcome{TaskId: id, Status: owner.Complete, Result: r.Args})
	}
	return id, nil
}

func (f *fakeTasks) Cancel(id, reason string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.poke()
	f.cancelled[id] = reason
	go f.tasks[id].Notify.Done(id, &beamv1.Outcome{TaskId: id, Status: owner.Cancelled})
	return nil
}

func (f *fakeTasks) Forget(string) {}

// of finds the task with these arguments.
func (f *fakeTasks) of(args string) (string, owner.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, r := range f.tasks {
		if string(r.Args) == args {
			return id, r
		}
	}
	return "", owner.Request{}
}

func (f *fakeTasks) count() (tasks, cancelled int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.tasks), len(f.cancelled)
}

func (f *fakeTasks) await(t *testing.T, what string, is func() bool) {
	t.Helper()
	limit := time.After(patience)
	for !is() {
		select {
		case <-f.more:
		case <-limit:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

type bench struct {
	t *testing.T
	s *Service
	f *fakeTasks
	beammeshv1connect.CallServiceClient
}

func newBench(t *testing.T) *bench {
	t.Helper()
	f := newFakeTasks()
	s := &Service{Tasks: f, Log: slog.New(slog.DiscardHandler)}
	v := auth.VerifierFunc(func(_ context.Context, bearer string) (auth.Identity, error) {
		if bearer == "" {
			return auth.Identity{}, fault.New(fault.Unauthorized, "no token", "")
		}
		return auth.Identity{ID: "id", Workspace: bearer, Scopes: []token.Scope{token.Invoke}}, nil
	})
	mux := http.NewServeMux()
	mux.Handle(beammeshv1connect.NewCallServiceHandler(s, connect.WithInterceptors(auth.Interceptor{Verifier: v})))
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	t.Cleanup(s.Close)
	return &bench{t, s, f, beammeshv1connect.NewCallServiceClient(srv.Client(), srv.URL)}
}

func as[M any](ws string, m *M) *connect.Request[M] {
	r := connect.NewRequest(m)
	if ws != "" {
		r.Header().Set("Authorization", "Bearer "+ws)
	}
	return r
}

func code(err error) fault.Code {
	if err == nil {
		return ""
	}
	return fault.CodeOf(faultconnect.Decode(err))
}

func (b *bench) open(m *beamv1.OpenRequest) *beamv1.OpenResponse {
	b.t.Helper()
	r, err := b.Open(b.t.Context(), as("ws", m))
	if err != nil {
		b.t.Fatal(err)
	}
	return r.Msg
}

func (b *bench) put(id string, first int, last bool, items ...string) (int, error) {
	m := &beamv1.PutRequest{MapId: id, FirstIndex: uint64(first), Last: last}
	for _, i := range items {
		m.Items = append(m.Items, []byte(i))
	}
	r, err := b.Put(b.t.Context(), as("ws", m))
	if err != nil {
		return 0, err
	}
	return int(r.Msg.Credit), nil
}

func (b *bench) mustPut(id string, first int, last bool, items ...string) int {
	b.t.Helper()
	n, err := b.put(id, first, last, items...)
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

// results reads events from a number on until the end, or until stop says so.
func (b *bench) results(id string, from uint64, stop func(*beamv1.ResultEvent) bool) (evs []*beamv1.ResultEvent, err error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	s, err := b.Results(ctx, as("ws", &beamv1.ResultsRequest{MapId: id, FromEvent: from}))
	if err != nil {
		return nil, err
	}
	defer s.Close()
	for s.Receive() {
		if s.Msg().GetKeepalive() {
			continue
		}
		evs = append(evs, s.Msg())
		if stop != nil && stop(s.Msg()) {
			return evs, nil
		}
	}
	return evs, s.Err()
}

func TestMap(t *testing.T) {
	b := newBench(t)
	b.f.auto = true
	o := b.open(&beamv1.OpenRequest{StubId: "stub"})
	if o.Credit != defaultInFlight {
		t.Errorf("credit %d", o.Credit)
	}
	b.mustPut(o.MapId, 0, false, "a", "b")
	b.mustPut(o.MapId, 2, true, "c")
	evs, err := b.results(o.MapId, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := map[uint64]string{}
	for i, e := range evs {
		if e.Event != uint64(i) {
			t.Errorf("event %d comes as %d", e.Event, i)
		}
		if out := e.GetOutcome(); out != nil {
			got[e.Index] = string(out.Result)
		}
	}
	if len(got) != 3 || got[0] != "a" || got[1] != "b" || got[2] != "c" || !evs[len(evs)-1].GetEnd() {
		t.Errorf("results %v of %v", got, evs)
	}
	// All of it can be read again: the last message may have been lost.
	for from := range uint64(len(evs)) {
		again, err := b.results(o.MapId, from, nil)
		if err != nil || len(again) != len(evs)-int(from) || again[0].Event != from {
			t.Errorf("from %d: %v, %v", from, again, err)
		}
	}
	if _, err := b.results(o.MapId, 99, nil); code(err) != fault.Invalid {
		t.Errorf("an event that is not there: %v", err)
	}
}

func TestCreditBoundsWhatRuns(t *testing.T) {
	b := newBench(t)
	o := b.open(&beamv1.OpenRequest{StubId: "stub", MaxInFlight: 3})
	if o.Credit != 3 {
		t.Errorf("credit %d", o.Credit)
	}
	if n := b.mustPut(o.MapId, 0, false, "a", "b"); n != 1 {
		t.Errorf("credit %d after two of three", n)
	}
	if _, err := b.put(o.MapId, 2, false, "c", "d"); code(err) != fault.Conflict {
		t.Errorf("two items on a credit of one: %v", err)
	}
	if n := b.mustPut(o.MapId, 2, false, "c"); n != 0 {
		t.Errorf("credit %d at the bound", n)
	}
	// Waiting for credit ends with the first result.
	done := make(chan int, 1)
	go func() {
		r, err := b.Put(t.Context(), as("ws", &beamv1.PutRequest{MapId: o.MapId, FirstIndex: 3, WaitMs: 30_000}))
		if err != nil {
			t.Error(err)
			done <- -1
			return
		}
		done <- int(r.Msg.Credit)
	}()
	id, r := b.f.of("b")
	r.Notify.Done(id, &beamv1.Outcome{Status: owner.Complete})
	select {
	case n := <-done:
		if n != 1 {
			t.Errorf("credit %d after one result", n)
		}
	case <-time.After(patience):
		t.Fatal("nobody woke the waiting Put")
	}
}

func TestPutIsRepeated(t *testing.T) {
	b := newBench(t)
	o := b.open(&beamv1.OpenRequest{StubId: "stub"})
	b.mustPut(o.MapId, 0, false, "a", "b")
	b.mustPut(o.MapId, 0, false, "a", "b") // all of it
	b.mustPut(o.MapId, 1, false, "b", "c") // a part of it
	b.mustPut(o.MapId, 0, false)           // nothing
	b.mustPut(o.MapId, 2, true, "c", "d")  // with the last
	b.mustPut(o.MapId, 2, true, "c", "d")  // again
	b.mustPut(o.MapId, 0, true, "a")       // an old one
	if n, _ := b.f.count(); n != 4 {
		t.Errorf("%d tasks of 4 items", n)
	}
	for _, c := range []struct {
		name  string
		first int
		items []string
		want  fault.Code
	}{{"gap", 9, []string{"x"}, fault.Conflict}, {"after the last", 4, []string{"x"}, fault.Conflict}} {
		if _, err := b.put(o.MapId, c.first, false, c.items...); code(err) != c.want {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestPutBounds(t *testing.T) {
	b := newBench(t)
	o := b.open(&beamv1.OpenRequest{StubId: "stub"})
	many := make([]string, maxPutItems+1)
	if _, err := b.put(o.MapId, 0, false, many...); code(err) != fault.TooLarge {
		t.Errorf("257 items: %v", err)
	}
	half := string(make([]byte, maxPutBytes/2+1))
	if _, err := b.put(o.MapId, 0, false, half, half); code(err) != fault.TooLarge {
		t.Errorf("above 1 MiB: %v", err)
	}
	if _, err := b.put(o.MapId, 0, false, half+half); err != nil {
		t.Errorf("one large item: %v", err)
	}
	if _, err := b.put(o.MapId, 1, false, string(make([]byte, maxItem+1))); code(err) != fault.TooLarge {
		t.Errorf("above 16 MiB: %v", err)
	}
	if _, err := b.Open(t.Context(), as("ws", &beamv1.OpenRequest{MaxInFlight: maxInFlight + 1})); code(err) != fault.Invalid {
		t.Errorf("too many in flight: %v", err)
	}
	for _, ws := range []string{"", "another"} {
		want := fault.NotFound
		if ws == "" {
			want = fault.Unauthorized
		}
		if _, err := b.Put(t.Context(), as(ws, &beamv1.PutRequest{MapId: o.MapId})); code(err) != want {
			t.Errorf("workspace %q puts: %v", ws, err)
		}
		if _, err := b.Cancel(t.Context(), as(ws, &beamv1.CancelRequest{MapId: o.MapId})); code(err) != want {
			t.Errorf("workspace %q cancels: %v", ws, err)
		}
	}
}

func TestSubmitFails(t *testing.T) {
	b := newBench(t)
	b.f.submit = func(r owner.Request) error {
		if string(r.Args) == "bad" {
			return fault.New(fault.NoCapacity, "no room", "wait")
		}
		return nil
	}
	b.f.auto = true
	o := b.open(&beamv1.OpenRequest{StubId: "stub"})
	b.mustPut(o.MapId, 0, true, "good", "bad")
	evs, err := b.results(o.MapId, 0, nil)
	if err != nil || len(evs) != 3 {
		t.Fatalf("%v, %v", evs, err)
	}
	for _, e := range evs[:2] {
		want := owner.Complete
		if e.Index == 1 {
			want = owner.Error
		}
		if e.GetOutcome().Status != want {
			t.Errorf("item %d: %v", e.Index, e)
		}
	}
}

func TestReaderComesBack(t *testing.T) {
	b := newBench(t)
	o := b.open(&beamv1.OpenRequest{StubId: "stub"})
	b.mustPut(o.MapId, 0, true, "a", "b", "c")
	end := func(args string) {
		id, r := b.f.of(args)
		r.Notify.Log(t.Context(), id, 1, []byte("from "+args))
		r.Notify.Done(id, &beamv1.Outcome{Status: owner.Complete, Result: []byte(args)})
	}
	end("a")
	evs, err := b.results(o.MapId, 0, func(e *beamv1.ResultEvent) bool { return e.GetOutcome() != nil })
	if err != nil || len(evs) != 2 || string(evs[0].GetLog().GetData()) != "from a" || evs[1].GetOutcome().TaskId == "" {
		t.Fatalf("%v, %v", evs, err)
	}
	end("b")
	end("c")
	evs, err = b.results(o.MapId, 2, nil)
	if err != nil || len(evs) != 5 || evs[0].Event != 2 || !evs[4].GetEnd() {
		t.Errorf("%v, %v", evs, err)
	}
}

func TestCancel(t *testing.T) {
	b := newBench(t)
	o := b.open(&beamv1.OpenRequest{StubId: "stub"})
	b.mustPut(o.MapId, 0, false, "a", "b", "c")
	id, r := b.f.of("a")
	r.Notify.Done(id, &beamv1.Outcome{Status: owner.Complete})
	resp, err := b.Cancel(t.Context(), as("ws", &beamv1.CancelRequest{MapId: o.MapId}))
	if err != nil || resp.Msg.Cancelled != 2 {
		t.Fatalf("%v, %v", resp, err)
	}
	evs, err := b.results(o.MapId, 0, nil)
	if err != nil || len(evs) != 4 || !evs[3].GetEnd() {
		t.Errorf("%v, %v", evs, err)
	}
	if _, err := b.put(o.MapId, 3, false, "d"); code(err) != fault.Cancelled {
		t.Errorf("put after cancel: %v", err)
	}
}

// An item whose submission is under way when the map is cancelled is cancelled
// as soon as it has an id.
func TestCancelDuringPut(t *testing.T) {
	b := newBench(t)
	there, release := make(chan struct{}), make(chan struct{})
	b.f.submit = func(owner.Request) error { close(there); <-release; return nil }
	o := b.open(&beamv1.OpenRequest{StubId: "stub"})
	put := make(chan error, 1)
	go func() { _, err := b.put(o.MapId, 0, true, "a"); put <- err }()
	<-there
	resp, err := b.Cancel(t.Context(), as("ws", &beamv1.CancelRequest{MapId: o.MapId}))
	if err != nil || resp.Msg.Cancelled != 0 {
		t.Fatalf("%v, %v", resp, err)
	}
	close(release)
	if err := <-put; err != nil {
		t.Error(err)
	}
	evs, err := b.results(o.MapId, 0, nil)
	if err != nil || len(evs) != 2 || evs[0].GetOutcome().GetStatus() != owner.Cancelled {
		t.Errorf("%v, %v", evs, err)
	}
	if _, n := b.f.count(); n != 1 {
		t.Errorf("%d tasks were cancelled", n)
	}
}

func TestNobodyReads(t *testing.T) {
	for _, headless := range []bool{false, true} {
		t.Run(fmt.Sprint("headless ", headless), func(t *testing.T) {
			b := newBench(t)
			var o *beamv1.OpenResponse
			for gap := 50 * time.Millisecond; ; gap *= 2 { // longer than this machine takes to put
				b.s.mu.Lock()
				b.s.gap = gap
				b.s.mu.Unlock()
				o = b.open(&beamv1.OpenRequest{StubId: "stub", Headless: headless})
				_, err := b.put(o.MapId, 0, true, "a")
				if err == nil {
					break
				}
				if code(err) != fault.NotFound || gap > patience {
					t.Fatal(err)
				}
			}
			deadline := time.Now().Add(patience)
			for {
				b.s.mu.Lock()
				n := len(b.s.maps)
				b.s.mu.Unlock()
				if n == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("the map lives on")
				}
				time.Sleep(time.Millisecond)
			}
			if _, err := b.results(o.MapId, 0, nil); code(err) != fault.NotFound {
				t.Errorf("reading a map that is gone: %v", err)
			}
			if !headless {
				b.f.await(t, "the task is cancelled", func() bool { _, n := b.f.count(); return n == 1 })
			} else if _, n := b.f.count(); n != 0 {
				t.Error("a headless task was cancelled")
			}
			// What ends later is nobody's, and harms nobody.
			id, r := b.f.of("a")
			r.Notify.Log(t.Context(), id, 1, []byte("late"))
			r.Notify.Done(id, &beamv1.Outcome{})
		})
	}
}

func TestReaderKeepsTheMap(t *testing.T) {
	b := newBench(t)
	b.s.gap = 30 * time.Millisecond
	c := newCalls("m", "ws", "stub", false, "", 10, newShelf(""))
	b.s.maps = map[string]*calls{"m": c}
	c.expireAfter(time.Hour, func() { b.s.abandoned(c) })
	if err := c.attach(0); err != nil {
		t.Fatal(err)
	}
	b.s.abandoned(c) // its timer fired just before the reader came
	if _, err := b.put("m", 0, false, "a"); err != nil {
		t.Errorf("the map is gone: %v", err)
	}
	c.detach()
}

func TestLogsAreBounded(t *testing.T) {
	c := newCalls("m", "ws", "stub", false, "", 10, newShelf(""))
	c.expireAfter(time.Hour, func() {})
	piece := bytes.Repeat([]byte("x"), 1<<20)
	for range 20 { // nobody reads: what is too much is dropped
		c.log(t.Context(), 0, "t", 1, piece)
	}
	if c.fresh > unsentLogs+2<<20 {
		t.Errorf("%d bytes of logs are kept", c.fresh)
	}
	if err := c.attach(0); err != nil {
		t.Fatal(err)
	}
	// With a reader it waits until the reader has caught up, or the task is over.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { c.log(ctx, 0, "t", 1, piece); close(done) }()
	select {
	case <-done:
		t.Error("did not wait for the reader")
	case <-time.After(20 * time.Millisecond):
	}
	cancel()
	<-done
	done = make(chan struct{})
	go func() { c.log(t.Context(), 0, "t", 1, piece); close(done) }()
	evs, err := c.next(t.Context(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.sent(evs[len(evs)-1].Event + 1)
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("waits on after the reader has caught up")
	}
	c.close()
}

func TestKeptEventsAreBounded(t *testing.T) {
	c := newCalls("m", "ws", "stub", false, "", 1000, newShelf(t.TempDir()))
	c.expireAfter(time.Hour, func() {})
	items := make([][]byte, 100)
	if _, _, err := c.take(0, items, true); err != nil {
		t.Fatal(err)
	}
	if err := c.attach(0); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(100) {
		c.finish(i, "t", &beamv1.Outcome{Result: make([]byte, 1<<20)})
	}
	if n := c.creditLocked(); n != 0 {
		t.Errorf("credit %d with 100 MiB unread", n)
	}
	c.sent(100)
	if c.kept > keptBytes || c.fresh != 0 || c.first == 0 {
		t.Errorf("kept %d, fresh %d, first %d", c.kept, c.fresh, c.first)
	}
	if n := c.creditLocked(); n != 1000 {
		t.Errorf("credit %d after all was read", n)
	}
	// What is gone is said, also to a reader that stands there.
	if err := c.attach(0); fault.CodeOf(err) != fault.Conflict {
		t.Errorf("attach: %v", err)
	}
	if _, err := c.next(t.Context(), 0, time.Hour); fault.CodeOf(err) != fault.Conflict {
		t.Errorf("next: %v", err)
	}
	c.close()
	if _, err := c.next(t.Context(), 100, time.Hour); !errors.Is(err, errClosed) {
		t.Errorf("a closed map: %v", err)
	}
}

func TestNumberOfMapsIsBounded(t *testing.T) {
	b := newBench(t)
	b.f.auto = true
	read := b.open(&beamv1.OpenRequest{StubId: "stub"})
	b.mustPut(read.MapId, 0, true, "a")
	if _, err := b.results(read.MapId, 0, nil); err != nil {
		t.Fatal(err)
	}
	// The stream's handler may still be on its way out.
	deadline := time.Now().Add(patience)
	for {
		b.s.mu.Lock()
		over := b.s.maps[read.MapId].read()
		b.s.mu.Unlock()
		if over || time.Now().After(deadline) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	for range maxMaps { // the one that was read makes room
		b.open(&beamv1.OpenRequest{StubId: "stub"})
	}
	if _, err := b.Open(t.Context(), as("ws", &beamv1.OpenRequest{})); code(err) != fault.NoCapacity {
		t.Errorf("one too many: %v", err)
	}
	b.s.Close()
	if _, err := b.Open(t.Context(), as("ws", &beamv1.OpenRequest{})); code(err) != fault.Unreachable {
		t.Errorf("after Close: %v", err)
	}
}

package function

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"github.com/beammesh/beammesh/node/auth"
	"github.com/beammesh/beammesh/node/owner"
	"github.com/beammesh/beammesh/node/token"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/client/functionpb"
	"github.com/beammesh/beammesh/proto/client/functionpb/functionpbconnect"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/proto/fault/faultconnect"
)

const patience = time.Minute

// fakeTasks runs every task as script says.
type fakeTasks struct {
	script func(ctx context.Context, n owner.Notify)
	err    error

	mu     sync.Mutex
	last   owner.Request
	forgot chan string
}

func (f *fakeTasks) Submit(_ context.Context, r owner.Request) (string, error) {
	if f.err != nil {
		return "", f.err
	}
	f.mu.Lock()
	f.last = r
	f.mu.Unlock()
	go f.script(context.Background(), r.Notify)
	return "task-1", nil
}

func (f *fakeTasks) Forget(id string) { f.forgot <- id }

func serve(t *testing.T, f *fakeTasks) functionpbconnect.FunctionServiceClient {
	t.Helper()
	f.forgot = make(chan string, 16)
	v := auth.VerifierFunc(func(_ context.Context, bearer string) (auth.Identity, error) {
		if bearer != "good" {
			return auth.Identity{}, fault.New(fault.Unauthorized, "no token", "")
		}
		return auth.Identity{Workspace: "ws", Scopes: []token.Scope{token.Invoke}}, nil
	})
	mux := http.NewServeMux()
	mux.Handle(functionpbconnect.NewFunctionServiceHandler(&Service{Tasks: f}, connect.WithInterceptors(auth.Interceptor{Verifier: v})))
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return functionpbconnect.NewFunctionServiceClient(srv.Client(), srv.URL)
}

func invoke(ctx context.Context, c functionpbconnect.FunctionServiceClient, m *functionpb.FunctionInvokeRequest) (*connect.ServerStreamForClient[functionpb.FunctionInvokeResponse], error) {
	r := connect.NewRequest(m)
	r.Header().Set("Authorization", "Bearer good")
	return c.FunctionInvoke(ctx, r)
}

func TestInvoke(t *testing.T) {
	want := &beamv1.Outcome{TaskId: "task-1", Status: owner.Complete, Result: []byte("result"), NodeName: "box"}
	f := &fakeTasks{script: func(ctx context.Context, n owner.Notify) {
		for range 500 { // more than the channel holds
			n.Log(ctx, "task-1", 1, []byte("out\n"))
		}
		n.Log(ctx, "task-1", 2, []byte("err\n"))
		n.Done("task-1", want)
	}}
	c := serve(t, f)
	s, err := invoke(t.Context(), c, &functionpb.FunctionInvokeRequest{StubId: "stub", Args: []byte("args"), Headless: true})
	if err != nil {
		t.Fatal(err)
	}
	var out [3]strings.Builder
	var last *functionpb.FunctionInvokeResponse
	for s.Receive() {
		m := s.Msg()
		if last != nil {
			t.Errorf("%v comes after the last message", m)
		}
		if m.TaskId != "task-1" {
			t.Errorf("message without the task's id: %v", m)
		}
		if m.Done {
			last = m
			continue
		}
		out[m.Fd].WriteString(m.Output)
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	if out[1].String() != strings.Repeat("out\n", 500) || out[2].String() != "err\n" {
		t.Errorf("output has %d and %d bytes", out[1].Len(), out[2].Len())
	}
	if last == nil || string(last.Result) != "result" || last.ExitCode != 0 || last.Outcome.GetNodeName() != "box" || last.Outcome.Result != nil {
		t.Errorf("last message %v", last)
	}
	if string(want.Result) != "result" {
		t.Error("the owner's own outcome was changed")
	}
	if f.last.Workspace != "ws" || f.last.StubID != "stub" || string(f.last.Args) != "args" || !f.last.Headless {
		t.Errorf("submitted %+v", f.last)
	}
	if id := <-f.forgot; id != "task-1" {
		t.Errorf("forgot %s", id)
	}
}

func TestFailure(t *testing.T) {
	f := &fakeTasks{script: func(_ context.Context, n owner.Notify) {
		n.Done("task-1", &beamv1.Outcome{Status: owner.Error, Error: &beamv1.ErrorDetail{Code: string(fault.OutOfMemory), Message: "no memory"},
			Exception: &beamv1.RemoteException{Traceback: "the traceback"}})
	}}
	c := serve(t, f)
	s, err := invoke(t.Context(), c, &functionpb.FunctionInvokeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var last *functionpb.FunctionInvokeResponse
	for s.Receive() {
		last = s.Msg()
	}
	if last == nil || !last.Done || last.ExitCode != 137 || last.Outcome.GetError().GetMessage() != "no memory" || last.Result != nil {
		t.Errorf("last message %v, %v", last, s.Err())
	}
	for _, m := range []struct {
		name string
		req  *functionpb.FunctionInvokeRequest
		err  error
		want fault.Code
	}{
		{"too large", &functionpb.FunctionInvokeRequest{Args: make([]byte, MaxArgs+1)}, nil, fault.TooLarge},
		{"refused", &functionpb.FunctionInvokeRequest{}, fault.New(fault.NotFound, "no such stub", ""), fault.NotFound},
	} {
		f.err = m.err
		s, err := invoke(t.Context(), c, m.req)
		if err == nil {
			for s.Receive() {
				t.Errorf("%s: got %v", m.name, s.Msg())
			}
			err = s.Err()
		}
		if got := fault.CodeOf(faultconnect.Decode(err)); got != m.want {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}

// A client that hangs up is told to the owner, and nobody waits for it.
func TestClientHangsUp(t *testing.T) {
	logged := make(chan struct{})
	f := &fakeTasks{script: func(ctx context.Context, n owner.Notify) {
		for range 100_000 { // far more than anybody reads
			n.Log(ctx, "task-1", 1, []byte(strings.Repeat("x", 1000)))
		}
		close(logged)
	}}
	c := serve(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := invoke(ctx, c, &functionpb.FunctionInvokeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !s.Receive() {
		t.Fatal(s.Err())
	}
	cancel()
	select {
	case <-f.forgot:
	case <-time.After(patience):
		t.Fatal("the owner was not told")
	}
	select {
	case <-logged:
	case <-time.After(patience):
		t.Error("the program waits for a client that is gone")
	}
}

// Whatever the pieces, the text is the same and valid.
func TestCharactersAreNotCut(t *testing.T) {
	text := "a é € 😀 ü\n" + strings.Repeat("😀", 50)
	for size := 1; size <= len(text); size++ {
		s := newStream()
		var got strings.Builder
		for i := 0; i < len(text); i += size {
			piece := s.text(1, []byte(text[i:min(i+size, len(text))]))
			if !utf8.ValidString(piece) {
				t.Fatalf("pieces of %d: %q is not valid", size, piece)
			}
			got.WriteString(piece)
			if other := s.text(2, []byte("x")); other != "x" { // the other descriptor does not mix in
				t.Fatalf("descriptor 2 gave %q", other)
			}
		}
		if got.String() != text || len(s.unfinished()) != 0 {
			t.Fatalf("pieces of %d: %q", size, got.String())
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add([]byte("é€😀"), 1)
	f.Add([]byte{0xff, 0xe2, 0x82, 'a', 0xf0, 0x9f}, 2)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		if size < 1 || size > 64 {
			return
		}
		s := newStream()
		var got strings.Builder
		for i := 0; i < len(in); i += size {
			got.WriteString(s.text(1, in[i:min(i+size, len(in))]))
		}
		for _, u := range s.unfinished() {
			got.WriteString(u)
		}
		if !utf8.ValidString(got.String()) {
			t.Fatalf("%q", got.String())
		}
		if utf8.Valid(in) && got.String() != string(in) {
			t.Fatalf("%q became %q", in, got.String())
		}
	})
}

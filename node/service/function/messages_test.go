package function

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/beammesh/beammesh/node/auth"
	"github.com/beammesh/beammesh/node/owner"
	"github.com/beammesh/beammesh/node/token"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/client/functionpb"
	"github.com/beammesh/beammesh/proto/client/functionpb/functionpbconnect"
)

// tasks is an owner whose one task does what run says.
type tasks struct {
	run       func(n owner.Notify)
	forgotten chan string
}

func (t *tasks) Submit(_ context.Context, r owner.Request) (string, error) {
	go t.run(r.Notify)
	return "task-1", nil
}

func (t *tasks) Forget(id string) { t.forgotten <- id }

func invokeRun(t *testing.T, ctx context.Context, run func(n owner.Notify)) (*connect.ServerStreamForClient[functionpb.FunctionInvokeResponse], *tasks) {
	t.Helper()
	fake := &tasks{run: run, forgotten: make(chan string, 1)}
	everyone := auth.VerifierFunc(func(context.Context, string) (auth.Identity, error) {
		return auth.Identity{Scopes: []token.Scope{token.Invoke}}, nil
	})
	mux := http.NewServeMux()
	mux.Handle(functionpbconnect.NewFunctionServiceHandler(&Service{Tasks: fake}, connect.WithInterceptors(auth.Interceptor{Verifier: everyone})))
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	s, err := functionpbconnect.NewFunctionServiceClient(srv.Client(), srv.URL).FunctionInvoke(ctx, connect.NewRequest(&functionpb.FunctionInvokeRequest{StubId: "s"}))
	if err != nil {
		t.Fatal(err)
	}
	return s, fake
}

func done(o *beamv1.Outcome) func(owner.Notify) {
	return func(n owner.Notify) { n.Done("task-1", o) }
}

// Whatever comes first has the task's id, and nothing that was printed comes
// behind the end.
func TestMessagesOfACall(t *testing.T) {
	ok := &beamv1.Outcome{Status: owner.Complete, Result: []byte("value")}
	for name, run := range map[string]func(owner.Notify){
		"at once": done(ok),
		"prints": func(n owner.Notify) {
			n.Log(context.Background(), "task-1", 1, []byte("hello\n"))
			n.Done("task-1", ok)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, fake := invokeRun(t, t.Context(), run)
			text, ended := "", false
			for s.Receive() {
				m := s.Msg()
				if m.TaskId != "task-1" {
					t.Errorf("a message without the task's id: %v", m)
				}
				if ended {
					t.Errorf("behind the end: %v", m)
				}
				text += m.Output
				if ended = m.Done; ended && string(m.Result) != "value" {
					t.Errorf("result %q", m.Result)
				}
			}
			if err := s.Err(); err != nil || !ended {
				t.Fatalf("ended %v: %v", ended, err)
			}
			if name == "prints" && text != "hello\n" {
				t.Errorf("output %q", text)
			}
			<-fake.forgotten
		})
	}
}

// A call that takes long says its id long before its end, and one whose client
// leaves is forgotten.
func TestIDOfALongCall(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, fake := invokeRun(t, ctx, func(owner.Notify) {}) // never ends
	if !s.Receive() || s.Msg().TaskId != "task-1" || s.Msg().Done {
		t.Fatalf("first message: %v, %v", s.Msg(), s.Err())
	}
	cancel()
	select {
	case id := <-fake.forgotten:
		if id != "task-1" {
			t.Errorf("forgot %q", id)
		}
	case <-time.After(time.Minute):
		t.Fatal("the task of a client that left was not forgotten")
	}
}

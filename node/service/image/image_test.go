package image

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/beammesh/beammesh/node/auth"
	"github.com/beammesh/beammesh/node/token"
	"github.com/beammesh/beammesh/proto/client/imagepb"
	"github.com/beammesh/beammesh/proto/client/imagepb/imagepbconnect"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/proto/fault/faultconnect"
)

// failing is a Builder whose step prints and fails.
type failing struct{ err error }

func (failing) Find(context.Context, string, Spec) (string, bool, error) { return "id", false, nil }

func (f failing) Build(_ context.Context, _ string, _ Spec, say func(string)) (Built, error) {
	say("pip: no such package")
	return Built{}, f.err
}

// A client that shows messages sees each line of a failed step once; one that
// reads errors has them all in the error.
func TestFailedBuildTellsEachLineOnce(t *testing.T) {
	f := failing{fault.New(fault.BuildFailed, "step 1 of 1: exit code 1\n  pip: no such package", "check the names")}
	v := auth.VerifierFunc(func(context.Context, string) (auth.Identity, error) {
		return auth.Identity{Workspace: "ws", Scopes: []token.Scope{token.Invoke}}, nil
	})
	mux := http.NewServeMux()
	mux.Handle(imagepbconnect.NewImageServiceHandler(&Service{Builder: f}, connect.WithInterceptors(auth.Interceptor{Verifier: v})))
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	s, err := imagepbconnect.NewImageServiceClient(srv.Client(), srv.URL).BuildImage(t.Context(),
		connect.NewRequest(&imagepb.BuildImageRequest{PythonVersion: "python3", PythonPackages: []string{"nosuch"}}))
	if err != nil {
		t.Fatal(err)
	}
	var shown strings.Builder
	for s.Receive() {
		shown.WriteString(s.Msg().Msg)
	}
	if got, want := shown.String(), "pip: no such package\nstep 1 of 1: exit code 1\nhint: check the names\n"; got != want {
		t.Errorf("shown is %q, want %q", got, want)
	}
	if got := fault.From(faultconnect.Decode(s.Err())); got.Code != fault.BuildFailed || !strings.HasSuffix(got.Message, "\n  pip: no such package") || got.Hint != "check the names" {
		t.Errorf("the error is %+v", got)
	}
}

package gateway

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/beammesh/beammesh/content/blockstest"
	"github.com/beammesh/beammesh/node/api"
	"github.com/beammesh/beammesh/node/auth"
	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/ledger/ledgertest"
	"github.com/beammesh/beammesh/node/objects"
	"github.com/beammesh/beammesh/node/stub"
	"github.com/beammesh/beammesh/node/token"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/client/gatewaypb"
	"github.com/beammesh/beammesh/proto/client/gatewaypb/gatewaypbconnect"
	"github.com/beammesh/beammesh/proto/client/typespb"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/proto/fault/faultconnect"
)

type fakeTasks struct {
	stopped []string
	asked   []string
}

func (f *fakeTasks) List(_ context.Context, ws, status, stubID string, limit int) (*beamv1.ListTasksResponse, error) {
	f.asked = []string{ws, status, stubID, strconv.Itoa(limit)}
	return &beamv1.ListTasksResponse{Tasks: []*beamv1.TaskInfo{{Id: "t1", Status: "COMPLETE"}}}, nil
}

func (f *fakeTasks) Stop(_ context.Context, _, id string) error {
	f.stopped = append(f.stopped, id)
	if id == "bad" {
		return fault.New(fault.NotFound, "task bad is not known", "see 'beam task list'")
	}
	return nil
}

func (f *fakeTasks) Containers(context.Context, string) ([]*typespb.Container, []string) {
	return []*typespb.Container{{ContainerId: "c1"}}, nil
}

func (f *fakeTasks) StopContainer(_ context.Context, _, id string) error {
	if id != "c1" {
		return fault.New(fault.NotFound, "no such container", "")
	}
	return nil
}

type fakeTokens struct{}

func (fakeTokens) Issue(_ context.Context, ws, _ string, scopes []token.Scope, _ time.Duration) (string, string, error) {
	return "id", ws + " " + string(scopes[0]), nil
}
func (fakeTokens) SetActive(_ context.Context, _, _ string, active bool) error {
	if active {
		return fault.New(fault.Unsupported, "a revoked token cannot be used again", "")
	}
	return nil
}
func (fakeTokens) Delete(context.Context, string, string) error { return nil }

type fakePlacer struct{}

func (fakePlacer) Unplaceable(c stub.Config) (string, error) {
	switch c.GPU {
	case "H1000":
		return "", fault.New(fault.Invalid, "no GPU is called \"H1000\"", "did you mean H100?")
	case "H100":
		return "nobody has one now", nil
	}
	return "", nil
}

type bench struct {
	gatewaypbconnect.GatewayServiceClient
	s     *Service
	tasks *fakeTasks
	base  string
	http  *http.Client
}

func newBench(t *testing.T) *bench {
	t.Helper()
	s, err := New()
	if err != nil {
		t.Fatal(err)
	}
	l := ledgertest.NewFake(nil)
	if _, err := l.Propose(t.Context(), ledger.PutWorkspace{ID: "ws", Name: "ws"}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Propose(t.Context(), ledger.PutImage{Workspace: ledger.MeshScope, ID: "img", Image: ledger.Image{Roots: []string{root}}}); err != nil {
		t.Fatal(err)
	}
	tasks := &fakeTasks{}
	s.Ledger, s.Tasks, s.Tokens, s.Placer = l, tasks, fakeTokens{}, fakePlacer{}
	s.Objects = &objects.Objects{Blocks: &blockstest.Memory{}, Ledger: l, Dir: t.TempDir()}
	v := auth.VerifierFunc(func(_ context.Context, bearer string) (auth.Identity, error) {
		ws, scope, ok := strings.Cut(bearer, "/")
		if !ok {
			return auth.Identity{}, fault.New(fault.Unauthorized, "bad token", "")
		}
		return auth.Identity{Workspace: ws, Scopes: []token.Scope{token.Scope(scope)}}, nil
	})
	srv := api.New(slog.New(slog.DiscardHandler))
	srv.Mux.Handle(gatewaypbconnect.NewGatewayServiceHandler(s, connect.WithInterceptors(auth.Interceptor{Verifier: v,
		Open: map[string]bool{gatewaypbconnect.GatewayServiceAuthorizeProcedure: true}})))
	srv.Mux.HandleFunc("PUT "+UploadPath+"{workspace}/{hash}", s.Upload)
	addr, err := srv.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close(); _ = l.Close() })
	// As clients do: h2c for all, since an upload is a stream.
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	hc := &http.Client{Transport: &http.Transport{Protocols: &p}}
	t.Cleanup(hc.CloseIdleConnections)
	base := "http://" + addr.String()
	return &bench{gatewaypbconnect.NewGatewayServiceClient(hc, base), s, tasks, base, hc}
}

// root is some tree's.
const root = "bafyr4ibaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func as[M any](who string, m *M) *connect.Request[M] {
	r := connect.NewRequest(m)
	if who != "" {
		r.Header().Set("Authorization", "Bearer "+who)
	}
	return r
}

func code(err error) fault.Code {
	if err == nil {
		return ""
	}
	return fault.CodeOf(faultconnect.Decode(err))
}

func archive(t *testing.T, body string) (b []byte, hash string) {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	f, err := w.Create("app.py")
	if err == nil {
		_, err = io.WriteString(f, body)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	s := sha256.Sum256(buf.Bytes())
	return buf.Bytes(), hex.EncodeToString(s[:])
}

func (b *bench) upload(t *testing.T, to string, body []byte) (int, map[string]string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, to, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var m map[string]string
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, m
}

func TestUploadByURL(t *testing.T) {
	b := newBench(t)
	body, hash := archive(t, "x = 1")
	head, err := b.HeadObject(t.Context(), as("ws/invoke", &gatewaypb.HeadObjectRequest{Hash: hash}))
	if err != nil || head.Msg.Exists {
		t.Fatalf("%v, %v", head, err)
	}
	made, err := b.CreateObject(t.Context(), as("ws/invoke", &gatewaypb.CreateObjectRequest{Hash: hash, Size: int64(len(body))}))
	if err != nil || !strings.HasPrefix(made.Msg.PresignedUrl, b.base+UploadPath+"ws/"+hash) {
		t.Fatalf("%v, %v", made, err)
	}
	good, err := url.Parse(made.Msg.PresignedUrl)
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(u *url.URL, q url.Values)) string {
		u, q := *good, good.Query()
		change(&u, q)
		u.RawQuery = q.Encode()
		return u.String()
	}
	past := strconv.FormatInt(time.Now().Add(-time.Second).Unix(), 10)
	other, otherHash := archive(t, "y = 2")
	for name, to := range map[string]string{
		"no signature":      with(func(_ *url.URL, q url.Values) { q.Del("sig") }),
		"no expiry":         with(func(_ *url.URL, q url.Values) { q.Del("exp") }),
		"later expiry":      with(func(_ *url.URL, q url.Values) { q.Set("exp", "99999999999") }),
		"expired":           with(func(_ *url.URL, q url.Values) { q.Set("exp", past); q.Set("sig", b.s.sign("ws", hash, past)) }),
		"another workspace": with(func(u *url.URL, _ url.Values) { u.Path = UploadPath + "other/" + hash }),
		"another archive":   with(func(u *url.URL, _ url.Values) { u.Path = UploadPath + "ws/" + otherHash }),
	} {
		if st, m := b.upload(t, to, body); st != http.StatusForbidden || m["code"] != string(fault.Forbidden) {
			t.Errorf("%s: %d %v", name, st, m)
		}
	}
	if st, m := b.upload(t, good.String(), other); st != http.StatusBadRequest || m["code"] != string(fault.Invalid) {
		t.Errorf("another body: %d %v", st, m)
	}
	st, m := b.upload(t, good.String(), body)
	if st != http.StatusOK || m["object_id"] == "" {
		t.Fatalf("%d %v", st, m)
	}
	head, err = b.HeadObject(t.Context(), as("ws/invoke", &gatewaypb.HeadObjectRequest{Hash: hash}))
	if err != nil || !head.Msg.Exists || head.Msg.ObjectId != m["object_id"] || head.Msg.ObjectMetadata.Size != 5 {
		t.Errorf("%v, %v", head, err)
	}
	again, err := b.CreateObject(t.Context(), as("ws/invoke", &gatewaypb.CreateObjectRequest{Hash: hash}))
	if err != nil || again.Msg.PresignedUrl != "" || again.Msg.ObjectId != m["object_id"] {
		t.Errorf("what is there is to be sent again: %v, %v", again, err)
	}
	if _, err := b.CreateObject(t.Context(), as("ws/invoke", &gatewaypb.CreateObjectRequest{Hash: hash, Size: objects.MaxArchive + 1})); code(err) != fault.TooLarge {
		t.Errorf("too large: %v", err)
	}
	if _, err := b.CreateObject(t.Context(), as("ws/invoke", &gatewaypb.CreateObjectRequest{Hash: "../x"})); code(err) != fault.Invalid {
		t.Errorf("bad hash: %v", err)
	}
}

func TestUploadByStream(t *testing.T) {
	b := newBench(t)
	body, hash := archive(t, strings.Repeat("x = 1\n", 1000))
	send := func(hash string, size int) (*gatewaypb.PutObjectResponse, error) {
		s := b.PutObjectStream(t.Context())
		s.RequestHeader().Set("Authorization", "Bearer ws/invoke")
		for i := 0; i < len(body); i += size {
			if err := s.Send(&gatewaypb.PutObjectRequest{Hash: hash, ObjectContent: body[i:min(i+size, len(body))]}); err != nil {
				break // told by the answer
			}
		}
		r, err := s.CloseAndReceive()
		if err != nil {
			return nil, err
		}
		return r.Msg, nil
	}
	for _, size := range []int{7, len(body)} {
		if r, err := send(hash, size); err != nil || !r.Ok || r.ObjectId == "" {
			t.Errorf("pieces of %d: %v, %v", size, r, err)
		}
	}
	_, wrong := archive(t, "other")
	if r, err := send(wrong, 100); err != nil || r.Ok || !strings.Contains(r.ErrorMsg, "does not match its hash") {
		t.Errorf("wrong hash: %v, %v", r, err)
	}
	s := b.PutObjectStream(t.Context())
	s.RequestHeader().Set("Authorization", "Bearer ws/invoke")
	if _, err := s.CloseAndReceive(); code(err) != fault.Invalid {
		t.Errorf("nothing: %v", err)
	}
}

func TestStubs(t *testing.T) {
	b := newBench(t)
	body, hash := archive(t, "def f(): pass")
	if _, err := b.s.Objects.Put(t.Context(), "ws", hash, bytes.NewReader(body)); err != nil {
		t.Fatal(err)
	}
	obj, err := b.s.Objects.Find(t.Context(), "ws", hash)
	if err != nil {
		t.Fatal(err)
	}
	want := func() *gatewaypb.GetOrCreateStubRequest {
		return &gatewaypb.GetOrCreateStubRequest{ObjectId: obj.Root, ImageId: "img", StubType: "function", Name: "f", Handler: "app:f"}
	}
	make := func(m *gatewaypb.GetOrCreateStubRequest) (*gatewaypb.GetOrCreateStubResponse, error) {
		r, err := b.GetOrCreateStub(t.Context(), as("ws/invoke", m))
		if err != nil {
			return nil, err
		}
		return r.Msg, nil
	}
	first, err := make(want())
	if err != nil || !first.Ok || first.StubId == "" {
		t.Fatalf("%v, %v", first, err)
	}
	if again, err := make(want()); err != nil || again.StubId != first.StubId {
		t.Errorf("an equal request: %v, %v", again, err)
	}
	byHash := want()
	byHash.ObjectId = hash
	if again, err := make(byHash); err != nil || again.StubId != first.StubId {
		t.Errorf("by the archive's hash: %v, %v", again, err)
	}
	changed := want()
	changed.Memory = 512
	if other, err := make(changed); err != nil || other.StubId == first.StubId {
		t.Errorf("another request: %v, %v", other, err)
	}
	gpu := want()
	gpu.Gpu = "H100"
	if r, err := make(gpu); err != nil || r.WarnMsg == "" {
		t.Errorf("a GPU that nobody has now: %v, %v", r, err)
	}
	for name, c := range map[string]struct {
		change func(*gatewaypb.GetOrCreateStubRequest)
		want   fault.Code
		text   string
	}{
		"image":      {func(r *gatewaypb.GetOrCreateStubRequest) { r.ImageId = "nope" }, fault.NotFound, "image nope does not exist"},
		"object":     {func(r *gatewaypb.GetOrCreateStubRequest) { r.ObjectId = strings.Repeat("a", 64) }, fault.NotFound, "is not known"},
		"bad object": {func(r *gatewaypb.GetOrCreateStubRequest) { r.ObjectId = "x" }, fault.NotFound, "is not known"},
		"no object":  {func(r *gatewaypb.GetOrCreateStubRequest) { r.ObjectId = "" }, fault.NotFound, "is not known"},
		"gpu":        {func(r *gatewaypb.GetOrCreateStubRequest) { r.Gpu = "H1000" }, fault.Invalid, "H1000"},
		"handler":    {func(r *gatewaypb.GetOrCreateStubRequest) { r.Handler = "x" }, fault.Invalid, "module:function"},
	} {
		m := want()
		c.change(m)
		_, err := make(m)
		if code(err) != c.want || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
		// Stock clients read the field.
		stock := gatewaypbconnect.NewGatewayServiceClient(b.http, b.base, connect.WithGRPC())
		r, err := stock.GetOrCreateStub(t.Context(), as("ws/invoke", m))
		if err != nil || r.Msg.Ok || !strings.Contains(r.Msg.ErrMsg, c.text) {
			t.Errorf("%s, stock client: %v, %v", name, r, err)
		}
	}
}

func TestRights(t *testing.T) {
	b := newBench(t)
	for _, who := range []string{"", "nonsense"} {
		if r, err := b.Authorize(t.Context(), as(who, &gatewaypb.AuthorizeRequest{})); err != nil || r.Msg.Ok || r.Msg.ErrorMsg == "" {
			t.Errorf("%q is authorised: %v, %v", who, r, err)
		}
		if _, err := b.ListTasks(t.Context(), as(who, &gatewaypb.ListTasksRequest{})); code(err) != fault.Unauthorized {
			t.Errorf("%q lists tasks: %v", who, err)
		}
	}
	if r, err := b.Authorize(t.Context(), as("ws/read", &gatewaypb.AuthorizeRequest{})); err != nil || !r.Msg.Ok || r.Msg.WorkspaceId != "ws" {
		t.Errorf("%v, %v", r, err)
	}
	for name, err := range map[string]error{
		"a reader creates a stub": func() error {
			_, err := b.GetOrCreateStub(t.Context(), as("ws/read", &gatewaypb.GetOrCreateStubRequest{}))
			return err
		}(),
		"a reader stops tasks": func() error {
			_, err := b.StopTasks(t.Context(), as("ws/read", &gatewaypb.StopTasksRequest{}))
			return err
		}(),
		"an invoker makes a token": func() error {
			_, err := b.CreateToken(t.Context(), as("ws/invoke", &gatewaypb.CreateTokenRequest{}))
			return err
		}(),
		"an invoker lists tokens": func() error {
			_, err := b.ListTokens(t.Context(), as("ws/invoke", &gatewaypb.ListTokensRequest{}))
			return err
		}(),
	} {
		if code(err) != fault.Forbidden {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTasksAndTokens(t *testing.T) {
	b := newBench(t)
	l, err := b.ListTasks(t.Context(), as("ws/read", &gatewaypb.ListTasksRequest{Limit: 7, Filters: map[string]*gatewaypb.StringList{
		"status": {Values: []string{"COMPLETE"}}, "stub-id": {Values: []string{"s"}}, "other": {}}}))
	if err != nil || len(l.Msg.Tasks) != 1 || strings.Join(b.tasks.asked, " ") != "ws COMPLETE s 7" {
		t.Errorf("%v, %v, asked %q", l, err, b.tasks.asked)
	}
	if _, err := b.StopTasks(t.Context(), as("ws/invoke", &gatewaypb.StopTasksRequest{TaskIds: []string{"a", "bad", "c"}})); code(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	if got := strings.Join(b.tasks.stopped, " "); got != "a bad c" {
		t.Errorf("stopped %q", got)
	}
	if r, err := b.ListContainers(t.Context(), as("ws/read", &gatewaypb.ListContainersRequest{})); err != nil || len(r.Msg.Containers) != 1 {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := b.StopContainer(t.Context(), as("ws/invoke", &gatewaypb.StopContainerRequest{ContainerId: "x"})); code(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	made, err := b.CreateToken(t.Context(), as("ws/admin", &gatewaypb.CreateTokenRequest{}))
	if err != nil || made.Msg.Token.Key != "ws admin" {
		t.Errorf("%v, %v", made, err)
	}
	if _, err := b.ToggleToken(t.Context(), as("ws/admin", &gatewaypb.ToggleTokenRequest{TokenId: "nobody"})); code(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	if _, err := b.s.Ledger.Propose(t.Context(), ledger.PutToken{Workspace: "ws", ID: "tok", Token: ledger.Token{Scopes: []string{"admin"}, Active: true}}); err != nil {
		t.Fatal(err)
	}
	if r, err := b.ToggleToken(t.Context(), as("ws/admin", &gatewaypb.ToggleTokenRequest{TokenId: "tok"})); err != nil || r.Msg.Token.Active {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := b.ListTokens(t.Context(), as("ws/admin", &gatewaypb.ListTokensRequest{})); err != nil || len(r.Msg.Tokens) != 1 || r.Msg.Tokens[0].Key != "" {
		t.Errorf("%v, %v", r, err)
	}
}

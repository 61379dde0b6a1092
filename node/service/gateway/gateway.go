// Package gateway serves gateway.GatewayService as far as functions need it:
// authorisation, code objects, stubs, tasks, containers and tokens. What later
// versions bring answers Unimplemented.
//
// Stock clients read failures from the ok and err_msg fields, ours from the
// error itself: api.Refuse gives each what it reads. A call without a good token
// is an error status for all.
package gateway

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/beammesh/beammesh/node/api"
	"github.com/beammesh/beammesh/node/auth"
	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/objects"
	"github.com/beammesh/beammesh/node/stub"
	"github.com/beammesh/beammesh/node/token"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/client/gatewaypb"
	"github.com/beammesh/beammesh/proto/client/gatewaypb/gatewaypbconnect"
	"github.com/beammesh/beammesh/proto/client/typespb"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/ipfs/go-cid"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// UploadPath serves the URLs that CreateObject gives out.
const UploadPath = "/api/v1/object/upload/"

// uploadLife is how long such a URL is good.
const uploadLife = time.Hour

// Tasks is what the service needs of the task router.
type Tasks interface {
	List(ctx context.Context, workspace, status, stub string, limit int) (*beamv1.ListTasksResponse, error)
	Stop(ctx context.Context, workspace, id string) error
	Containers(ctx context.Context, workspace string) (cs []*typespb.Container, missing []string)
	StopContainer(ctx context.Context, workspace, id string) error
}

// Tokens is what the service needs of the node's token issuer.
type Tokens interface {
	Issue(ctx context.Context, workspace, name string, scopes []token.Scope, life time.Duration) (id, bearer string, err error)
	SetActive(ctx context.Context, workspace, id string, active bool) error
	Delete(ctx context.Context, workspace, id string) error
}

// Placer tells at registration whether any node could ever run a stub.
type Placer interface {
	// Unplaceable gives an error when the GPU name is known to nobody, and a
	// warning when no node in view has it now.
	Unplaceable(c stub.Config) (warning string, err error)
}

// Service implements gateway.GatewayService.
type Service struct {
	gatewaypbconnect.UnimplementedGatewayServiceHandler
	Objects *objects.Objects
	Ledger  ledger.Ledger
	Tasks   Tasks
	Tokens  Tokens
	Placer  Placer

	key [32]byte // signs upload URLs; they die with the process
}

// New makes the service; the fields are filled in by the caller.
func New() (*Service, error) {
	s := &Service{}
	_, err := rand.Read(s.key[:])
	return s, err
}

// Authorize answers whether the token is good.
func (s *Service) Authorize(ctx context.Context, _ *connect.Request[gatewaypb.AuthorizeRequest]) (*connect.Response[gatewaypb.AuthorizeResponse], error) {
	id, err := auth.Require(ctx, token.Read)
	if err != nil {
		return connect.NewResponse(&gatewaypb.AuthorizeResponse{Ok: false, ErrorMsg: api.Text(err)}), nil
	}
	return connect.NewResponse(&gatewaypb.AuthorizeResponse{Ok: true, WorkspaceId: id.Workspace}), nil
}

// HeadObject tells whether an archive is known.
func (s *Service) HeadObject(ctx context.Context, req *connect.Request[gatewaypb.HeadObjectRequest]) (*connect.Response[gatewaypb.HeadObjectResponse], error) {
	id, err := auth.Require(ctx, token.Invoke)
	if err != nil {
		return nil, err
	}
	obj, err := s.Objects.Find(ctx, id.Workspace, req.Msg.Hash)
	switch {
	case fault.CodeOf(err) == fault.NotFound:
		return connect.NewResponse(&gatewaypb.HeadObjectResponse{Ok: true}), nil
	case err != nil:
		return api.Refuse(req.Header(), err, &gatewaypb.HeadObjectResponse{ErrorMsg: api.Text(err)})
	}
	return connect.NewResponse(&gatewaypb.HeadObjectResponse{Ok: true, Exists: true, ObjectId: obj.Root,
		ObjectMetadata: &gatewaypb.ObjectMetadata{Size: obj.Size}}), nil
}

// CreateObject gives a URL of this node to PUT the archive to.
func (s *Service) CreateObject(ctx context.Context, req *connect.Request[gatewaypb.CreateObjectRequest]) (*connect.Response[gatewaypb.CreateObjectResponse], error) {
	id, err := auth.Require(ctx, token.Invoke)
	if err != nil {
		return nil, err
	}
	if req.Msg.Size > objects.MaxArchive {
		return nil, fault.New(fault.TooLarge, fmt.Sprintf("the code archive has %d MiB, at most %d are taken", req.Msg.Size>>20, objects.MaxArchive>>20), "list what is not code in .beamignore")
	}
	if obj, err := s.Objects.Find(ctx, id.Workspace, req.Msg.Hash); err == nil {
		return connect.NewResponse(&gatewaypb.CreateObjectResponse{Ok: true, ObjectId: obj.Root}), nil
	} else if c := fault.CodeOf(err); c != fault.NotFound {
		return nil, err
	}
	exp := strconv.FormatInt(time.Now().Add(uploadLife).Unix(), 10)
	q := url.Values{"exp": {exp}, "sig": {s.sign(id.Workspace, req.Msg.Hash, exp)}}
	u := url.URL{Scheme: "http", Host: api.Host(ctx), Path: UploadPath + id.Workspace + "/" + req.Msg.Hash, RawQuery: q.Encode()}
	return connect.NewResponse(&gatewaypb.CreateObjectResponse{Ok: true, ObjectId: req.Msg.Hash, PresignedUrl: u.String()}), nil
}

func (s *Service) sign(workspace, hash, exp string) string {
	m := hmac.New(sha256.New, s.key[:])
	fmt.Fprintf(m, "%s\n%s\n%s", workspace, hash, exp)
	return hex.EncodeToString(m.Sum(nil))
}

// Upload serves UploadPath: PUT {workspace}/{hash}?exp=…&sig=….
func (s *Service) Upload(w http.ResponseWriter, r *http.Request) {
	ws, hash, exp := r.PathValue("workspace"), r.PathValue("hash"), r.URL.Query().Get("exp")
	until, err := strconv.ParseInt(exp, 10, 64)
	if err != nil || !hmac.Equal([]byte(r.URL.Query().Get("sig")), []byte(s.sign(ws, hash, exp))) || time.Now().Unix() > until {
		api.WriteError(w, fault.New(fault.Forbidden, "this upload address is not valid (any more)", "ask for a new one with CreateObject"))
		return
	}
	obj, err := s.Objects.Put(r.Context(), ws, hash, r.Body)
	if err != nil {
		api.WriteError(w, err)
		return
	}
	api.WriteJSON(w, map[string]any{"object_id": obj.Root})
}

// PutObjectStream takes an archive in pieces.
func (s *Service) PutObjectStream(ctx context.Context, stream *connect.ClientStream[gatewaypb.PutObjectRequest]) (*connect.Response[gatewaypb.PutObjectResponse], error) {
	id, err := auth.Require(ctx, token.Invoke)
	if err != nil {
		return nil, err
	}
	if !stream.Receive() {
		return nil, fault.Wrap(fault.Invalid, stream.Err(), "the upload is empty", "")
	}
	hash := stream.Msg().Hash
	obj, err := s.Objects.Put(ctx, id.Workspace, hash, &pieces{stream: stream, rest: bytes.NewReader(stream.Msg().ObjectContent)})
	if err != nil {
		// The stock client looks at the message only.
		return connect.NewResponse(&gatewaypb.PutObjectResponse{Ok: false, ErrorMsg: api.Text(err)}), nil
	}
	return connect.NewResponse(&gatewaypb.PutObjectResponse{Ok: true, ObjectId: obj.Root}), nil
}

// pieces reads the contents of a client stream as one stream of bytes.
type pieces struct {
	stream *connect.ClientStream[gatewaypb.PutObjectRequest]
	rest   *bytes.Reader
}

func (p *pieces) Read(b []byte) (int, error) {
	for p.rest.Len() == 0 {
		if !p.stream.Receive() {
			if err := p.stream.Err(); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
		p.rest.Reset(p.stream.Msg().ObjectContent)
	}
	return p.rest.Read(b)
}

// GetOrCreateStub registers what a client wants to run; equal requests give
// the same id on every node.
func (s *Service) GetOrCreateStub(ctx context.Context, req *connect.Request[gatewaypb.GetOrCreateStubRequest]) (*connect.Response[gatewaypb.GetOrCreateStubResponse], error) {
	id, err := auth.Require(ctx, token.Invoke)
	if err != nil {
		return nil, err
	}
	resp, err := s.createStub(ctx, id.Workspace, req.Msg)
	if err != nil {
		return api.Refuse(req.Header(), err, &gatewaypb.GetOrCreateStubResponse{ErrMsg: api.Text(err)})
	}
	return connect.NewResponse(resp), nil
}

func (s *Service) createStub(ctx context.Context, workspace string, r *gatewaypb.GetOrCreateStubRequest) (*gatewaypb.GetOrCreateStubResponse, error) {
	root, err := s.codeRoot(ctx, workspace, r.ObjectId)
	if err != nil {
		return nil, err
	}
	cfg, err := stub.FromRequest(r, root)
	if err != nil {
		return nil, err
	}
	warning, err := s.Placer.Unplaceable(cfg)
	if err != nil {
		return nil, err
	}
	if _, _, err := ledger.FindImage(ctx, s.Ledger, workspace, cfg.ImageID, time.Hour); fault.CodeOf(err) == fault.NotFound {
		return nil, fault.New(fault.NotFound, "image "+cfg.ImageID+" does not exist in this mesh", "build it first: Image(...).build()")
	} else if err != nil {
		return nil, err
	}
	b, err := cfg.Bytes()
	if err != nil {
		return nil, err
	}
	// A stub that is known here is answered without the founder.
	id := ledger.StubID(workspace, b)
	if _, _, err := ledger.Get[ledger.Stub](ctx, s.Ledger, workspace, id, time.Hour); err == nil {
		return &gatewaypb.GetOrCreateStubResponse{Ok: true, StubId: id, WarnMsg: warning}, nil
	}
	res, err := s.Ledger.Propose(ctx, ledger.PutStub{Workspace: workspace, Config: b, Name: r.Name, Type: r.StubType})
	if err != nil {
		return nil, err
	}
	return &gatewaypb.GetOrCreateStubResponse{Ok: true, StubId: res.Record.ID, WarnMsg: warning}, nil
}

// codeRoot takes an object id, which is the tree's root or, before its upload
// is over, the archive's hash. Another node may have taken the upload: the tree
// is fetched when the first call is planned.
func (s *Service) codeRoot(ctx context.Context, workspace, object string) (string, error) {
	if _, err := cid.Decode(object); err == nil {
		return object, nil
	}
	obj, err := s.Objects.Find(ctx, workspace, object)
	if c := fault.CodeOf(err); c == fault.NotFound || c == fault.Invalid {
		return "", fault.New(fault.NotFound, "code object "+object+" is not known", "sync the files first")
	}
	return obj.Root, err
}

// ListTasks lists the newest tasks of the workspace.
func (s *Service) ListTasks(ctx context.Context, req *connect.Request[gatewaypb.ListTasksRequest]) (*connect.Response[gatewaypb.ListTasksResponse], error) {
	id, err := auth.Require(ctx, token.Read)
	if err != nil {
		return nil, err
	}
	first := func(key string) string {
		if v := req.Msg.Filters[key].GetValues(); len(v) > 0 {
			return v[0]
		}
		return ""
	}
	list, err := s.Tasks.List(ctx, id.Workspace, first("status"), first("stub-id"), int(req.Msg.Limit))
	if err != nil {
		return api.Refuse(req.Header(), err, &gatewaypb.ListTasksResponse{ErrMsg: api.Text(err)})
	}
	resp := &gatewaypb.ListTasksResponse{Ok: true, Total: int32(len(list.Tasks))}
	for _, t := range list.Tasks {
		changed := cmp.Or(t.EndedAt, t.StartedAt, t.CreatedAt)
		resp.Tasks = append(resp.Tasks, &gatewaypb.Task{Id: t.Id, Status: t.Status, ContainerId: t.ContainerId, StartedAt: t.StartedAt,
			EndedAt: t.EndedAt, StubId: t.StubId, StubName: t.StubName, WorkspaceId: t.WorkspaceId, WorkspaceName: t.WorkspaceId,
			CreatedAt: t.CreatedAt, UpdatedAt: changed})
	}
	return connect.NewResponse(resp), nil
}

// StopTasks cancels tasks. The first failure is told after all were tried.
func (s *Service) StopTasks(ctx context.Context, req *connect.Request[gatewaypb.StopTasksRequest]) (*connect.Response[gatewaypb.StopTasksResponse], error) {
	id, err := auth.Require(ctx, token.Invoke)
	if err != nil {
		return nil, err
	}
	var failed error
	for _, t := range req.Msg.TaskIds {
		if err := s.Tasks.Stop(ctx, id.Workspace, t); err != nil && failed == nil {
			failed = err
		}
	}
	if failed != nil {
		return api.Refuse(req.Header(), failed, &gatewaypb.StopTasksResponse{ErrMsg: api.Text(failed)})
	}
	return connect.NewResponse(&gatewaypb.StopTasksResponse{Ok: true}), nil
}

// ListContainers lists the containers of all workers.
func (s *Service) ListContainers(ctx context.Context, _ *connect.Request[gatewaypb.ListContainersRequest]) (*connect.Response[gatewaypb.ListContainersResponse], error) {
	id, err := auth.Require(ctx, token.Read)
	if err != nil {
		return nil, err
	}
	cs, _ := s.Tasks.Containers(ctx, id.Workspace)
	return connect.NewResponse(&gatewaypb.ListContainersResponse{Ok: true, Containers: cs}), nil
}

// StopContainer ends a container; calls that it ran are placed again or fail.
func (s *Service) StopContainer(ctx context.Context, req *connect.Request[gatewaypb.StopContainerRequest]) (*connect.Response[gatewaypb.StopContainerResponse], error) {
	id, err := auth.Require(ctx, token.Invoke)
	if err != nil {
		return nil, err
	}
	if err := s.Tasks.StopContainer(ctx, id.Workspace, req.Msg.ContainerId); err != nil {
		return api.Refuse(req.Header(), err, &gatewaypb.StopContainerResponse{ErrorMsg: api.Text(err)})
	}
	return connect.NewResponse(&gatewaypb.StopContainerResponse{Ok: true}), nil
}

// ListTokens lists the issued tokens, without the bearer strings.
func (s *Service) ListTokens(ctx context.Context, _ *connect.Request[gatewaypb.ListTokensRequest]) (*connect.Response[gatewaypb.ListTokensResponse], error) {
	id, err := auth.Require(ctx, token.Admin)
	if err != nil {
		return nil, err
	}
	resp := &gatewaypb.ListTokensResponse{Ok: true}
	_, err = ledger.Each(ctx, s.Ledger, id.Workspace, func(t ledger.Token, r ledger.Record) bool {
		resp.Tokens = append(resp.Tokens, &gatewaypb.Token{TokenId: r.ID, Active: t.Active, Reusable: true, TokenType: "workspace",
			CreatedAt: timestamppb.New(r.Created), UpdatedAt: timestamppb.New(r.Changed)})
		return true
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// CreateToken makes a token with all rights of the caller's workspace.
func (s *Service) CreateToken(ctx context.Context, req *connect.Request[gatewaypb.CreateTokenRequest]) (*connect.Response[gatewaypb.CreateTokenResponse], error) {
	id, err := auth.Require(ctx, token.Admin)
	if err != nil {
		return nil, err
	}
	tid, bearer, err := s.Tokens.Issue(ctx, id.Workspace, req.Msg.TokenType, []token.Scope{token.Admin}, 0)
	if err != nil {
		return api.Refuse(req.Header(), err, &gatewaypb.CreateTokenResponse{ErrMsg: api.Text(err)})
	}
	return connect.NewResponse(&gatewaypb.CreateTokenResponse{Ok: true, Token: &gatewaypb.Token{TokenId: tid, Key: bearer, Active: true,
		Reusable: true, TokenType: req.Msg.TokenType, CreatedAt: timestamppb.Now(), UpdatedAt: timestamppb.Now()}}), nil
}

// ToggleToken switches a token off, or on again.
func (s *Service) ToggleToken(ctx context.Context, req *connect.Request[gatewaypb.ToggleTokenRequest]) (*connect.Response[gatewaypb.ToggleTokenResponse], error) {
	id, err := auth.Require(ctx, token.Admin)
	if err != nil {
		return nil, err
	}
	rec, _, err := ledger.Get[ledger.Token](ctx, s.Ledger, id.Workspace, req.Msg.TokenId, 0)
	if err == nil {
		err = s.Tokens.SetActive(ctx, id.Workspace, req.Msg.TokenId, !rec.Active)
	}
	if err != nil {
		return api.Refuse(req.Header(), err, &gatewaypb.ToggleTokenResponse{ErrMsg: api.Text(err)})
	}
	return connect.NewResponse(&gatewaypb.ToggleTokenResponse{Ok: true, Token: &gatewaypb.Token{TokenId: req.Msg.TokenId, Active: !rec.Active}}), nil
}

// DeleteToken revokes a token for good.
func (s *Service) DeleteToken(ctx context.Context, req *connect.Request[gatewaypb.DeleteTokenRequest]) (*connect.Response[gatewaypb.DeleteTokenResponse], error) {
	id, err := auth.Require(ctx, token.Admin)
	if err != nil {
		return nil, err
	}
	if err := s.Tokens.Delete(ctx, id.Workspace, req.Msg.TokenId); err != nil {
		return api.Refuse(req.Header(), err, &gatewaypb.DeleteTokenResponse{ErrMsg: api.Text(err)})
	}
	return connect.NewResponse(&gatewaypb.DeleteTokenResponse{Ok: true}), nil
}

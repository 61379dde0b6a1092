package node

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"github.com/beammesh/beammesh/node/api"
	"github.com/beammesh/beammesh/node/auth"
	"github.com/beammesh/beammesh/node/objects"
	"github.com/beammesh/beammesh/node/service/admin"
	"github.com/beammesh/beammesh/node/service/call"
	"github.com/beammesh/beammesh/node/service/function"
	"github.com/beammesh/beammesh/node/service/gateway"
	"github.com/beammesh/beammesh/node/service/image"
	"github.com/beammesh/beammesh/proto/beammesh/v1/beammeshv1connect"
	"github.com/beammesh/beammesh/proto/client/functionpb/functionpbconnect"
	"github.com/beammesh/beammesh/proto/client/gatewaypb/gatewaypbconnect"
	"github.com/beammesh/beammesh/proto/client/imagepb/imagepbconnect"
)

// maxMessage bounds one message of a client: 16 MiB of arguments in base64, and
// what stands around them.
const maxMessage = 24 << 20

// startAPI opens the ports. The mesh starts after it, so early requests see a
// node without peers, never a refused connection.
func (n *Node) startAPI(context.Context) error {
	// Unfinished uploads and unread results of an earlier life are nobody's.
	uploads, results := n.dir("tmp"), n.dir("tmp", "results")
	if err := os.RemoveAll(uploads); err != nil {
		return err
	}
	if err := os.MkdirAll(results, 0o700); err != nil {
		return err
	}
	objs := &objects.Objects{Blocks: n.blocks, Ledger: n.ledger, Dir: uploads}
	gw, err := gateway.New()
	if err != nil {
		return err
	}
	gw.Objects, gw.Ledger, gw.Tasks, gw.Tokens, gw.Placer = objs, n.ledger, n.router, n.tokens, n
	n.maps = &call.Service{Tasks: n.owner, Log: n.log, Dir: results}
	n.onClose(func() error { n.maps.Close(); return nil })
	fn := &function.Service{Tasks: n.owner}
	im := &image.Service{Builder: n.images}
	ad := &admin.Service{Node: n, Tasks: n.router, Tokens: n.tokens}

	mount := func(mux *http.ServeMux, v auth.Verifier, inside bool) {
		opts := []connect.HandlerOption{connect.WithReadMaxBytes(maxMessage),
			connect.WithInterceptors(auth.Interceptor{Verifier: v, Open: map[string]bool{gatewaypbconnect.GatewayServiceAuthorizeProcedure: true}})}
		mux.Handle(gatewaypbconnect.NewGatewayServiceHandler(gw, opts...))
		mux.Handle(functionpbconnect.NewFunctionServiceHandler(fn, opts...))
		mux.Handle(imagepbconnect.NewImageServiceHandler(im, opts...))
		mux.Handle(beammeshv1connect.NewCallServiceHandler(n.maps, opts...))
		mux.HandleFunc("PUT "+gateway.UploadPath+"{workspace}/{hash}", gw.Upload)
		mux.HandleFunc("GET /api/v1/health", func(w http.ResponseWriter, _ *http.Request) {
			api.WriteJSON(w, map[string]string{"status": "ok"})
		})
		if !inside { // nothing about the node itself for code in containers
			mux.Handle(beammeshv1connect.NewNodeServiceHandler(ad, opts...))
			mux.Handle("/debug/pprof/", debugHandler(v))
		}
	}
	n.api = api.New(n.log)
	n.onClose(n.api.Close)
	mount(n.api.Mux, n.tokens.api(), false)
	n.inner = api.New(n.log)
	n.onClose(n.inner.Close)
	mount(n.inner.Mux, n.tokens.inside(), true)

	for _, l := range []struct {
		addr string
		into *string
	}{{n.cfg.GRPC, &n.grpcAddr}, {n.cfg.HTTP, &n.httpAddr}} {
		a, err := n.api.Listen(l.addr)
		if err != nil {
			return err
		}
		*l.into = a.String()
		if !loopbackOnly(l.addr) {
			n.log.Info("the API is open beyond this machine; tokens travel in clear text", "addr", *l.into)
		}
	}
	return nil
}

// insideAPI puts api.sock into a container's folder. It is dialled by init in
// the container's user namespace, hence the mode; the folder lets nobody else in.
func (n *Node) insideAPI(dir string) (stop func(), err error) {
	path := filepath.Join(dir, "api.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o666); err != nil {
		_ = l.Close()
		return nil, err
	}
	return n.inner.Serve(l), nil
}

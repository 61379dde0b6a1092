// Package image serves image.ImageService: images are named by what they are
// made of, so any node answers alike, and are built where the request lands.
package image

import (
	"context"
	"strings"

	"connectrpc.com/connect"
	"github.com/beammesh/beammesh/node/api"
	"github.com/beammesh/beammesh/node/auth"
	"github.com/beammesh/beammesh/node/token"
	"github.com/beammesh/beammesh/proto/client/imagepb"
	"github.com/beammesh/beammesh/proto/client/imagepb/imagepbconnect"
	"github.com/beammesh/beammesh/proto/fault"
)

// Builder makes images.
type Builder interface {
	// Find gives the id of a spec and whether its image exists in the mesh.
	Find(ctx context.Context, workspace string, s Spec) (id string, exists bool, err error)
	// Build makes the image if it does not exist, saying what it does. Errors
	// are *fault.Error.
	Build(ctx context.Context, workspace string, s Spec, say func(line string)) (Built, error)
}

// Built is an image that exists.
type Built struct {
	ID     string
	Python string // "python3.11"
}

// Service implements image.ImageService.
type Service struct {
	imagepbconnect.UnimplementedImageServiceHandler
	Builder Builder
}

// VerifyImageBuild gives a spec's id, and whether the image exists.
func (s *Service) VerifyImageBuild(ctx context.Context, req *connect.Request[imagepb.VerifyImageBuildRequest]) (*connect.Response[imagepb.VerifyImageBuildResponse], error) {
	who, err := auth.Require(ctx, token.Invoke)
	if err != nil {
		return nil, err
	}
	m := req.Msg
	spec, err := newSpec(m.PythonVersion, m.PythonPackages, m.Commands, m.BuildSteps, m.EnvVars, m.ExistingImageUri, m.Dockerfile, m.Secrets, m.Gpu)
	if err != nil && api.Stock(req.Header()) {
		// The answer has no field for the reason: the build that follows tells it.
		return connect.NewResponse(&imagepb.VerifyImageBuildResponse{Valid: true}), nil
	} else if err != nil {
		return nil, err
	}
	spec.Force = m.ForceRebuild
	id, exists, err := s.Builder.Find(ctx, who.Workspace, spec)
	if err != nil {
		return nil, err
	}
	if m.GetImageId() != "" && m.GetImageId() != id {
		return nil, fault.New(fault.NotFound, "image "+m.GetImageId()+" does not exist in this mesh", "leave image_id out to build it from its parts")
	}
	return connect.NewResponse(&imagepb.VerifyImageBuildResponse{ImageId: id, Valid: true, Exists: exists}), nil
}

// BuildImage builds an image and streams what happens. A failed build ends with
// done and without success for every client; ours also get the error.
func (s *Service) BuildImage(ctx context.Context, req *connect.Request[imagepb.BuildImageRequest], out *connect.ServerStream[imagepb.BuildImageResponse]) error {
	who, err := auth.Require(ctx, token.Invoke)
	if err != nil {
		return err
	}
	m := req.Msg
	spec, err := newSpec(m.PythonVersion, m.PythonPackages, m.Commands, m.BuildSteps, m.EnvVars, m.ExistingImageUri, m.Dockerfile, m.Secrets, m.Gpu)
	if err != nil {
		return refuse(out, err)
	}
	lines := make(chan string, 256)
	type end struct {
		built Built
		err   error
	}
	done := make(chan end, 1)
	go func() {
		b, err := s.Builder.Build(ctx, who.Workspace, spec, func(line string) {
			select {
			case lines <- line:
			case <-ctx.Done():
			}
		})
		done <- end{b, err}
	}()
	say := func(line string) error { return out.Send(&imagepb.BuildImageResponse{Msg: line + "\n"}) }
	for {
		select {
		case l := <-lines:
			if err := say(l); err != nil {
				return err
			}
		case e := <-done:
			for len(lines) > 0 {
				if err := say(<-lines); err != nil {
					return err
				}
			}
			if e.err != nil {
				return refuse(out, e.err)
			}
			return out.Send(&imagepb.BuildImageResponse{ImageId: e.built.ID, Done: true, Success: true, PythonVersion: e.built.Python})
		}
	}
}

// refuse ends a build: the last message is for clients that show what a build
// says, the error for those that read errors. The lines of a step that stand
// below the first line of its failure were streamed already.
func refuse(out *connect.ServerStream[imagepb.BuildImageResponse], err error) error {
	f := *fault.From(err)
	f.Message, _, _ = strings.Cut(f.Message, "\n")
	if sent := out.Send(&imagepb.BuildImageResponse{Msg: api.Text(&f) + "\n", Done: true}); sent != nil {
		return sent
	}
	return err
}

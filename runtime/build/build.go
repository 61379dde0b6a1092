// Package build makes images: base trees from Debian packages (Bootstrap) and
// layers on top of them, one per step (Builder).
//
//	err := build.Bootstrap(ctx, build.BaseConfig{Suite: "bookworm", Dir: dir}, report)
//
//	b := build.NewBuilder(build.Config{Engine: engine, Import: store, Cache: cache, Host: host, Log: log})
//	res, err := b.Build(ctx, build.Request{
//		Base:  []runtime.Layer{{Root: base}},
//		Steps: []build.Step{{Kind: build.Pip, Packages: []string{"numpy"}}, {Kind: build.Shell, Command: "apt-get …"}},
//	}, printLine)
//
// A step runs in a container of its own on top of the layers before it; what
// it has written becomes a layer. Layers are kept under the hash of all that
// led to them, and equal steps that are asked for at the same time run once.
// Where layers are stored is the caller's affair: this package knows no store.
//
// A Builder is safe for concurrent use.
package build

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/runtime"
)

// Import stores a tree as a layer and returns its root. skip names paths,
// relative to dir, that do not belong to the layer. The tree is an overlay's
// upper folder: a character device 0:0 says that a path was removed.
type Import func(ctx context.Context, dir string, skip func(path string) bool) (root string, err error)

// Cache remembers which layer a key led to. A root that it returns must be
// one that the engine can get.
type Cache interface {
	Get(ctx context.Context, key string) (root string, ok bool, err error)
	Put(ctx context.Context, key, root string) error
}

// Config of a Builder.
type Config struct {
	Engine runtime.Engine // must be a runtime.Differ too
	Import Import
	Cache  Cache
	Host   Host
	Log    *slog.Logger
	// Limits of a step's container; Memory 0 = no limit.
	Limits runtime.Limits
	// StepTime bounds one step, 0 = 30 min.
	StepTime time.Duration
}

// Request is one image to build.
type Request struct {
	Workspace string // whose containers the steps run in; results are shared by key
	Base      []runtime.Layer
	Steps     []Step
}

// Result is a built image.
type Result struct {
	Layers []runtime.Layer
	Env    []string // of the env steps
	Key    string   // names the whole chain
	Cached int      // steps that did not have to run
}

// Builder runs steps.
type Builder struct {
	cfg Config

	mu      sync.Mutex
	running map[string]*flight // by key
	serial  uint64             // for container ids
}

// NewBuilder checks that the engine can hand out what containers wrote.
func NewBuilder(cfg Config) (*Builder, error) {
	if _, ok := cfg.Engine.(runtime.Differ); !ok {
		return nil, errors.New("build images: engine cannot hand out what a container wrote")
	}
	if cfg.StepTime == 0 {
		cfg.StepTime = 30 * time.Minute
	}
	return &Builder{cfg: cfg, running: map[string]*flight{}}, nil
}

// Build returns the image, running those steps whose layers are not there.
// line, which may be nil, gets the steps' output line by line from one
// goroutine at a time; a slow one slows the step down. A step that fails is a
// *fault.Error of code BuildFailed with its last lines.
func (b *Builder) Build(ctx context.Context, r Request, line func(string)) (Result, error) {
	if line == nil {
		line = func(string) {}
	}
	if err := validate(r.Steps); err != nil {
		return Result{}, err
	}
	res := Result{Layers: append([]runtime.Layer(nil), r.Base...), Key: baseKey(r.Base)}
	for i, s := range r.Steps {
		res.Key = s.key(res.Key)
		switch s.Kind {
		case Env:
			res.Env = append(res.Env, s.Env...)
			continue
		case Files:
			res.Layers = append(res.Layers, s.Files)
			continue
		}
		title := fmt.Sprintf("step %d of %d: %s", i+1, len(r.Steps), s.title())
		root, ok, err := b.cfg.Cache.Get(ctx, res.Key)
		if err != nil {
			return Result{}, fmt.Errorf("%s: look for its layer: %w", title, err)
		}
		if ok {
			res.Cached++
			line(title + " (kept from before)")
		} else {
			line(title)
			job := job{workspace: r.Workspace, key: res.Key, title: title, step: s, layers: res.Layers, env: res.Env}
			if root, err = b.once(ctx, job, line); err != nil {
				var f *fault.Error
				if errors.As(err, &f) {
					return Result{}, err
				}
				return Result{}, fmt.Errorf("%s: %w", title, err)
			}
		}
		res.Layers = append(res.Layers, runtime.Layer{Root: root})
	}
	return res, nil
}

package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/beammesh/beammesh/content/tree"
	"github.com/beammesh/beammesh/node/service/image"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/runtime/build"
	"github.com/ipfs/go-cid"
)

// bootstrap makes a base image's files in dir, unless they are there.
func (n *Node) bootstrap(ctx context.Context, suite, dir string, say func(string)) error {
	if n.worker == nil {
		return fault.New(fault.Unsupported, "this node runs no containers, and no peer has the base image", "build once on a node that was started as root")
	}
	last := ""
	return build.Bootstrap(ctx, build.BaseConfig{Suite: suite, Dir: dir}, func(p build.Progress) {
		line := fmt.Sprintf("base image of Debian %s: %s", suite, p.Phase)
		if p.Total > 0 {
			line = fmt.Sprintf("%s %d%%", line, 100*p.Done/p.Total/10*10) // every tenth is enough for a log
		}
		if line != last {
			last = line
			say(line)
		}
	})
}

// runSteps runs an image's steps, each in a container on top of the layers
// before it, and gives the new layers.
func (n *Node) runSteps(ctx context.Context, workspace string, roots []string, s image.Spec, say func(string)) ([]string, error) {
	if n.builder == nil {
		return nil, fault.New(fault.Unsupported, "this node runs no containers, so it cannot build images", "use a node that was started as root")
	}
	var base []runtime.Layer
	for _, r := range roots {
		base = append(base, runtime.Layer{Root: r})
	}
	var steps []build.Step
	if len(s.Env) > 0 {
		steps = append(steps, build.Step{Kind: build.Env, Env: s.Env})
	}
	for _, st := range s.Steps {
		switch st.Kind {
		case "pip":
			steps = append(steps, build.Step{Kind: build.Pip, Packages: st.Args})
		default:
			steps = append(steps, build.Step{Kind: build.Shell, Command: st.Args[0]})
		}
	}
	res, err := n.builder.Build(ctx, build.Request{Workspace: workspace, Base: base, Steps: steps}, say)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range res.Layers[len(base):] {
		out = append(out, l.Root)
	}
	return out, nil
}

// newBuilder joins the step builder to content.
func (n *Node) newBuilder(ctx context.Context) (*build.Builder, error) {
	cache := &layerCache{file: n.dir("layers.json"), puller: n.puller}
	if err := cache.load(); err != nil {
		return nil, err
	}
	return build.NewBuilder(build.Config{
		Engine: n.engine, Cache: cache, Host: build.ReadHost(ctx), Log: n.log,
		Import: func(ctx context.Context, dir string, skip func(string) bool) (string, error) {
			info, err := tree.ImportDir(ctx, n.blocks, dir, tree.ImportOptions{Skip: func(path string, _ bool) bool { return skip(path) }})
			if err != nil {
				return "", fmt.Errorf("import layer: %w", err)
			}
			return info.Root.String(), nil
		},
	})
}

// layerCache remembers which layer a chain of steps led to, so that a changed
// last step runs alone. It implements build.Cache.
type layerCache struct {
	file   string
	puller *puller

	mu     sync.Mutex
	layers map[string]string
	order  []string
}

// maxCachedLayers bounds it; the oldest go first.
const maxCachedLayers = 4096

type cachedLayer struct{ Key, Root string }

func (c *layerCache) load() error {
	c.layers = map[string]string{}
	b, err := os.ReadFile(c.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read layer cache: %w", err)
	}
	var list []cachedLayer
	if json.Unmarshal(b, &list) != nil {
		return nil // a cache: steps run again
	}
	for _, l := range list {
		c.layers[l.Key] = l.Root
		c.order = append(c.order, l.Key)
	}
	return nil
}

// Get implements build.Cache: only layers that are complete here count.
func (c *layerCache) Get(ctx context.Context, key string) (string, bool, error) {
	c.mu.Lock()
	root, ok := c.layers[key]
	c.mu.Unlock()
	if !ok {
		return "", false, nil
	}
	id, err := cid.Decode(root)
	if err != nil {
		return "", false, nil
	}
	lack, err := tree.Missing(ctx, c.puller.store, id)
	if err != nil || !lack.Complete() {
		return "", false, nil // collected meanwhile: the step runs again
	}
	return root, true, nil
}

// Put implements build.Cache.
func (c *layerCache) Put(_ context.Context, key, root string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.layers[key]; !ok {
		c.order = append(c.order, key)
	}
	c.layers[key] = root
	for len(c.order) > maxCachedLayers {
		delete(c.layers, c.order[0])
		c.order = c.order[1:]
	}
	list := make([]cachedLayer, len(c.order))
	for i, k := range c.order {
		list[i] = cachedLayer{k, c.layers[k]}
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if err := writeDurably(filepath.Clean(c.file), b, 0o600); err != nil {
		return fmt.Errorf("write layer cache: %w", err)
	}
	return nil
}

package node

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/beammesh/beammesh/content/tree"
	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/service/image"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/ipfs/go-cid"
)

// images finds and builds images. It implements image.Builder.
type images struct {
	n *Node

	mu       sync.Mutex
	building map[string]*buildRun // by image id
}

// buildRun is one image being built; later requests for it listen in.
type buildRun struct {
	mu    sync.Mutex
	lines []string // bounded by maxBuildLines
	wake  chan struct{}
	done  bool
	built image.Built
	err   error
}

// maxBuildLines bounds what is kept of a build for those who come later.
const maxBuildLines = 10_000

// buildLimit bounds one build.
const buildLimit = 2 * time.Hour

func newImages(n *Node) *images { return &images{n: n, building: map[string]*buildRun{}} }

// Find implements image.Builder.
func (i *images) Find(ctx context.Context, workspace string, s image.Spec) (string, bool, error) {
	id := s.ID()
	if s.Force {
		return id, false, nil
	}
	_, _, err := ledger.FindImage(ctx, i.n.ledger, workspace, id, time.Hour)
	switch {
	case err == nil:
		return id, true, nil
	case fault.CodeOf(err) == fault.NotFound:
		return id, false, nil
	}
	return id, false, err
}

// Build implements image.Builder. Builds of one image are single-flight at this
// node; when two nodes build the same at once, the ledger keeps one of the two.
func (i *images) Build(ctx context.Context, workspace string, s image.Spec, say func(string)) (image.Built, error) {
	id := s.ID()
	if _, ok, err := i.Find(ctx, workspace, s); err != nil {
		return image.Built{}, err
	} else if ok {
		return image.Built{ID: id, Python: "python" + s.Minor}, nil
	}
	i.mu.Lock()
	b := i.building[id]
	if b == nil {
		b = &buildRun{wake: make(chan struct{})}
		i.building[id] = b
		i.n.spawn(func(nctx context.Context) {
			// The build goes on when its first client leaves: others listen in.
			bctx, cancel := context.WithTimeout(nctx, buildLimit)
			defer cancel()
			make := i.make
			if i.n.builder == nil {
				make = i.away
			}
			err := make(bctx, workspace, s, b.say)
			b.mu.Lock()
			b.done, b.err, b.built = true, err, image.Built{ID: id, Python: "python" + s.Minor}
			close(b.wake)
			b.mu.Unlock()
			i.mu.Lock()
			delete(i.building, id)
			i.mu.Unlock()
		})
	}
	i.mu.Unlock()
	return b.follow(ctx, say)
}

func (b *buildRun) say(line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.lines) < maxBuildLines {
		b.lines = append(b.lines, line)
	}
	close(b.wake)
	b.wake = make(chan struct{})
}

func (b *buildRun) follow(ctx context.Context, say func(string)) (image.Built, error) {
	for told := 0; ; {
		b.mu.Lock()
		lines, done, wake := b.lines[told:], b.done, b.wake
		b.mu.Unlock()
		for _, l := range lines {
			say(l)
		}
		told += len(lines)
		if done {
			return b.built, b.err
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return image.Built{}, ctx.Err()
		}
	}
}

// make builds an image and registers it: the base first, then its steps.
func (i *images) make(ctx context.Context, workspace string, s image.Spec, say func(string)) error {
	base, err := i.base(ctx, s.Base(), say)
	if err != nil {
		return err
	}
	if len(s.Steps) == 0 && len(s.Env) == 0 {
		return nil // base registered itself
	}
	roots := base.roots
	ic := base.config
	if len(s.Steps) > 0 {
		layers, err := i.n.runSteps(ctx, workspace, roots, s, say)
		if err != nil {
			return err
		}
		for _, l := range layers {
			roots = append(roots, l)
			ic.Bytes = append(ic.Bytes, i.n.puller.rootBytes(ctx, l))
		}
	}
	ic.Env = append(ic.Env, s.Env...)
	return i.register(ctx, workspace, s.ID(), s.Minor, roots, ic)
}

type baseImage struct {
	roots  []string
	config imageConfig
}

// base gives the base image: from the ledger and the peers that hold it, else
// bootstrapped here from Debian packages.
func (i *images) base(ctx context.Context, s image.Spec, say func(string)) (baseImage, error) {
	img, _, err := ledger.Get[ledger.Image](ctx, i.n.ledger, ledger.MeshScope, s.ID(), 0)
	switch {
	case err == nil:
		b := baseImage{roots: img.Roots}
		if err := json.Unmarshal(img.Config, &b.config); err != nil {
			return b, fmt.Errorf("read image record: %w", err)
		}
		_, from, err := i.n.puller.Pull(ctx, img.Roots, "", nil)
		if err == nil {
			if len(from) > 0 {
				say(fmt.Sprintf("base image fetched from other nodes (%d)", len(from)))
			}
			return b, nil
		}
		say("the base image is known but no peer gave it: " + err.Error())
	case fault.CodeOf(err) != fault.NotFound:
		return baseImage{}, err
	}
	cache := i.n.cfg.BaseCache
	if cache == "" {
		cache = i.n.dir("base")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return baseImage{}, fmt.Errorf("make base folder: %w", err)
	}
	dir := filepath.Join(cache, s.BaseFolder())
	if err := i.n.bootstrap(ctx, s.Suite, dir, say); err != nil {
		return baseImage{}, err
	}
	say("cutting the base image into blocks")
	info, err := tree.ImportDir(ctx, i.n.blocks, dir, tree.ImportOptions{})
	if err != nil {
		return baseImage{}, fmt.Errorf("import base image: %w", err)
	}
	b := baseImage{roots: []string{info.Root.String()}, config: imageConfig{Python: "python3", Minor: s.Minor, Bytes: []int64{info.Bytes},
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}}}
	return b, i.register(ctx, ledger.MeshScope, s.ID(), s.Minor, b.roots, b.config)
}

// register pins an image's trees here, signs its record and lists it.
func (i *images) register(ctx context.Context, workspace, id, minor string, roots []string, ic imageConfig) error {
	cfg, err := json.Marshal(ic)
	if err != nil {
		return err
	}
	img := ledger.Image{Roots: roots, Config: cfg, Python: minor, Builder: string(i.n.mesh.PeerID())}
	if img.Signature, err = i.n.mesh.Sign(img.SigningBytes(workspace, id)); err != nil {
		return err
	}
	for _, r := range roots {
		c, err := cid.Decode(r)
		if err != nil {
			return err
		}
		if err := i.n.blocks.Pin(ctx, c, "image/"+id); err != nil {
			return fmt.Errorf("pin image: %w", err)
		}
		i.n.puller.heat(r, true)
		i.n.provideRoot(r)
	}
	_, err = i.n.ledger.Propose(ctx, ledger.PutImage{Workspace: workspace, ID: id, Image: img})
	return err
}

// provideRoot lists this node in the directory as a holder of a tree.
func (n *Node) provideRoot(root string) {
	if n.cfg.NoDHT {
		return
	}
	n.spawn(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		if err := n.mesh.Provide(ctx, "root/"+root); err != nil {
			n.log.Debug("announce a root", "root", root, "err", err)
		}
	})
}

var _ image.Builder = (*images)(nil)

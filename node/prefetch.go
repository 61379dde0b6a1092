package node

import (
	"context"
	"encoding/json"
	"time"

	"github.com/beammesh/beammesh/content"
	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/prefetch"
	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/ipfs/go-cid"
)

const (
	// readyWait bounds how long a start waits for images; they come all the
	// same, but the word that the node is up should not take minutes.
	readyWait = time.Minute
	// lookWait bounds how long it waits to hear whether there are any: the
	// founder may be away.
	lookWait = 3 * time.Second
	// yieldWait bounds how long images wait for containers that are starting.
	yieldWait = 30 * time.Second
	// prefetchShare of what the block store may hold is fetched ahead in an hour.
	prefetchShare = 4
)

// newPrefetcher joins the prefetcher to content and the engine.
func (n *Node) newPrefetcher() (*prefetch.Prefetcher, error) {
	budget, err := n.blockBudget()
	if err != nil {
		return nil, err
	}
	return prefetch.New(prefetch.Config{
		Images: n.ledger, MeshOnly: n.mesh.Tier() != "own", Budget: budget / prefetchShare, Log: n.log,
		Sizes: func(i ledger.Image) []int64 {
			var ic imageConfig
			_ = json.Unmarshal(i.Config, &ic) // a newer version's: then without sizes
			return ic.Bytes
		},
		Hot: n.rootsInUse,
		Fetch: func(ctx context.Context, root string, sources []string, progress content.Progress) (int64, error) {
			moved, _, err := n.puller.pull(ctx, root, sources, n.fetcher.Prefetch, progress)
			if err == nil {
				n.puller.heat(root, true)
			}
			return moved, err
		},
		Prepare: func(ctx context.Context, roots []string) error {
			layers := make([]runtime.Layer, len(roots))
			for i, r := range roots {
				layers[i].Root = r
			}
			return n.engine.Prepare(ctx, layers)
		},
		Yield: n.yieldToStarts,
		Room: func() (int64, error) {
			free, _, err := disk(n.cfg.DataDir)
			return free<<20 - n.cfg.DiskFloor, err
		},
	}), nil
}

// rootsInUse tests for roots that are complete here or at a member. The test
// holds for a moment.
func (n *Node) rootsInUse() func(string) bool {
	here := map[cid.Cid]bool{}
	for _, c := range n.blocks.Roots() {
		here[c] = true
	}
	return func(root string) bool {
		c, err := cid.Decode(root)
		return err == nil && (here[c] || len(n.adverts.holders(root)) > 0)
	}
}

// yieldToStarts waits while containers are being started from other images than
// the one with this top layer: disk and cores are theirs.
func (n *Node) yieldToStarts(ctx context.Context, top string) {
	limit := time.NewTimer(yieldWait)
	defer limit.Stop()
	for {
		changed := n.worker.Changed()
		busy := false
		for _, l := range n.worker.Leases() {
			busy = busy || !l.Ready && l.Stopping == "" && !hasRoot(&l.Demand, top)
		}
		if !busy {
			return
		}
		select {
		case <-changed:
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func hasRoot(d *scheduler.Demand, name string) bool {
	for _, r := range d.Roots {
		if r.Name == name {
			return true
		}
	}
	return false
}

// AwaitImages returns when the images that the mesh uses are ready here, at the
// latest after readyWait. The node serves all the while. say takes lines for
// people, one for every tenth of an image.
func (n *Node) AwaitImages(ctx context.Context, say func(string)) {
	if n.prefetch == nil {
		return
	}
	limit, look := time.NewTimer(readyWait), time.NewTimer(lookWait)
	defer limit.Stop()
	defer look.Stop()
	last := ""
	for {
		s, changed := n.prefetch.Watch()
		if s.Settled {
			if s.Trouble != "" {
				say(s.Trouble)
			}
			return
		}
		step := s
		step.Done = s.Total / 10 * (10 * min(s.Done, s.Total) / max(s.Total, 1))
		if text := step.Activity(); text != "" && text != last {
			last = text
			say(text)
		}
		select {
		case <-changed:
		case <-look.C:
			if s.Doing == "" && s.Waiting == 0 {
				return
			}
		case <-limit.C:
			if last != "" {
				say("the node is up; this goes on in the background")
			}
			return
		case <-ctx.Done():
			return
		case <-n.ctx.Done():
			return
		}
	}
}

// imagesText is the line of `beam node status`.
func (n *Node) imagesText() string {
	switch {
	case n.prefetch != nil:
		return n.prefetch.State().String()
	case n.worker != nil:
		return "fetched when they are wanted (--no-prefetch)"
	}
	return ""
}

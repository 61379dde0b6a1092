package node

import (
	"context"
	"errors"
	"time"

	"github.com/beammesh/beammesh/content/tree"
	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/scheduler/market"
	"golang.org/x/sys/unix"
)

const (
	// machineEvery is how often disk space is looked at; GPUs are watched.
	machineEvery = 10 * time.Second
	// delegationRetry is the pause between tries to reach the founder; its
	// coming up ends the pause.
	delegationRetry = time.Minute
)

// disk gives free and total MiB of the disk below dir.
func disk(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Bavail) * st.Bsize >> 20, int64(st.Blocks) * st.Bsize >> 20, nil
}

// watchMachine tells the worker when disk space or GPUs change.
func (n *Node) watchMachine(ctx context.Context) {
	devices := n.gpus.Watch(ctx)
	tick := time.NewTicker(machineEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-devices:
			if !ok {
				devices = nil
				continue
			}
		case <-tick.C:
		}
		c, err := n.capacity(ctx)
		if err != nil {
			n.log.Error("look at this machine", "err", err)
			continue
		}
		n.worker.Step(market.SetCapacity{Capacity: c}, nil)
	}
}

const (
	// housekeepEvery is how often what grows with use is cut back.
	housekeepEvery = 30 * time.Minute
	// minBlocks is what the block store may always hold.
	minBlocks = 10 << 30
)

// blockBudget is the bytes that the block store may hold.
func (n *Node) blockBudget() (int64, error) {
	_, total, err := disk(n.cfg.DataDir)
	return max(minBlocks, total<<20/3), err
}

// housekeep keeps blocks, logs and large task values within their bounds.
func (n *Node) housekeep(ctx context.Context) {
	tick := time.NewTicker(housekeepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		budget, err := n.blockBudget()
		if err != nil {
			n.log.Error("look at the disk", "err", err)
			continue
		}
		if st, err := n.blocks.GC(ctx, budget, tree.Blocks); err != nil {
			n.log.Error("collect blocks", "err", err)
		} else {
			n.log.Debug("collected blocks", "stats", st)
		}
		n.store.sweep(24 * time.Hour)
		if n.worker != nil {
			n.worker.PruneLogs()
		}
	}
}

// announce names this node in the directory by what it can do. The directory
// repeats it; here it is only tried again until it has worked once.
func (n *Node) announce(ctx context.Context) {
	if n.worker == nil || n.cfg.NoDHT {
		return
	}
	keys := map[string]bool{"role/worker": true}
	for _, d := range n.worker.Advert().Capacity.Devices {
		keys["gpu/"+d.Class] = true
	}
	up := make(chan struct{}, 1)
	cancel := n.mesh.Watch(func(ev mesh.Event) {
		if ev.Type == mesh.MemberUp {
			select {
			case up <- struct{}{}:
			default:
			}
		}
	})
	defer cancel()
	for len(keys) > 0 {
		for k := range keys {
			pctx, stop := context.WithTimeout(ctx, 30*time.Second)
			err := n.mesh.Provide(pctx, k)
			stop()
			if err == nil {
				delete(keys, k)
			} else {
				n.log.Debug("announce in the directory", "key", k, "err", err)
			}
		}
		if len(keys) == 0 {
			return
		}
		t := time.NewTimer(delegationRetry)
		select { // a mesh of one has nobody to tell: wait for a member
		case <-up:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// getDelegation brings the right to issue tokens from the founder.
func (n *Node) getDelegation(ctx context.Context) {
	if n.mesh.Tier() != "own" {
		return
	}
	founder := n.mesh.Founder()
	up := make(chan struct{}, 1)
	cancel := n.mesh.Watch(func(ev mesh.Event) {
		if ev.Type == mesh.MemberUp && ev.Member.ID == founder {
			select {
			case up <- struct{}{}:
			default:
			}
		}
	})
	defer cancel()
	for {
		if _, err := n.tokens.current(); err == nil {
			return
		}
		err := n.tokens.fetch(ctx, n.dialer, founder)
		if err == nil {
			n.log.Info("may issue tokens from now on")
			return
		}
		n.log.Debug("no right to issue tokens yet", "err", err)
		t := time.NewTimer(delegationRetry)
		select {
		case <-up:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// Drain stops new work on this node and waits for what runs (on), or takes
// work again. What still runs after limit is stopped; owners place it again.
func (n *Node) Drain(ctx context.Context, on bool, limit time.Duration, report func(text string, running int)) error {
	n.draining.Store(on)
	if n.worker == nil {
		return nil
	}
	n.worker.Step(market.Drain{On: on}, nil)
	if !on {
		report("takes work again", len(n.worker.Leases()))
		return nil
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	last := -1
	for {
		changed := n.worker.Changed()
		running := len(n.worker.Leases())
		if running == 0 {
			return nil
		}
		if running != last {
			report("waiting for containers to end", running)
			last = running
		}
		select {
		case <-changed:
		case <-timer.C:
			report("stopping what still runs", running)
			n.worker.Step(market.Drain{On: true, StopAll: true}, nil)
			timer.Reset(time.Minute)
		case <-ctx.Done():
			return ctx.Err()
		case <-n.ctx.Done():
			return errors.New("the node is closing")
		}
	}
}

// errLeft ends the process after `beam node leave`.
var errLeft = errors.New("this machine has left the mesh")

// Leave drains, gives the membership up and makes Wait return.
func (n *Node) Leave(ctx context.Context, report func(text string, running int)) error {
	if err := n.Drain(ctx, true, time.Minute, report); err != nil {
		return err
	}
	if err := n.mesh.Leave(ctx); err != nil {
		return err
	}
	// The answer goes out before the process ends.
	time.AfterFunc(500*time.Millisecond, func() { n.cancel(errLeft) })
	return nil
}

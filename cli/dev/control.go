package dev

import (
	"context"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/proto/fault"
)

// stateMu guards the Node fields and the state file while nodes start at once.
var stateMu sync.Mutex

// locked changes the state under the lock and saves it.
func (m *Mesh) locked(fn func() error) error {
	stateMu.Lock()
	defer stateMu.Unlock()
	if err := fn(); err != nil {
		return err
	}
	return m.save()
}

// with runs fn on node i of the mesh at root, with the mesh locked.
func with(root string, i int, fn func(*Mesh, *Node) error) error {
	if root == "" {
		root = DefaultRoot
	}
	if _, err := os.Stat(root); err != nil {
		_, err := Load(root)
		return err
	}
	unlock, err := lockRoot(root)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := Load(root)
	if err != nil {
		return err
	}
	n, err := m.node(i)
	if err != nil {
		return err
	}
	return fn(m, n)
}

// Kill ends the process of node i with SIGKILL, as a crash would; its
// containers and helpers go on. It returns when the process has ended.
func Kill(ctx context.Context, root string, i int) error {
	return with(root, i, func(_ *Mesh, n *Node) error {
		if !n.Alive() {
			return nil
		}
		if err := signalAndWait(ctx, n.PID, n.Start, unix.SIGKILL, 30*time.Second); err != nil {
			return fault.Wrap(fault.Timeout, err, "kill "+n.Name, "")
		}
		return nil
	})
}

// Stop asks node i to end (SIGTERM: it drains) and returns when it has.
func Stop(ctx context.Context, root string, i int) error {
	return with(root, i, func(_ *Mesh, n *Node) error {
		if !n.Alive() {
			return nil
		}
		if err := signalAndWait(ctx, n.PID, n.Start, unix.SIGTERM, 2*time.Minute); err != nil {
			return fault.Wrap(fault.Timeout, err, "stop "+n.Name, "")
		}
		return nil
	})
}

// Start starts node i again on its data directory and returns when it is ready.
func Start(ctx context.Context, root string, i int) error {
	return with(root, i, func(m *Mesh, n *Node) error {
		if n.Alive() {
			return nil
		}
		return m.startNode(ctx, n, 2*time.Minute, "up")
	})
}

// Silence drops every packet that node i sends or gets, with nothing told to
// anyone, until it is called with on false. The node keeps running. It is done
// at the bridge's port: a rule inside the namespace would fail the node's sends.
func Silence(ctx context.Context, root string, i int, on bool) error {
	return with(root, i, func(_ *Mesh, n *Node) error {
		state := "3" // forwarding
		if on {
			state = "0" // disabled
		}
		if _, err := tool(ctx, "", "", "bridge", "link", "set", "dev", n.Veth, "state", state); err != nil {
			return fault.Wrap(fault.Internal, err, "silence "+n.Name, "")
		}
		return nil
	})
}

// Throttle gives node i and its containers share of its cores, 0..1; 1 lifts it.
func Throttle(root string, i int, share float64) error {
	if !(share > 0 && share <= 1) {
		return fault.Newf(fault.Invalid, "share %g is not above 0 and up to 1", share)
	}
	return with(root, i, func(m *Mesh, n *Node) error { return m.setThrottle(n, share) })
}

func (m *Mesh) setThrottle(n *Node, share float64) error {
	if share == 0 {
		return nil
	}
	cores := n.CPUs * share
	if share == 1 {
		cores = 0
	}
	if err := setQuota(n.Cgroup, cores); err != nil {
		return fault.Wrap(fault.Internal, err, "throttle "+n.Name, "")
	}
	return nil
}

// Restart stops node i and starts it again with args added to its command line.
func Restart(ctx context.Context, root string, i int, args ...string) error {
	if err := Stop(ctx, root, i); err != nil {
		return err
	}
	err := with(root, i, func(m *Mesh, n *Node) error {
		return m.locked(func() error { n.Args = append(n.Args, args...); return nil })
	})
	if err != nil {
		return err
	}
	return Start(ctx, root, i)
}

package main

import (
	"context"
	"fmt"

	"github.com/beammesh/beammesh/cli"
	"github.com/beammesh/beammesh/cli/dev"
	"github.com/beammesh/beammesh/node"
)

func devRoot(f cli.DevFlags) string {
	if f.Dir != "" {
		return f.Dir
	}
	return dev.DefaultRoot
}

func devUp(ctx context.Context, f cli.DevFlags, progress cli.Progress) error {
	throttle, err := dev.ParseThrottle(f.Throttle)
	if err != nil {
		return err
	}
	_, err = dev.Up(ctx, dev.Options{Root: devRoot(f), Name: f.Name, Nodes: f.Nodes, GPUs: f.GPUs, CPUOvercommit: f.CPUOvercommit,
		Throttle: throttle, NodeArgs: f.NodeArgs, Sweep: node.Sweep}, dev.UI(progress))
	return err
}

func devDown(ctx context.Context, f cli.DevFlags, progress cli.Progress) error {
	return dev.Down(ctx, dev.DownOptions{Root: devRoot(f), Sweep: node.Sweep}, dev.UI(progress))
}

func devEnv(_ context.Context, f cli.DevFlags) ([]string, error) {
	i := f.Node
	if i == 0 {
		i = 1
	}
	lines, err := dev.Env(devRoot(f), i)
	if err != nil {
		return nil, fmt.Errorf("read the dev mesh: %w", err)
	}
	return lines, nil
}

func devStatus(_ context.Context, f cli.DevFlags) (cli.DevStatus, error) {
	m, err := dev.Load(devRoot(f))
	if err != nil {
		return cli.DevStatus{}, err
	}
	s := cli.DevStatus{Name: m.Name, Dir: m.Root, Ready: m.Ready, Nodes: []cli.DevNode{}}
	for _, n := range m.Nodes {
		d := cli.DevNode{Number: n.Index, Name: n.Name, Up: n.Alive(), Addr: n.Addr.String(), GRPC: n.GRPC, HTTP: n.HTTP, GPUs: n.GPUs, Log: n.Log}
		if d.Up {
			d.PID = n.PID
		}
		s.Nodes = append(s.Nodes, d)
	}
	return s, nil
}

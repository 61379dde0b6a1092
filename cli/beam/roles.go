package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"github.com/beammesh/beammesh/cli"
	"github.com/beammesh/beammesh/cli/sim"
	"github.com/beammesh/beammesh/node"
	"github.com/beammesh/beammesh/node/doctor"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/runtime/assets"
)

// version is set by the linker: -X main.version=….
var version = "dev"

// drainOnStop is how long a node that is asked to stop waits for what runs.
const drainOnStop = 30 * time.Second

// roles joins the command line to the parts of the program it does not import.
func roles() cli.Roles {
	return cli.Roles{
		Version:  version,
		NodeUp:   func(ctx context.Context, f cli.NodeFlags) error { return runNode(ctx, "", f) },
		NodeJoin: joinNode,
		Doctor:   runDoctor,
		SDK:      sdkFolder,
		Dev:      cli.DevRoles{Up: devUp, Down: devDown, Env: devEnv, Status: devStatus},
		Sim:      sim.Command(sim.Experiments()),
	}
}

func joinNode(ctx context.Context, ticket string, f cli.NodeFlags) error {
	return runNode(ctx, ticket, f)
}

// defaultData is where a node keeps its data.
func defaultData() string {
	if os.Geteuid() == 0 {
		return "/var/lib/beam"
	}
	if h, err := os.UserHomeDir(); err == nil {
		return filepath.Join(h, ".local", "share", "beam")
	}
	return ""
}

// runNode runs a node until ctx ends. ticket "" founds a mesh, or goes on with
// the membership that the data directory holds.
func runNode(ctx context.Context, ticket string, f cli.NodeFlags) error {
	cfg, err := nodeConfig(f)
	if err != nil {
		return err
	}
	n, err := node.New(ctx, cfg)
	if err != nil {
		return err
	}
	err = serve(ctx, n, ticket, f)
	// The first signal drains, with its own limit; main ends the process at
	// the second.
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*drainOnStop)
	defer cancel()
	if err == nil {
		err = n.Drain(stop, true, drainOnStop, func(text string, running int) {
			fmt.Fprintf(os.Stderr, "%s (%d)\n", text, running)
		})
	}
	return errors.Join(err, n.Close())
}

func serve(ctx context.Context, n *node.Node, ticket string, f cli.NodeFlags) error {
	switch {
	case ticket != "" && n.Joined():
		return fault.New(fault.Conflict, "this machine is a member of a mesh already", "'beam node up' goes on with it; 'beam node leave' ends it")
	case ticket != "":
		if err := n.Join(ctx, ticket); err != nil {
			return err
		}
	case !n.Joined():
		if err := n.Found(ctx); err != nil {
			return err
		}
	}
	i, err := n.Start(ctx)
	if err != nil {
		return err
	}
	// It serves already; what it waits for here makes its first task start at once.
	n.AwaitImages(ctx, f.Progress)
	err = f.Started(cli.NodeStarted{ID: i.ID, Name: i.Name, MeshID: i.MeshID, Members: i.Members, Ticket: i.Ticket, Token: i.Token,
		GRPC: i.GRPC, HTTP: i.HTTP, Worker: i.Worker, Notes: i.Notes})
	if err != nil {
		return err
	}
	return n.Wait(ctx)
}

func nodeConfig(f cli.NodeFlags) (node.Config, error) {
	data := f.DataDir
	if data == "" {
		data = defaultData()
	}
	data, err := filepath.Abs(data)
	if err != nil {
		return node.Config{}, err
	}
	var level slog.Level
	if f.LogLevel != "" {
		if err := level.UnmarshalText([]byte(f.LogLevel)); err != nil {
			return node.Config{}, fault.Wrap(fault.Invalid, err, "unknown log level "+f.LogLevel, "debug, info, warn or error")
		}
	}
	var gap time.Duration
	if s := os.Getenv("BEAM_OWNER_GAP"); s != "" {
		if gap, err = time.ParseDuration(s); err != nil || gap <= 0 {
			return node.Config{}, fault.New(fault.Invalid, fmt.Sprintf("BEAM_OWNER_GAP=%s is no duration", s), "such as 60s")
		}
	}
	faults, err := node.ParseFaults(os.Getenv("BEAM_TEST_CLOCK_OFFSET"), os.Getenv("BEAM_TEST_CORRUPT_BLOCKS"), os.Getenv("BEAM_TEST_KNOWN_ONLY"))
	if err != nil {
		return node.Config{}, err
	}
	var gpus []string
	for _, g := range f.SimulateGPUs {
		gpus = append(gpus, fmt.Sprintf("%s:%d", g.Model, g.Count))
	}
	return node.Config{
		DataDir: data, Name: f.Name, Version: version, Listen: f.Listen, GRPC: f.GRPC, HTTP: f.HTTP,
		SimulatedGPUs: strings.Join(gpus, ","), CPUs: f.CPUs, MemoryBytes: f.MemoryBytes, CPUOvercommit: f.CPUOvercommit,
		NoGossip: f.NoGossip, NoMDNS: f.NoMDNS, NoDHT: f.NoDHT, NoPrefetch: f.NoPrefetch, UpstreamDNS: f.UpstreamDNS,
		BaseCache: os.Getenv("BEAM_BASE_CACHE"), OwnerGap: gap, Zone: f.Zone, DiskFloor: f.DiskFloor, MarketJournal: f.MarketJournal, Faults: faults,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	}, nil
}

// runDoctor tries what a node needs of this machine.
func runDoctor(ctx context.Context, f cli.NodeFlags, report func(cli.Check)) error {
	data := f.DataDir
	if data == "" {
		data = defaultData()
	}
	listen := f.Listen
	if len(listen) == 0 {
		listen = []string{node.DefaultMesh}
	}
	doctor.Run(ctx, doctor.Config{DataDir: data, Listen: []string{f.GRPC, f.HTTP}, ListenUDP: listen}, func(c doctor.Check) {
		report(cli.Check{Name: c.Name, State: cli.CheckState(c.State), Detail: c.Detail, Fix: c.Fix, Took: c.Took})
	})
	return nil
}

// sdkFolder gives the embedded Python package, laid out once per content.
func sdkFolder() (string, error) {
	dir := defaultData()
	if u, err := user.Current(); err == nil && u.Uid != "0" {
		if c, err := os.UserCacheDir(); err == nil {
			dir = filepath.Join(c, "beam")
		}
	}
	p, err := assets.Extract(filepath.Join(dir, "assets"))
	if err != nil {
		return "", err
	}
	return p.Runner, nil
}

// helperRole gives the function of a helper process that the arguments name,
// if they name one.
func helperRole([]string) (run func() int, ok bool) { return nil, false }

package dev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/beammesh/beammesh/proto/fault"
)

// Up starts a mesh and returns when every node said that it is ready and its
// API's port takes connections. When the same mesh runs already it is given
// back; remains of one that died are removed first. When it fails, or ctx ends,
// nothing is left and the error holds the last lines of the node at fault.
func Up(ctx context.Context, o Options, ui UI) (*Mesh, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := checkHost(); err != nil {
		return nil, err
	}
	unlock, err := lockRoot(o.Root)
	if err != nil {
		return nil, err
	}
	defer unlock()
	old, err := Load(o.Root)
	switch {
	case err == nil && old.running():
		if old.Options != o.fingerprint() {
			return nil, fault.New(fault.Conflict, "another dev mesh is up in "+o.Root, "end it first: 'beam dev down'")
		}
		ui.say("the mesh is up already")
		return old, nil
	case err == nil:
		ui.say("removing the remains of an earlier mesh")
		if err := old.remove(ctx, DownOptions{Sweep: o.Sweep}, ui); err != nil {
			return nil, err
		}
	case fault.CodeOf(err) != fault.NotFound:
		return nil, err
	}
	m, err := plan(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := m.save(); err != nil { // from here on Down finds all of it
		return nil, err
	}
	if err := m.start(ctx, o, ui); err != nil {
		// The clean-up has its own time: ctx may be what ended.
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		ui.say("that failed: removing everything again")
		if rerr := m.remove(cctx, DownOptions{Sweep: o.Sweep, Now: true}, nil); rerr != nil {
			ui.say("clean-up: %v; 'beam dev down' tries again", rerr)
		}
		return nil, err
	}
	return m, nil
}

// fingerprint tells whether two calls of Up ask for the same mesh.
func (o Options) fingerprint() string {
	return fmt.Sprintf("%d nodes, gpus %q, overcommit %g, throttle %v, args %q, env %q %v", o.Nodes, o.GPUs, o.CPUOvercommit, o.Throttle, o.NodeArgs, o.NodeEnv, o.EnvOf)
}

func (m *Mesh) running() bool {
	for _, n := range m.Nodes {
		if !n.Alive() {
			return false
		}
	}
	return m.Ready
}

// plan decides all names and shares; it makes nothing.
func plan(ctx context.Context, o Options) (*Mesh, error) {
	m := &Mesh{Root: o.Root, Name: o.Name, Created: time.Now().UTC(), Options: o.fingerprint(), Binary: o.Binary,
		Bridge: o.Name, Table: "beam_dev_" + o.Name, Legacy: legacyFirewall()}
	if _, err := os.Lstat("/sys/class/net/" + m.Bridge); err == nil {
		return nil, fault.New(fault.Conflict, "there is a network interface "+m.Bridge+" already",
			"a mesh in another folder may use it: 'beam dev down --dir …'")
	}
	var err error
	if m.Subnet, err = freeSubnet(); err != nil {
		return nil, err
	}
	if m.Foreign, err = foreignChains(ctx); err != nil {
		return nil, netErr(err)
	}
	b, err := os.ReadFile(ipForward)
	if err != nil {
		return nil, netErr(err)
	}
	m.IPForward = strings.TrimSpace(string(b))
	rules, err := tool(ctx, "", "", "nft", "list", "ruleset")
	if err != nil {
		return nil, netErr(err)
	}
	if m.GRPC, err = loopbackPort(grpcPort, rules); err != nil {
		return nil, err
	}
	if m.HTTP, err = loopbackPort(httpPort, rules); err != nil {
		return nil, err
	}
	gpus, err := assignGPUs(o.GPUs, o.Nodes)
	if err != nil {
		return nil, err
	}
	memory, err := hostMemory()
	if err != nil {
		return nil, err
	}
	cores := max(runtime.NumCPU()/o.Nodes, 1)
	for i := 1; i <= o.Nodes; i++ {
		m.Nodes = append(m.Nodes, m.planNode(o, i, gpus[i-1], cores, memory/int64(o.Nodes)))
	}
	return m, nil
}

// planNode decides the names and the share of one node.
func (m *Mesh) planNode(o Options, i int, gpus string, cores int, memory int64) *Node {
	n := &Node{
		Index: i, Name: fmt.Sprint("node", i), Dir: filepath.Join(o.Root, fmt.Sprint("node", i)),
		Log:   filepath.Join(o.Root, fmt.Sprintf("node%d.log", i)),
		NetNS: fmt.Sprint(o.Name, "-", i), Veth: fmt.Sprint(o.Name, "v", i),
		Addr: nodeAddr(m.Subnet, i), Cgroup: fmt.Sprintf("/beam-dev/%s/node%d", o.Name, i),
		GPUs: gpus, CPUs: float64(cores),
	}
	n.Env = slices.Concat([]string{"BEAM_CGROUP_PARENT=" + n.Cgroup}, o.NodeEnv, o.EnvOf[i])
	n.Args = []string{
		"--data", n.Dir, "--name", n.Name,
		"--listen", fmt.Sprint(n.Addr, ":", meshPort),
		"--grpc", fmt.Sprint(n.Addr, ":", grpcPort), "--http", fmt.Sprint(n.Addr, ":", httpPort),
		"--cpus", strconv.Itoa(cores), "--memory", strconv.FormatInt(memory, 10),
		"--cpu-overcommit", strconv.FormatFloat(o.CPUOvercommit, 'g', -1, 64),
	}
	if n.GPUs != "" {
		n.Args = append(n.Args, "--simulate-gpus", n.GPUs)
	}
	for _, a := range o.NodeArgs {
		n.Args = append(n.Args, strings.ReplaceAll(a, GatewayArg, gateway(m.Subnet).String()))
	}
	return n
}

// Add lets one more node join a mesh that is up and returns when it is ready. o
// has the options the mesh was made with; GPUs are all the new node's.
func Add(ctx context.Context, o Options) (*Node, error) {
	o.Nodes = max(o.Nodes, 1)
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	var n *Node
	err = with(o.Root, 1, func(m *Mesh, first *Node) error {
		i := len(m.Nodes) + 1
		if i > MaxNodes {
			return fault.Newf(fault.Invalid, "a dev mesh has at most %d nodes", MaxNodes)
		}
		memory, err := hostMemory()
		if err != nil {
			return err
		}
		n = m.planNode(o, i, o.GPUs, int(first.CPUs), memory/int64(i))
		// On disk before it is made, so that Down finds it.
		if err := m.locked(func() error { m.Nodes = append(m.Nodes, n); return nil }); err != nil {
			return err
		}
		if err := m.plug(ctx, n); err != nil {
			return err
		}
		ticket, err := m.invite(ctx)
		if err != nil {
			return err
		}
		return m.startNode(ctx, n, o.ReadyTimeout, "join", ticket)
	})
	return n, err
}

// loopbackPort gives 127.0.0.1:want, or another free port when something of
// the host listens there, or another dev mesh redirects it.
func loopbackPort(want int, rules string) (string, error) {
	l, err := net.Listen("tcp4", fmt.Sprint("127.0.0.1:", want))
	if err == nil && strings.Contains(rules, fmt.Sprintf("ip daddr 127.0.0.1 tcp dport %d dnat", want)) {
		_ = l.Close()
		err = errors.New("redirected")
	}
	if err != nil {
		l, err = net.Listen("tcp4", "127.0.0.1:0")
	}
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "find a free port", "")
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String(), nil
}

// hostMemory is nine tenths of the machine's: the rest is the host's own.
func hostMemory() (int64, error) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return 0, fault.Wrap(fault.Internal, err, "read the machine's memory", "")
	}
	return int64(uint64(si.Totalram)*uint64(si.Unit)) / 10 * 9, nil
}

func (m *Mesh) start(ctx context.Context, o Options, ui UI) error {
	ui.say("network: bridge %s, %s", m.Bridge, m.Subnet)
	if err := m.makeNetwork(ctx); err != nil {
		return err
	}
	first := m.Nodes[0]
	if err := m.startNode(ctx, first, o.ReadyTimeout, "up"); err != nil {
		return err
	}
	ui.say("node1 is ready at %s", first.GRPC)
	if err := m.setThrottle(first, o.Throttle[1]); err != nil {
		return err
	}
	if len(m.Nodes) > 1 && first.Ticket == "" {
		return fault.New(fault.Internal, "node1 gave no ticket for the others to join with", "see "+first.Log)
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, n := range m.Nodes[1:] {
		g.Go(func() error {
			ticket := first.Ticket
			if n.Index > 2 { // a ticket works once: the first went to node 2
				var err error
				if ticket, err = m.invite(gctx); err != nil {
					return err
				}
			}
			if err := m.startNode(gctx, n, o.ReadyTimeout, "join", ticket); err != nil {
				return err
			}
			return m.setThrottle(n, o.Throttle[n.Index])
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, n := range m.Nodes[1:] {
		ui.say("%s is ready at %s%s", n.Name, n.GRPC, strings.TrimSuffix(" with simulated "+n.GPUs, " with simulated "))
	}
	m.Ready = true
	return m.locked(func() error { return nil })
}

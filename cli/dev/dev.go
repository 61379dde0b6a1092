// Package dev runs a mesh of several nodes on one Linux machine: what is behind
// `beam dev up|down|env|status`, the demo and the end-to-end tests.
//
//	m, err := dev.Up(ctx, dev.Options{Nodes: 3, GPUs: "H100:2,RTX4090:1"}, func(line string) { fmt.Fprintln(os.Stderr, line) })
//	lines, err := dev.Env(root, 1) // GATEWAY_HOST=…, BEAM_TOKEN=…
//	err = dev.Down(ctx, dev.DownOptions{}, ui)
//
// Each node is a process of this same program (`node up`, `node join`) in a
// network namespace of its own, on one bridge with NAT to the outside; it has
// its own data directory, cgroup and share of the host's cores and memory. The
// host reaches node i at its address, and node 1's API also on its loopback.
//
// Everything is written into a state file, synced before it is made, so that
// Down after a kill -9 at any moment finds all of it: processes (by pid and
// start time, by cgroup, by network namespace, by root filesystem), namespaces,
// links, bridge, firewall rules, cgroups, mounts and folders. Up begins with
// such a clean-up when it finds the remains of a mesh.
//
// For tests there are Add, Kill, Stop, Start, Silence (drop every packet of a node) and
// Throttle (a share of CPU for a node and its containers).
//
// It needs root, `ip` and `nft`. One mesh per Root and per Name.
package dev

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/beammesh/beammesh/proto/fault"
)

// Defaults and bounds.
const (
	DefaultRoot = "/var/lib/beammesh-dev"
	DefaultName = "beamdev"
	MaxNodes    = 32
	grpcPort    = 1993
	httpPort    = 1994
	meshPort    = 1992
)

// Options say what mesh to make. Zero fields take the default.
type Options struct {
	Root  string // folder of all state, DefaultRoot
	Name  string // of bridge, namespaces and tables, [a-z][a-z0-9]{0,9}: DefaultName
	Nodes int    // 1..MaxNodes
	// GPUs are simulated ones, "MODEL:COUNT" entries separated by commas. Entry
	// 1 goes to node 2, entry 2 to node 3 and so on, back to node 2 after the
	// last node: node 1, where people type, is the one without a GPU. A mesh
	// of one node gets all of them.
	GPUs          string
	CPUOvercommit float64         // 0 = 4: the nodes share few cores
	Throttle      map[int]float64 // node → share of its cores, 0..1
	// NodeArgs are added to every node's command line, with the bridge's address
	// for GatewayArg.
	NodeArgs []string
	NodeEnv  []string // added to every node's environment
	// EnvOf is added to the environment of one node, by its number.
	EnvOf        map[int][]string
	Binary       string        // program to run, "" = this one
	ReadyTimeout time.Duration // for each node, 0 = 2 min
	// Sweep removes what a dead node's containers left outside its namespace;
	// see DownOptions. Used when Up has to clean up.
	Sweep Sweep
}

// GatewayArg stands in NodeArgs for the address under which nodes reach the host.
const GatewayArg = "{gateway}"

// Sweep is given by the program: it removes what the runtime of the node with
// this data directory left on the machine. It runs after the node's processes
// have ended.
type Sweep func(dataDir string) error

// UI takes lines of progress for people, in order.
type UI func(line string)

func (u UI) say(format string, args ...any) {
	if u != nil {
		u(fmt.Sprintf(format, args...))
	}
}

var nameRE = regexp.MustCompile(`^[a-z][a-z0-9]{0,9}$`)

// withDefaults checks o and fills it in.
func (o Options) withDefaults() (Options, error) {
	if o.Root == "" {
		o.Root = DefaultRoot
	}
	if o.Name == "" {
		o.Name = DefaultName
	}
	if o.CPUOvercommit == 0 {
		o.CPUOvercommit = 4
	}
	if o.ReadyTimeout == 0 {
		o.ReadyTimeout = 2 * time.Minute
	}
	var err error
	if o.Root, err = filepath.Abs(o.Root); err != nil {
		return o, fault.Wrap(fault.Invalid, err, "folder "+o.Root, "")
	}
	switch {
	case o.Nodes < 1 || o.Nodes > MaxNodes:
		return o, fault.Newf(fault.Invalid, "a dev mesh has 1 to %d nodes, not %d", MaxNodes, o.Nodes)
	case !nameRE.MatchString(o.Name):
		return o, fault.Newf(fault.Invalid, "name %q is not a letter and up to 9 letters or digits, lower case", o.Name)
	case !(o.CPUOvercommit >= 1 && o.CPUOvercommit <= 64):
		return o, fault.Newf(fault.Invalid, "CPU overcommit %g is not within 1..64", o.CPUOvercommit)
	case strings.ContainsAny(o.Root, " \t\n\\,:"):
		return o, fault.Newf(fault.Invalid, "folder %q has blanks, commas, colons or backslashes, which mount options cannot hold", o.Root)
	}
	if _, err := assignGPUs(o.GPUs, o.Nodes); err != nil {
		return o, err
	}
	for n, share := range o.Throttle {
		if n < 1 || n > o.Nodes || !(share > 0 && share <= 1) {
			return o, fault.Newf(fault.Invalid, "throttle %d=%g: want a node of the mesh and a share above 0 and up to 1", n, share)
		}
	}
	if o.Binary == "" {
		if o.Binary, err = os.Executable(); err != nil {
			return o, fault.Wrap(fault.Internal, err, "find this program", "")
		}
	}
	return o, nil
}

var gpuRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,31}(:[0-9]{1,4})?$`)

// assignGPUs gives each node (index 0 = node 1) its entries, as documented at
// Options.GPUs.
func assignGPUs(list string, nodes int) ([]string, error) {
	out := make([]string, nodes)
	if strings.TrimSpace(list) == "" {
		return out, nil
	}
	for k, e := range strings.Split(list, ",") {
		e = strings.TrimSpace(e)
		if !gpuRE.MatchString(e) {
			return nil, fault.New(fault.Invalid, fmt.Sprintf("GPU %q is not MODEL:COUNT", e), "such as --gpus H100:2,RTX4090:1")
		}
		at := 0
		if nodes > 1 {
			at = 1 + k%(nodes-1)
		}
		out[at] = strings.TrimPrefix(out[at]+","+e, ",")
	}
	return out, nil
}

// ParseThrottle reads "3=0.2,2=0.5".
func ParseThrottle(s string) (map[int]float64, error) {
	out := map[int]float64{}
	if s == "" {
		return out, nil
	}
	for _, e := range strings.Split(s, ",") {
		n, share, ok := strings.Cut(strings.TrimSpace(e), "=")
		i, err1 := strconv.Atoi(n)
		f, err2 := strconv.ParseFloat(share, 64)
		if !ok || err1 != nil || err2 != nil {
			return nil, fault.New(fault.Invalid, fmt.Sprintf("throttle %q is not NODE=SHARE", e), "such as 3=0.2: node 3 gets a fifth of its cores")
		}
		out[i] = f
	}
	return out, nil
}

// checkHost refuses machines on which none of this works, all reasons at once.
func checkHost() error {
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "root (run it with sudo)")
	}
	for tool, pkg := range map[string]string{"ip": "iproute2", "nft": "nftables"} {
		if _, err := lookTool(tool); err != nil {
			missing = append(missing, tool+" (package "+pkg+")")
		}
	}
	if len(missing) > 0 {
		return fault.New(fault.Unsupported, "a dev mesh needs "+strings.Join(missing, ", "),
			"on Debian and Ubuntu: sudo apt-get install iproute2 nftables")
	}
	return nil
}

// lookTool finds a system program also where root's PATH lacks sbin.
func lookTool(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		p := filepath.Join(dir, name)
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("program %s is not installed", name)
}

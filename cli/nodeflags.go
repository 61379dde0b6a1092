package cli

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/beammesh/beammesh/cli/client"
	"github.com/beammesh/beammesh/cli/output"
	"github.com/beammesh/beammesh/proto/fault"
)

// rawNodeFlags are node flags as typed, before check makes NodeFlags of them.
type rawNodeFlags struct {
	NodeFlags
	gpus, memory string
	diskFloor    string
	journal      string
	readyFD      int
}

func (r *rawNodeFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&r.DataDir, "data", "", "folder for all state (default /var/lib/beam, or ~/.local/share/beam without root)")
	f.StringVar(&r.Name, "name", "", "name of this node (default: the host name)")
	f.StringVar(&r.Zone, "zone", "", "where this machine stands, such as lab-2: work is placed in the zone of the node that takes it, where all else is equal")
	f.StringSliceVar(&r.Listen, "listen", nil, "addresses for other nodes, host:port or multiaddr (default: all)")
	f.StringVar(&r.GRPC, "grpc", "127.0.0.1:1993", "address for gRPC and Connect clients")
	f.StringVar(&r.HTTP, "http", "127.0.0.1:1994", "address for REST and HTTP clients")
	f.StringVar(&r.gpus, "simulate-gpus", "", "pretend to have GPUs, for trying things out: H100:2,RTX4090:1")
	f.Float64Var(&r.CPUs, "cpus", 0, "cores to offer (default: all)")
	f.StringVar(&r.memory, "memory", "", "memory to offer, such as 8GiB (default: what there is)")
	f.StringVar(&r.diskFloor, "disk-floor", "1GiB", "disk that stays free: below it no container is started")
	f.StringVar(&r.journal, "market-journal", "64MiB", "disk for the journal of placement decisions, which 'beam sim replay' reads; 0 keeps none")
	f.Float64Var(&r.CPUOvercommit, "cpu-overcommit", 1, "offer this many times the cores")
	f.BoolVar(&r.NoGossip, "no-gossip", false, "do without gossip")
	f.BoolVar(&r.NoMDNS, "no-mdns", false, "do without discovery on the local network")
	f.BoolVar(&r.NoDHT, "no-dht", false, "do without the distributed index")
	f.BoolVar(&r.NoPrefetch, "no-prefetch", false, "fetch images when a task wants them, not before")
	f.StringSliceVar(&r.UpstreamDNS, "upstream-dns", nil, "name servers for containers (default: this machine's)")
	f.StringVar(&r.LogLevel, "log-level", "", "debug, info, warn or error (default: info; warn on a terminal)")
	f.IntVar(&r.readyFD, "ready-fd", -1, "write one line of JSON to this file descriptor when ready, and leave ~/.beam alone")
	f.Lookup("ready-fd").Hidden = true
	_ = c.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp))
}

// Bounds of simulated hardware: larger numbers are typing errors.
const (
	maxSimulatedGPUs  = 1024
	maxCPUOvercommit  = 64
	maxOfferableCores = 4096
)

var gpuModel = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$`)

// check turns typed values into NodeFlags or says which one is wrong.
func (r *rawNodeFlags) check(cmd *cobra.Command, terminal bool) (NodeFlags, error) {
	out := r.NodeFlags
	if out.LogLevel == "" {
		// Between the lines for people the log of every connection is noise.
		out.LogLevel = "info"
		if terminal {
			out.LogLevel = "warn"
		}
	}
	var err error
	if out.SimulateGPUs, err = parseGPUs(r.gpus); err != nil {
		return out, usage(cmd, "--simulate-gpus: "+err.Error())
	}
	if r.memory != "" {
		if out.MemoryBytes, err = parseBytes(r.memory); err != nil {
			return out, usage(cmd, "--memory: "+err.Error())
		}
	}
	if out.DiskFloor, err = parseBytes(r.diskFloor); err != nil {
		return out, usage(cmd, "--disk-floor: "+err.Error())
	}
	if r.journal != "0" {
		if out.MarketJournal, err = parseBytes(r.journal); err != nil {
			return out, usage(cmd, "--market-journal: "+err.Error())
		}
		if out.MarketJournal < 1<<20 {
			return out, usage(cmd, "--market-journal has to be 1MiB at least, or 0 for none")
		}
	}
	switch {
	case math.IsNaN(out.CPUs) || out.CPUs < 0 || out.CPUs > maxOfferableCores:
		return out, usage(cmd, fmt.Sprintf("--cpus has to be between 0 and %d", maxOfferableCores))
	case !(out.CPUOvercommit >= 1 && out.CPUOvercommit <= maxCPUOvercommit):
		return out, usage(cmd, fmt.Sprintf("--cpu-overcommit has to be between 1 and %d", maxCPUOvercommit))
	case out.LogLevel != "debug" && out.LogLevel != "info" && out.LogLevel != "warn" && out.LogLevel != "error":
		return out, usage(cmd, fmt.Sprintf("--log-level: %q is none of debug, info, warn, error", out.LogLevel))
	case out.NoDHT && out.NoGossip:
		return out, usage(cmd, "--no-dht and --no-gossip together leave no way to find other nodes")
	}
	return out, nil
}

// parseGPUs reads "H100:2,RTX4090" as a list; a model alone counts one.
func parseGPUs(s string) ([]SimulatedGPU, error) {
	if s == "" {
		return nil, nil
	}
	var out []SimulatedGPU
	total := 0
	for _, part := range strings.Split(s, ",") {
		model, count, has := strings.Cut(strings.TrimSpace(part), ":")
		n := 1
		if has {
			var err error
			if n, err = strconv.Atoi(count); err != nil {
				return nil, fmt.Errorf("%q: want MODEL:COUNT, such as H100:2", part)
			}
		}
		if !gpuModel.MatchString(model) || n < 1 {
			return nil, fmt.Errorf("%q: want MODEL:COUNT, such as H100:2", part)
		}
		if total += n; n > maxSimulatedGPUs || total > maxSimulatedGPUs {
			return nil, fmt.Errorf("more than %d GPUs", maxSimulatedGPUs)
		}
		out = append(out, SimulatedGPU{model, n})
	}
	return out, nil
}

// parseBytes reads 1048576, 512MiB, 8G, 1.5GiB. K, M, G, T and KB… are
// thousands, KiB… are 1024.
func parseBytes(s string) (int64, error) {
	t := strings.ToLower(strings.TrimSpace(s))
	digits := strings.TrimRight(t, "kmgtib ")
	unit := strings.TrimSpace(t[len(digits):])
	v, err := strconv.ParseFloat(digits, 64)
	units := map[string]float64{
		"": 1, "b": 1,
		"k": 1e3, "kb": 1e3, "ki": 1 << 10, "kib": 1 << 10,
		"m": 1e6, "mb": 1e6, "mi": 1 << 20, "mib": 1 << 20,
		"g": 1e9, "gb": 1e9, "gi": 1 << 30, "gib": 1 << 30,
		"t": 1e12, "tb": 1e12, "ti": 1 << 40, "tib": 1 << 40,
	}
	factor, ok := units[unit]
	if err != nil || !ok || !(v > 0) || v*factor > 1<<60 {
		return 0, fmt.Errorf("%q is no size, such as 512MiB or 8GiB", s)
	}
	return int64(v * factor), nil
}

// started prints what a node can now do: for a supervisor one line of JSON on
// its descriptor, for people the ticket and the next commands.
func (a *App) started(readyFD int, s NodeStarted) error {
	if readyFD >= 0 {
		f := os.NewFile(uintptr(readyFD), "ready")
		if f == nil {
			return fault.New(fault.Invalid, fmt.Sprintf("--ready-fd %d is not open", readyFD), "")
		}
		line, err := json.Marshal(s)
		if err == nil {
			_, err = f.Write(append(line, '\n'))
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "write to --ready-fd", "")
		}
		return nil
	}
	p, err := a.printer()
	if err != nil {
		return err
	}
	saved := a.saveLocal(s)
	if p.Format.Machine() {
		return p.Value(s)
	}
	st := a.style(a.env.StderrTTY)
	a.progress("%s  node %s is up, the mesh has %s", st.Green("ready"), st.Bold(s.Name), output.Count(s.Members, "member"))
	a.progress("  clients   %s (gRPC, Connect), %s (HTTP)", s.GRPC, s.HTTP)
	if !s.Worker {
		a.progress("  %s this node answers clients but runs no containers", st.Yellow("note:"))
	}
	for _, n := range s.Notes {
		a.progress("  %s %s", st.Yellow("note:"), lines(n))
	}
	for _, l := range saved {
		a.progress("  %s", l)
	}
	if s.Ticket != "" {
		a.progress("  another machine joins with:  %s", st.Bold("sudo beam node join "+s.Ticket))
		if _, err := fmt.Fprintln(a.env.Stdout, s.Ticket); err != nil {
			return err
		}
	}
	a.progress("  try:  beam node ls    beam run app.py:fn    (Ctrl-C here drains and stops the node)")
	return nil
}

// saveLocal lets the user of this machine use the node without typing: the
// token goes into the configuration of the user who called, and of the one
// who called sudo. Failing to do so is told, not fatal. It gives lines to show.
func (a *App) saveLocal(s NodeStarted) []string {
	if s.Token == "" {
		return nil
	}
	settings, err := client.Resolve(client.Source{Host: "127.0.0.1"})
	if err != nil {
		return nil
	}
	if host, port, ok := splitHostPort(s.GRPC); ok {
		settings.Port = port
		if host != "" && host != "0.0.0.0" && host != "::" {
			settings.Host = host
		}
	}
	x := client.Context{Name: client.DefaultContext, Token: s.Token, Host: settings.Host, Port: settings.Port}
	type target struct {
		path     string
		uid, gid int
	}
	var targets []target
	if p := a.configPath(); p != "" {
		targets = append(targets, target{p, -1, -1})
	}
	if name := a.env.Getenv("SUDO_USER"); name != "" && os.Geteuid() == 0 {
		if u, err := user.Lookup(name); err == nil {
			uid, uerr := strconv.Atoi(u.Uid)
			gid, gerr := strconv.Atoi(u.Gid)
			if p := client.ConfigPath(u.HomeDir); uerr == nil && gerr == nil && (len(targets) == 0 || p != targets[0].path) {
				targets = append(targets, target{p, uid, gid})
			}
		}
	}
	var out []string
	for _, t := range targets {
		name, err := client.SaveLocal(t.path, x, s.Name)
		if err == nil && t.uid >= 0 {
			err = os.Lchown(t.path, t.uid, t.gid)
			if err == nil {
				err = os.Lchown(filepath.Dir(t.path), t.uid, t.gid)
			}
		}
		switch {
		case err != nil:
			out = append(out, fmt.Sprintf("%s could not save the token in %s: %v", a.style(a.env.StderrTTY).Yellow("note:"), t.path, err))
		case name != client.DefaultContext:
			out = append(out, fmt.Sprintf("token saved as context %s in %s; `beam config select %s` makes it the default", name, t.path, name))
		default:
			out = append(out, "token saved in "+t.path)
		}
	}
	return out
}

func splitHostPort(s string) (host string, port int, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", 0, false
	}
	port, err := strconv.Atoi(s[i+1:])
	return strings.Trim(s[:i], "[]"), port, err == nil && port > 0 && port < 65536
}

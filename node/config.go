package node

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	goruntime "runtime"
	"strconv"
	"strings"
	"time"

	"github.com/beammesh/beammesh/node/marketlog"
	"github.com/beammesh/beammesh/proto/fault"
)

// Ports of the API, as stock clients expect them, and of the mesh.
const (
	DefaultGRPC = "127.0.0.1:1993"
	DefaultHTTP = "127.0.0.1:1994"
	DefaultMesh = "0.0.0.0:1992"
)

// Config is what a node is made from.
type Config struct {
	DataDir  string // required; made when missing
	StateDir string // short path for sockets; "" = below /run/beam
	Name     string // "" = the host name
	Version  string
	Listen   []string // mesh addresses, ip:port
	GRPC     string   // API addresses; port 0 picks one
	HTTP     string

	Zone string // where the machine stands: a rack, a room, a site; "" = nowhere in particular

	SimulatedGPUs string  // "H100:2,RTX4090:1": devices in name only, marked so everywhere
	CPUs          float64 // cores to offer; 0 = all
	MemoryBytes   int64   // to offer; 0 = all but a reserve
	CPUOvercommit float64 // 1 = none
	NoGossip      bool
	NoMDNS        bool
	NoDHT         bool
	NoPrefetch    bool // images come when a task wants them, not before
	UpstreamDNS   []string
	// BaseCache is a folder where bootstrapped base images are kept for every
	// node of this machine; "" = in the data directory.
	BaseCache string
	DiskFloor int64 // bytes that stay free; 0 = 1 GiB
	// OwnerGap is how long a task that is not headless goes on without a sign of
	// the node that took it; 0 = 60 s.
	OwnerGap time.Duration

	// MarketJournal bounds the journal of placement decisions, in bytes; 0 = none.
	MarketJournal int64

	Faults Faults // for tests only

	Log *slog.Logger
}

func (c Config) complete() (Config, error) {
	if c.DataDir == "" {
		return c, fault.New(fault.Invalid, "no data directory", "give --data DIR")
	}
	if c.Name == "" {
		c.Name, _ = os.Hostname()
	}
	if c.GRPC == "" {
		c.GRPC = DefaultGRPC
	}
	if c.HTTP == "" {
		c.HTTP = DefaultHTTP
	}
	if len(c.Listen) == 0 && portFree(DefaultMesh) {
		// One known port, which people can open in a firewall; a second node of
		// the same machine takes any other, and keeps it.
		c.Listen = []string{DefaultMesh, "[::]:1992"}
	}
	if c.CPUOvercommit == 0 {
		c.CPUOvercommit = 1
	}
	if c.CPUOvercommit < 1 || c.CPUOvercommit > 100 {
		return c, fault.New(fault.Invalid, fmt.Sprintf("cpu overcommit of %g is not within 1 and 100", c.CPUOvercommit), "1 offers the real cores, 4 offers each four times")
	}
	if c.CPUs < 0 || c.MemoryBytes < 0 {
		return c, fault.New(fault.Invalid, "cpus and memory cannot be negative", "leave them out to offer all")
	}
	if err := checkZone(c.Zone); err != nil {
		return c, err
	}
	if c.MarketJournal != 0 && c.MarketJournal < marketlog.MinBytes {
		return c, fault.New(fault.Invalid, fmt.Sprintf("a market journal of %d bytes is too small", c.MarketJournal), "give it 1 MiB at least, or 0 for none")
	}
	if c.DiskFloor == 0 {
		c.DiskFloor = 1 << 30
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// maxZone bounds a zone's name: it travels in every advert.
const maxZone = 32

func checkZone(zone string) error {
	for _, r := range zone {
		if !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.') {
			return fault.New(fault.Invalid, fmt.Sprintf("%q is no zone", zone), "use small letters, digits, '-' and '.', such as lab-2")
		}
	}
	if len(zone) > maxZone {
		return fault.New(fault.Invalid, fmt.Sprintf("the zone has %d letters", len(zone)), fmt.Sprintf("use %d at most", maxZone))
	}
	return nil
}

func portFree(addr string) bool {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	return l.Close() == nil
}

// limits says for explanations which ways of finding nodes are switched off.
func (c Config) limits() []string {
	var out []string
	if c.NoDHT {
		out = append(out, "the DHT is off at this node: only nodes that it heard of by gossip or met are candidates")
	}
	if c.NoGossip {
		out = append(out, "gossip is off at this node: it looks for nodes in the DHT")
	}
	return out
}

// cores and memory that this node offers.
func (c Config) cpuMillis() int64 {
	if c.CPUs > 0 {
		return int64(c.CPUs * 1000)
	}
	return int64(goruntime.NumCPU()) * 1000
}

// memoryReserve stays with the machine's owner and the node itself.
const memoryReserve = 512 << 20

func (c Config) memoryMiB() int64 {
	if c.MemoryBytes > 0 {
		return c.MemoryBytes >> 20
	}
	total := hostMemory()
	return max(total-max(memoryReserve, total/10), total/2) >> 20
}

// hostMemory reads MemTotal in bytes.
func hostMemory() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 1 << 30
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err == nil {
				return kib << 10
			}
		}
	}
	return 1 << 30
}

package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

// Roles is what the one main of this program puts in. A role that is nil makes
// its command explain that this build lacks it.
type Roles struct {
	Version string
	// NodeUp runs a node until ctx ends (then it drains and returns nil) or it
	// fails. It calls flags.Started once, when the node can take work.
	NodeUp func(ctx context.Context, flags NodeFlags) error
	// NodeJoin is NodeUp as a new member of the ticket's mesh.
	NodeJoin func(ctx context.Context, ticket string, flags NodeFlags) error
	// Doctor tries each thing a node needs of this machine and reports every
	// check as it is done. Its error is for what kept it from checking.
	Doctor func(ctx context.Context, flags NodeFlags, report func(Check)) error
	// SDK gives the folder with the embedded Python package `beam`.
	SDK func() (string, error)
	// Dev runs meshes of several nodes on this machine.
	Dev DevRoles
	// Sim makes the command `sim`, which knows the simulator; nil = there is none.
	Sim func(*App) *cobra.Command
}

// DevRoles are the commands behind `beam dev`.
type DevRoles struct {
	Up   func(ctx context.Context, flags DevFlags, progress Progress) error
	Down func(ctx context.Context, flags DevFlags, progress Progress) error
	// Env gives KEY=VALUE lines with which clients find a node of the mesh.
	Env func(ctx context.Context, flags DevFlags) ([]string, error)
	// Status tells of the mesh and its nodes, running or not.
	Status func(ctx context.Context, flags DevFlags) (DevStatus, error)
}

// DevStatus is a mesh of `dev up`.
type DevStatus struct {
	Name  string    `json:"name"`
	Dir   string    `json:"dir"`
	Ready bool      `json:"ready"` // its start went to the end
	Nodes []DevNode `json:"nodes"`
}

// DevNode is one node of it.
type DevNode struct {
	Number int    `json:"number"` // from 1, as --node takes it
	Name   string `json:"name"`
	Up     bool   `json:"up"` // its process runs
	Addr   string `json:"addr"`
	GRPC   string `json:"grpc"` // host:port, from this machine
	HTTP   string `json:"http"`
	GPUs   string `json:"gpus,omitempty"` // simulated
	PID    int    `json:"pid,omitempty"`
	Log    string `json:"log"` // file with what it printed
}

// Progress takes steps of longer work, for people; lines come in order.
type Progress func(line string)

// NodeFlags is everything that `node up` and `node join` can be told.
type NodeFlags struct {
	DataDir       string   // "" = the node's default
	Name          string   // "" = the host name
	Listen        []string // mesh addresses; empty = all interfaces, default port
	GRPC          string   // host:port of gRPC and Connect
	HTTP          string   // host:port of REST and HTTP
	SimulateGPUs  []SimulatedGPU
	CPUs          float64 // cores to offer; 0 = all
	MemoryBytes   int64   // memory to offer; 0 = what there is
	CPUOvercommit float64 // >= 1
	Zone          string
	DiskFloor     int64 // bytes that stay free; 0 = the default
	MarketJournal int64 // bytes of the journal of placement decisions; 0 = none
	NoGossip      bool
	NoMDNS        bool
	NoDHT         bool
	NoPrefetch    bool     // no images before a task wants them
	UpstreamDNS   []string // host or host:port; empty = the host's resolvers
	LogLevel      string   // debug, info, warn, error

	// Started is set by this package: the node calls it once when it can take
	// work. It prints what people and scripts wait for.
	Started func(NodeStarted) error `json:"-"`
	// Progress is set by this package: it takes what the node does before that.
	Progress Progress `json:"-"`
}

// SimulatedGPU asks for Count devices that exist only in the inventory.
type SimulatedGPU struct {
	Model string
	Count int
}

// NodeStarted is what a node knows when it can take work.
type NodeStarted struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	MeshID  string `json:"mesh_id"`
	Members int    `json:"members"`          // nodes known, this one included
	Ticket  string `json:"ticket,omitempty"` // lets another machine join
	Token   string `json:"token,omitempty"`  // full rights, for this machine's user
	GRPC    string `json:"grpc"`             // host:port
	HTTP    string `json:"http"`             // host:port
	Worker  bool   `json:"worker"`           // runs containers
	// Notes are things to know, such as why it is not a worker.
	Notes []string `json:"notes,omitempty"`
}

// CheckState is the end of one doctor check.
type CheckState string

// The states of a check.
const (
	CheckOK   CheckState = "ok"
	CheckWarn CheckState = "warn" // works, but worse than it could
	CheckFail CheckState = "fail"
	CheckSkip CheckState = "skip" // could not be tried here; Detail says why
)

// Check is one line of `node doctor`.
type Check struct {
	Name   string        `json:"name"`
	State  CheckState    `json:"state"`
	Detail string        `json:"detail,omitempty"`
	Fix    string        `json:"fix,omitempty"` // a command or a setting
	Took   time.Duration `json:"-"`
}

// DevFlags is what `dev up`, `dev down`, `dev env` and `dev status` can be told.
type DevFlags struct {
	Dir           string // folder of the mesh's state; "" = the default
	Name          string // of bridge and namespaces; "" = the default
	Nodes         int
	GPUs          string // simulated: MODEL:COUNT entries, the first for node 2 and so on
	CPUOvercommit float64
	Throttle      string   // NODE=SHARE entries
	NodeArgs      []string // added to every node's command line
	Node          int      // for env: the node to talk to, from 1
}

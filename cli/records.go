package cli

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	beammeshv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/client/gatewaypb"
	"github.com/beammesh/beammesh/proto/client/typespb"
)

// The records below are what -o json and yaml print. They are an interface:
// fields may be added, never renamed or removed. Times are RFC 3339 in UTC and
// absent when not known.

type taskRecord struct {
	ID        string     `json:"id"`
	Status    string     `json:"status"`
	Name      string     `json:"name"`
	StubID    string     `json:"stub_id"`
	Workspace string     `json:"workspace_id"`
	Owner     string     `json:"owner"`
	OwnerID   string     `json:"owner_id"`
	Node      string     `json:"node"`
	NodeID    string     `json:"node_id"`
	Container string     `json:"container_id"`
	Attempt   uint32     `json:"attempt"`
	Accepted  uint32     `json:"accepted"`
	Headless  bool       `json:"headless"`
	Waiting   string     `json:"waiting,omitempty"`
	Created   *time.Time `json:"created_at,omitempty"`
	Started   *time.Time `json:"started_at,omitempty"`
	Ended     *time.Time `json:"ended_at,omitempty"`
	Error     *faultJSON `json:"error,omitempty"`
}

type faultJSON struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func taskOf(t *beammeshv1.TaskInfo) taskRecord {
	r := taskRecord{
		ID: t.GetId(), Status: t.GetStatus(), Name: t.GetStubName(), StubID: t.GetStubId(), Workspace: t.GetWorkspaceId(),
		Owner: t.GetOwnerName(), OwnerID: t.GetOwnerId(), Node: t.GetNodeName(), NodeID: t.GetNodeId(),
		Container: t.GetContainerId(), Attempt: t.GetAttempt(), Accepted: t.GetAccepted(), Headless: t.GetHeadless(), Waiting: t.GetWaiting(),
		Created: moment(t.GetCreatedAt()), Started: moment(t.GetStartedAt()), Ended: moment(t.GetEndedAt()),
	}
	if e := t.GetOutcome().GetError(); e != nil {
		r.Error = &faultJSON{e.GetCode(), e.GetMessage(), e.GetHint()}
	}
	return r
}

// moment gives nil for a time that is not set.
func moment(t *timestamppb.Timestamp) *time.Time {
	if t == nil || t.GetSeconds() == 0 || !t.IsValid() {
		return nil
	}
	v := t.AsTime().UTC()
	return &v
}

// at is the time or, when it is not known, the zero time.
func at(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// millis is a duration of n thousandths, held between 0 and a year: the
// numbers come from other machines.
func millis(n int64) time.Duration {
	const year = 365 * 24 * 3600 * 1000
	return time.Duration(min(max(n, 0), year)) * time.Millisecond
}

type containerRecord struct {
	ID           string     `json:"id"`
	Status       string     `json:"status"`
	StubID       string     `json:"stub_id"`
	DeploymentID string     `json:"deployment_id"`
	WorkspaceID  string     `json:"workspace_id"`
	NodeID       string     `json:"node_id"`
	Scheduled    *time.Time `json:"scheduled_at,omitempty"`
	Started      *time.Time `json:"started_at,omitempty"`
}

func containerOf(c *typespb.Container) containerRecord {
	node := c.GetMachineId()
	if node == "" {
		node = c.GetWorkerId()
	}
	return containerRecord{
		ID: c.GetContainerId(), Status: c.GetStatus(), StubID: c.GetStubId(), DeploymentID: c.GetDeploymentId(),
		WorkspaceID: c.GetWorkspaceId(), NodeID: node,
		Scheduled: moment(c.GetScheduledAt()), Started: moment(c.GetStartedAt()),
	}
}

type tokenRecord struct {
	ID       string     `json:"id"`
	Token    string     `json:"token,omitempty"`
	Type     string     `json:"type"`
	Active   bool       `json:"active"`
	Reusable bool       `json:"reusable"`
	Created  *time.Time `json:"created_at,omitempty"`
	Updated  *time.Time `json:"updated_at,omitempty"`
}

func tokenOf(t *gatewaypb.Token) tokenRecord {
	return tokenRecord{
		ID: t.GetTokenId(), Token: t.GetKey(), Type: t.GetTokenType(), Active: t.GetActive(), Reusable: t.GetReusable(),
		Created: moment(t.GetCreatedAt()), Updated: moment(t.GetUpdatedAt()),
	}
}

type gpuRecord struct {
	ID        string `json:"id"`
	Model     string `json:"model"`
	MemoryMiB int64  `json:"memory_mib"`
	Free      bool   `json:"free"`
	Simulated bool   `json:"simulated"`
}

type nodeRecord struct {
	ID          string      `json:"id"`
	Name        string      `json:"name"`
	Self        bool        `json:"self"`
	State       string      `json:"state"`
	Reason      string      `json:"reason,omitempty"`
	Tier        string      `json:"tier"`
	Version     string      `json:"version"`
	Worker      bool        `json:"worker"`
	Path        string      `json:"path"`
	RTTms       float64     `json:"rtt_ms"`
	ClockSkewMs int64       `json:"clock_skew_ms"`
	Addrs       []string    `json:"addrs"`
	CPU         int64       `json:"cpu_millis"`
	CPUFree     int64       `json:"cpu_free_millis"`
	Memory      int64       `json:"memory_bytes"`
	MemoryFree  int64       `json:"memory_free_bytes"`
	GPUs        []gpuRecord `json:"gpus"`
	LastSeen    *time.Time  `json:"last_seen,omitempty"`
	BootID      string      `json:"boot_id"`
}

func nodeOf(n *beammeshv1.NodeInfo) nodeRecord {
	r := nodeRecord{
		ID: n.GetId(), Name: n.GetName(), Self: n.GetSelf(), State: n.GetState(), Reason: n.GetReason(),
		Tier: n.GetTier(), Version: n.GetVersion(), Worker: n.GetWorker(), Path: n.GetPath(), RTTms: n.GetRttMs(),
		ClockSkewMs: n.GetClockSkewMs(), Addrs: n.GetAddrs(), CPU: n.GetCpuMillis(), CPUFree: n.GetCpuFreeMillis(),
		Memory: n.GetMemoryBytes(), MemoryFree: n.GetMemoryFreeBytes(), GPUs: []gpuRecord{},
		LastSeen: moment(n.GetLastSeen()), BootID: n.GetBootId(),
	}
	if r.Addrs == nil {
		r.Addrs = []string{}
	}
	for _, g := range n.GetGpus() {
		r.GPUs = append(r.GPUs, gpuRecord{g.GetId(), g.GetModel(), g.GetMemoryMib(), g.GetFree(), g.GetSimulated()})
	}
	return r
}

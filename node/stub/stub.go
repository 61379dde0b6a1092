// Package stub turns what a client registered (a GetOrCreateStub request) into
// the configuration that the ledger keeps and the demand that the scheduler
// places. A Config is plain data: its canonical JSON is hashed to the stub's id.
package stub

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/beammesh/beammesh/proto/client/gatewaypb"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/gpu"
)

// Bounds of what a client may register.
const (
	maxEnv       = 512
	maxEnvBytes  = 64 << 10
	maxAllowList = 64
	maxNames     = 128
	maxText      = 4 << 10  // of a name, a handler, an address
	maxExtra     = 64 << 10 // of what we only keep
	maxRetries   = 100
	maxSeconds   = 366 * 24 * 3600
	maxMachines  = 10_000
)

// Defaults where the wire says zero.
const (
	defaultCPUMillis = 125
	defaultMemoryMiB = 128
	defaultPending   = 100
)

// Config is everything that makes a stub what it is.
type Config struct {
	Type          string   `json:"type"`
	Handler       string   `json:"handler"`
	OnStart       string   `json:"on_start,omitempty"`
	ObjectRoot    string   `json:"object_root"`
	ImageID       string   `json:"image_id"`
	Python        string   `json:"python,omitempty"`        // as the client asked: "python3.11"
	ClientPython  string   `json:"client_python,omitempty"` // the client's minor: "3.11"
	CPUMillis     int64    `json:"cpu_millis"`
	MemoryMiB     int64    `json:"memory_mib"`
	GPU           string   `json:"gpu,omitempty"`
	GPUCount      int      `json:"gpu_count,omitempty"`
	Retries       int      `json:"retries,omitempty"`
	RetryFor      []string `json:"retry_for,omitempty"`
	TimeoutSec    int64    `json:"timeout_s,omitempty"` // 0 = none
	KeepWarmSec   float64  `json:"keep_warm_s,omitempty"`
	TTLSec        int64    `json:"ttl_s,omitempty"` // how long a task may wait and run in all; 0 = none
	MaxPending    int      `json:"max_pending,omitempty"`
	CallbackURL   string   `json:"callback_url,omitempty"`
	Headless      bool     `json:"headless,omitempty"`
	StrictCPU     bool     `json:"strict_cpu,omitempty"`
	Env           []string `json:"env,omitempty"`
	App           string   `json:"app,omitempty"`
	BlockNetwork  bool     `json:"block_network,omitempty"`
	AllowList     []string `json:"allow_list,omitempty"`
	MaxContainers int      `json:"max_containers,omitempty"` // 0 = the node's default
	Extra         string   `json:"extra,omitempty"`
}

// FromRequest checks a request and makes its Config. objectRoot is the code
// tree behind the request's object id.
func FromRequest(r *gatewaypb.GetOrCreateStubRequest, objectRoot string) (Config, error) {
	c := Config{
		Type:         r.StubType,
		Handler:      r.Handler,
		OnStart:      r.OnStart,
		ObjectRoot:   objectRoot,
		ImageID:      r.ImageId,
		Python:       r.PythonVersion,
		ClientPython: r.ClientPython,
		CPUMillis:    r.Cpu,
		MemoryMiB:    r.Memory,
		GPU:          r.Gpu,
		GPUCount:     int(r.GpuCount),
		Retries:      int(r.Retries),
		RetryFor:     r.RetryFor,
		TimeoutSec:   max(r.Timeout, 0),
		KeepWarmSec:  float64(r.KeepWarmSeconds),
		MaxPending:   int(r.MaxPendingTasks),
		CallbackURL:  r.CallbackUrl,
		Headless:     r.Headless,
		StrictCPU:    r.Strict,
		Env:          r.Env,
		App:          r.AppName,
		BlockNetwork: r.BlockNetwork,
		AllowList:    r.AllowList,
		Extra:        r.Extra,
	}
	if p := r.TaskPolicy; p != nil {
		if p.MaxRetries > 0 {
			c.Retries = int(p.MaxRetries)
		}
		if p.Timeout > 0 {
			c.TimeoutSec = p.Timeout
		}
		c.TTLSec = int64(p.Ttl)
	}
	if a := r.Autoscaler; a != nil && a.MaxContainers > 1 {
		c.MaxContainers = int(a.MaxContainers)
	}
	if c.CPUMillis == 0 {
		c.CPUMillis = defaultCPUMillis
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = defaultMemoryMiB
	}
	if c.MaxPending == 0 {
		c.MaxPending = defaultPending
	}
	return c, c.check(r)
}

func (c *Config) check(r *gatewaypb.GetOrCreateStubRequest) error {
	kind, _, _ := strings.Cut(c.Type, "/")
	if kind != "function" {
		return fault.New(fault.Unsupported, fmt.Sprintf("stubs of type %q are not served by this version", c.Type), "functions are: use @function")
	}
	if mod, fn, ok := strings.Cut(c.Handler, ":"); !ok || mod == "" || fn == "" {
		return fault.New(fault.Invalid, fmt.Sprintf("handler %q is not module:function", c.Handler), "")
	}
	for name, s := range map[string]string{"handler": c.Handler, "on_start": c.OnStart, "image id": c.ImageID, "python version": c.Python,
		"client python": c.ClientPython, "gpu": c.GPU, "callback_url": c.CallbackURL, "app": c.App, "name": r.Name} {
		if len(s) > maxText {
			return fault.Newf(fault.TooLarge, "%s has %d bytes, at most %d are taken", name, len(s), maxText)
		}
	}
	if len(c.Extra) > maxExtra || size(c.RetryFor) > maxExtra {
		return fault.Newf(fault.TooLarge, "extra or retry_for has more than %d bytes", maxExtra)
	}
	if c.CPUMillis < 0 || c.MemoryMiB < 0 {
		return fault.New(fault.Invalid, "cpu and memory cannot be negative", "")
	}
	if c.Retries > maxRetries {
		return fault.Newf(fault.Invalid, "retries is %d, at most %d are allowed", c.Retries, maxRetries)
	}
	if c.TimeoutSec > maxSeconds || c.TTLSec > maxSeconds || c.KeepWarmSec > maxSeconds || math.IsNaN(c.KeepWarmSec) || math.IsInf(c.KeepWarmSec, 0) {
		return fault.New(fault.Invalid, "timeout, ttl and keep_warm_seconds are at most a year", "give -1 for no limit")
	}
	if c.MaxContainers > maxMachines {
		return fault.Newf(fault.Invalid, "max_containers is %d, at most %d are allowed", c.MaxContainers, maxMachines)
	}
	if len(c.Env) > maxEnv || size(c.Env) > maxEnvBytes {
		return fault.Newf(fault.TooLarge, "env has %d variables and %d bytes, at most %d and %d are allowed", len(c.Env), size(c.Env), maxEnv, maxEnvBytes)
	}
	for _, kv := range c.Env {
		if k, _, ok := strings.Cut(kv, "="); !ok || k == "" || strings.ContainsRune(kv, 0) {
			return fault.New(fault.Invalid, fmt.Sprintf("env entry %q is not NAME=value", kv), "")
		}
	}
	if len(c.AllowList) > maxAllowList || len(c.RetryFor) > maxNames {
		return fault.New(fault.TooLarge, "allow_list or retry_for is too long", "")
	}
	if c.BlockNetwork && len(c.AllowList) > 0 {
		return fault.New(fault.Invalid, "block_network and allow_list exclude each other", "give one of them")
	}
	for _, s := range c.AllowList {
		if _, err := netip.ParsePrefix(s); err != nil {
			return fault.Wrap(fault.Invalid, err, "bad network in allow_list", "write it as 203.0.113.0/24")
		}
	}
	if len(r.Volumes) > 0 || len(r.Secrets) > 0 || len(r.Disks) > 0 {
		return fault.New(fault.Unsupported, "volumes and secrets are not served by this version", "leave them out for now; pass data as arguments and env")
	}
	_, err := c.Demand("", nil)
	return err
}

func size(list []string) (n int) {
	for _, s := range list {
		n += len(s)
	}
	return n
}

func (c *Config) wants() ([]gpu.Want, error) {
	if strings.TrimSpace(c.GPU) == "" {
		return nil, nil
	}
	w, err := gpu.Parse(c.GPU, max(c.GPUCount, 1))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "bad gpu", "write gpu=\"H100\", gpu=[\"H100\",\"A100-80\"] or gpu=\"any\"")
	}
	return w, nil
}

// Bytes is the canonical form that is stored and hashed.
func (c Config) Bytes() ([]byte, error) { return json.Marshal(c) }

// Parse reads the canonical form; unknown fields of newer versions are ignored.
func Parse(b []byte) (Config, error) {
	var c Config
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("parse stub: %w", err)
	}
	return c, nil
}

// Timeout bounds one call; 0 = none.
func (c Config) Timeout() time.Duration { return time.Duration(c.TimeoutSec) * time.Second }

// KeepWarm is how long an idle container is kept: < 0 = for ever.
func (c Config) KeepWarm() time.Duration {
	if c.KeepWarmSec < 0 {
		return -1
	}
	return time.Duration(c.KeepWarmSec * float64(time.Second))
}

// Demand is what a container of this stub needs.
func (c Config) Demand(workspace string, roots []scheduler.Root) (scheduler.Demand, error) {
	w, err := c.wants()
	if err != nil {
		return scheduler.Demand{}, err
	}
	d := scheduler.Demand{
		CPUMillis: c.CPUMillis,
		MemoryMiB: c.MemoryMiB,
		GPUs:      w,
		StrictCPU: c.StrictCPU,
		Roots:     slices.Clone(roots),
		Workspace: workspace,
	}
	if err := d.Validate(); err != nil {
		return d, fault.Wrap(fault.Invalid, err, "bad resources", "")
	}
	return d, nil
}

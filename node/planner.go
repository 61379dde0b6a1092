package node

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/beammesh/beammesh/content/tree"
	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/owner"
	"github.com/beammesh/beammesh/node/stub"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/ipfs/go-cid"
)

// planner turns a stub id into what the owner needs to run it.
type planner struct {
	ledger  ledger.Ledger
	puller  *puller
	adverts *adverts
	tokens  *tokens
	self    string
	zone    string // of this node: work is placed near the one who asks
}

var _ owner.Planner = (*planner)(nil)

// imageConfig is what an image record keeps beside its roots.
type imageConfig struct {
	Env    []string `json:"env,omitempty"`
	Python string   `json:"python,omitempty"` // interpreter: "python3"
	Minor  string   `json:"minor,omitempty"`  // "3.11"
	Bytes  []int64  `json:"bytes,omitempty"`  // per root
}

// Plan implements owner.Planner.
func (p *planner) Plan(ctx context.Context, workspace, stubID string) (*owner.Plan, error) {
	rec, _, err := ledger.Get[ledger.Stub](ctx, p.ledger, workspace, stubID, time.Hour)
	if fault.CodeOf(err) == fault.NotFound {
		return nil, fault.New(fault.NotFound, "stub "+stubID+" is not known in workspace "+workspace, "register it again: run the program that defines the function")
	}
	if err != nil {
		return nil, err
	}
	cfg, err := stub.Parse(rec.Config)
	if err != nil {
		return nil, err
	}
	img, _, err := ledger.FindImage(ctx, p.ledger, workspace, cfg.ImageID, time.Hour)
	if fault.CodeOf(err) == fault.NotFound {
		return nil, fault.New(fault.NotFound, "image "+cfg.ImageID+" does not exist in this mesh", "build it: Image(...).build(), or run the program again")
	}
	if err != nil {
		return nil, err
	}
	var ic imageConfig
	if len(img.Config) > 0 {
		if err := json.Unmarshal(img.Config, &ic); err != nil {
			return nil, fmt.Errorf("read image record %s: %w", cfg.ImageID, err)
		}
	}
	if ic.Python == "" {
		ic.Python = "python3"
	}
	if ic.Minor != "" && cfg.ClientPython != "" && ic.Minor != cfg.ClientPython {
		return nil, fault.New(fault.PythonMismatch,
			fmt.Sprintf("the client runs Python %s and the image has %s: pickled values do not pass between them", cfg.ClientPython, ic.Minor),
			fmt.Sprintf("run the program with Python %s, or use Image(python_version=\"python%s\") where that is available", ic.Minor, cfg.ClientPython))
	}
	// The code is small: this node holds it, so that it is a source for every
	// worker and the stub still runs when the node that took it is away.
	if _, _, err := p.puller.Pull(ctx, nil, cfg.ObjectRoot, holdersText(p.adverts, cfg.ObjectRoot)); err != nil {
		return nil, err
	}
	roots := make([]scheduler.Root, 0, len(img.Roots)+1)
	for i, r := range img.Roots {
		root := scheduler.Root{Name: r, Bytes: 64 << 20}
		if i < len(ic.Bytes) {
			root.Bytes = ic.Bytes[i]
		}
		roots = append(roots, root)
	}
	// What decides is the image; the code moves in milliseconds. Beyond the
	// bound the lowest, largest layers stay.
	roots = roots[:min(len(roots), scheduler.MaxRoots)]
	d, err := cfg.Demand(workspace, roots)
	if err != nil {
		return nil, err
	}
	d.Zone = p.zone
	order := &peerv1.WorkOrder{
		WorkspaceId: workspace, StubId: stubID, StubType: cfg.Type, StubName: rec.Name, Handler: cfg.Handler, OnStart: cfg.OnStart,
		Env: append(slices.Clone(ic.Env), cfg.Env...), ImageRoots: img.Roots, CodeRoot: cfg.ObjectRoot, Python: ic.Python,
		ClientPython: cfg.ClientPython, CpuMillis: cfg.CPUMillis, MemoryBytes: cfg.MemoryMiB << 20, TimeoutMs: cfg.Timeout().Milliseconds(),
		Headless: cfg.Headless, RetryFor: cfg.RetryFor, BlockNetwork: cfg.BlockNetwork, AllowList: cfg.AllowList, CallbackUrl: cfg.CallbackURL,
	}
	return &owner.Plan{StubID: stubID, StubName: rec.Name, Workspace: workspace, Config: cfg, Demand: d, Order: order}, nil
}

// Complete implements owner.Planner.
func (p *planner) Complete(plan *owner.Plan, o *peerv1.WorkOrder, lease, worker string) {
	o.Token = p.tokens.attempt(plan.Workspace, worker, lease)
	sources := []string{p.self}
	for _, r := range append(slices.Clone(o.ImageRoots), o.CodeRoot) {
		for _, h := range holdersText(p.adverts, r) {
			if !slices.Contains(sources, h) {
				sources = append(sources, h)
			}
		}
	}
	o.Sources = sources
}

func holdersText(a *adverts, root string) []string {
	var out []string
	for _, id := range a.holders(root) {
		out = append(out, string(id))
	}
	return out
}

// rootBytes is the size of a tree that is here.
func (p *puller) rootBytes(ctx context.Context, root string) int64 {
	c, err := cid.Decode(root)
	if err != nil {
		return 0
	}
	info, err := tree.Stat(ctx, p.store, c)
	if err != nil {
		return 0
	}
	return info.Bytes
}

package owner

import (
	"fmt"
	"slices"
	"time"

	"github.com/beammesh/beammesh/mesh"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/scheduler/market"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func peerID(s string) mesh.PeerID { return mesh.PeerID(s) }

func notKnown(id string) error {
	return fault.New(fault.NotFound, "task "+id+" is not known", "see 'beam task list'")
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func (o *Owner) infoLocked(t *task) *beamv1.TaskInfo {
	i := &beamv1.TaskInfo{Id: t.id, Status: t.status, StubId: t.stubID, StubName: t.stubName, WorkspaceId: t.workspace,
		OwnerId: string(o.cfg.Self), OwnerName: o.cfg.Name, CreatedAt: stamp(t.created), StartedAt: stamp(t.started), Headless: t.headless, Accepted: t.accepted}
	switch {
	case t.told:
		i.EndedAt, i.Outcome = stamp(t.ended), t.outcome
	case Ended(t.status): // but the journal does not have it yet
		i.Status = Running
	}
	if at := t.last(); at != nil {
		i.NodeId, i.NodeName, i.ContainerId, i.Attempt = at.node, o.cfg.NodeName(peerID(at.node)), string(at.lease), at.number
	}
	if p := o.pools[poolKey(t.workspace, t.stubID)]; p != nil && t.status == Pending {
		i.Waiting = p.waiting
		if i.Waiting == "" {
			if n := p.machine.Starting(); n > 0 {
				i.Waiting = "its container is starting"
				if n > 1 {
					i.Waiting = fmt.Sprintf("%d containers are starting", n)
				}
			}
		}
	}
	return i
}

// Get describes a task of this owner, with its outcome when it has ended.
func (o *Owner) Get(workspace, id string) (*beamv1.TaskInfo, error) {
	o.mu.Lock()
	if t := o.tasks[id]; t != nil && t.workspace == workspace && !t.slim {
		defer o.mu.Unlock()
		return o.infoLocked(t), nil
	}
	o.mu.Unlock()
	st, ok, err := o.cfg.Journal.Get(id)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	if !ok || st.Workspace != workspace {
		return nil, notKnown(id)
	}
	return o.storedInfo(st), nil
}

func (o *Owner) storedInfo(st StoredTask) *beamv1.TaskInfo {
	i := &beamv1.TaskInfo{Id: st.ID, Status: Pending, StubId: st.StubID, StubName: st.StubName, WorkspaceId: st.Workspace,
		OwnerId: string(o.cfg.Self), OwnerName: o.cfg.Name, CreatedAt: stamp(time.UnixMicro(st.CreatedUnixMicro)), Headless: st.Headless}
	if e := st.End; e != nil {
		i.Status, i.NodeId, i.ContainerId, i.Attempt = e.Status, e.Node, e.Lease, e.Attempt
		i.NodeName = o.cfg.NodeName(peerID(e.Node))
		i.EndedAt = stamp(time.UnixMicro(e.EndedUnixMicro))
		if e.StartedUnixMicro != 0 {
			i.StartedAt = stamp(time.UnixMicro(e.StartedUnixMicro))
		}
		out := new(beamv1.Outcome)
		if proto.Unmarshal(e.Outcome, out) == nil && len(e.Outcome) > 0 {
			i.Outcome = out
		}
	}
	return i
}

// List gives the newest tasks of a workspace, without results.
func (o *Owner) List(workspace, status, stubID string, limit int) ([]*beamv1.TaskInfo, error) {
	if limit <= 0 {
		limit = 100
	}
	limit = min(limit, 1000)
	o.mu.Lock()
	var mine []*task
	have := make(map[string]bool, len(o.tasks))
	for _, t := range o.tasks {
		have[t.id] = true
		if t.workspace == workspace && (status == "" || t.status == status || !t.told) && (stubID == "" || t.stubID == stubID) {
			mine = append(mine, t)
		}
	}
	slices.SortFunc(mine, func(a, b *task) int { return b.created.Compare(a.created) })
	var infos []*beamv1.TaskInfo
	for _, t := range mine {
		if i := o.infoLocked(t); status == "" || i.Status == status {
			infos = append(infos, i)
		}
		if len(infos) == limit {
			break
		}
	}
	o.mu.Unlock()
	stored, err := o.cfg.Journal.List(workspace, limit)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	for _, st := range stored {
		if !have[st.ID] {
			infos = append(infos, o.storedInfo(st))
		}
	}
	infos = slices.DeleteFunc(infos, func(i *beamv1.TaskInfo) bool {
		return (status != "" && i.Status != status) || (stubID != "" && i.StubId != stubID)
	})
	slices.SortFunc(infos, func(a, b *beamv1.TaskInfo) int { return b.CreatedAt.AsTime().Compare(a.CreatedAt.AsTime()) })
	infos = infos[:min(limit, len(infos))]
	for k, i := range infos {
		if i.Outcome != nil {
			infos[k].Outcome = WithoutResult(i.Outcome)
		}
	}
	return infos, nil
}

// Open is the number of tasks that have not ended.
func (o *Owner) Open() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.open
}

// Explain says why a task ran where it ran, or why it waits; with changes, also
// where a task that asks for something else would run now.
func (o *Owner) Explain(workspace, id string, changes []string) (*beamv1.ExplainResponse, error) {
	info, err := o.Get(workspace, id)
	if err != nil {
		return nil, err
	}
	r := &beamv1.ExplainResponse{Task: info}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(changes) > 0 {
		if r.WhatIf, err = o.whatIfLocked(poolKey(workspace, info.StubId), changes); err != nil {
			return nil, err
		}
	}
	t := o.tasks[id]
	if t == nil {
		r.Attempts = append(r.Attempts, &beamv1.Attempt{Attempt: info.Attempt, NodeId: info.NodeId, NodeName: info.NodeName,
			Notes: []string{"the details of the placement are no longer kept"}})
		return r, nil
	}
	for _, at := range t.attempts {
		a := &beamv1.Attempt{Attempt: at.number, NodeId: at.node, NodeName: o.cfg.NodeName(peerID(at.node)), End: at.end}
		o.explainOfferLocked(a, at.offer)
		if at.warm {
			a.How = "warm container"
		}
		r.Attempts = append(r.Attempts, a)
	}
	if p := o.pools[poolKey(t.workspace, t.stubID)]; p != nil && len(t.attempts) == 0 {
		// It waits: the container that is wanted longest and does not take calls
		// yet says why.
		ready := map[market.OfferID]bool{}
		for _, c := range o.leases {
			if c.pool == p && c.ready {
				ready[c.offer] = true
			}
		}
		var oldest *wanted
		for _, w := range o.offers {
			if w.pool == p && !ready[w.id] && (oldest == nil || w.submitted.Before(oldest.submitted)) {
				oldest = w
			}
		}
		a := &beamv1.Attempt{Attempt: 1, How: "waiting"}
		if oldest != nil {
			o.explainOfferLocked(a, oldest.id)
			a.How = "waiting"
			if oldest.placed {
				a.Notes = append(a.Notes, "the container is starting")
			}
		} else if len(ready) > 0 {
			a.Notes = append(a.Notes, fmt.Sprintf("all %d containers are busy", len(ready)))
		}
		if p.fatal != nil {
			a.Notes = append(a.Notes, p.fatal.Message, p.fatal.Hint)
		} else if p.waiting != "" {
			a.Notes = append(a.Notes, p.waiting)
		}
		r.Attempts = append(r.Attempts, a)
	}
	return r, nil
}

package node

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/libp2p"
	"github.com/beammesh/beammesh/node/ledger"
	"github.com/beammesh/beammesh/node/stub"
	"github.com/beammesh/beammesh/node/token"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/scheduler/gpu"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// skewTold is from when on a member's clock is a trouble.
const skewTold = 10 * time.Second

// info is what Start returns.
func (n *Node) info(ctx context.Context) (*Info, error) {
	i := &Info{ID: string(n.mesh.PeerID()), Name: n.cfg.Name, MeshID: n.mesh.ID(), Members: len(n.mesh.Members()),
		GRPC: n.grpcAddr, HTTP: n.httpAddr, Worker: n.worker != nil, Notes: n.notes}
	if n.mesh.CanInvite() {
		t, err := n.Invite(ctx, "own", 24*time.Hour)
		if err != nil {
			return nil, err
		}
		i.Ticket = t
	}
	if n.mesh.Founder() == n.mesh.PeerID() {
		if _, err := n.ledger.Propose(ctx, ledger.PutWorkspace{ID: DefaultWorkspace, Name: DefaultWorkspace}); err != nil && fault.CodeOf(err) != fault.Conflict {
			return nil, err
		}
	}
	// Members get the right to issue from the founder, which takes a moment; it
	// may also be away, and then the user needs a token made elsewhere.
	if n.mesh.Tier() == "own" {
		if _, err := n.tokens.current(); err != nil {
			if err := n.tokens.fetch(ctx, n.dialer, n.mesh.Founder()); err != nil {
				n.log.Debug("no right to issue tokens yet", "err", err)
			}
		}
	}
	if _, bearer, err := n.tokens.local(ctx); err == nil {
		i.Token = bearer
	} else {
		i.Notes = append(i.Notes, "no token could be made here: "+err.Error())
	}
	return i, nil
}

// Invite makes a ticket that this node redeems.
func (n *Node) Invite(ctx context.Context, tier string, life time.Duration) (string, error) {
	return n.mesh.Invite(ctx, libp2p.Invitation{Tier: tier, Life: life})
}

// Status implements admin.Node.
func (n *Node) Status() *beamv1.StatusResponse {
	s := &beamv1.StatusResponse{MeshId: n.mesh.ID(), TasksOpen: uint32(n.owner.Open()), Counters: map[string]int64{}}
	for _, m := range n.mesh.Members() {
		s.Members++
		if m.Connected || m.Path == mesh.PathSelf {
			s.Connected++
		}
		if d := m.ClockSkew.Abs(); d > skewTold {
			s.Troubles = append(s.Troubles, &beamv1.Trouble{Code: "clock_skew", Severity: "warning",
				Text: fmt.Sprintf("the clock of %s differs by %s", m.Name, d.Round(time.Second)), Hint: "switch on time synchronisation on both machines"})
		}
	}
	for _, i := range n.Nodes() {
		if i.Self {
			s.Node = i
		}
	}
	s.Images = n.imagesText()
	if n.prefetch != nil {
		if t := n.prefetch.State().Trouble; t != "" {
			s.Troubles = append(s.Troubles, &beamv1.Trouble{Code: "prefetch", Severity: "warning", Text: t,
				Hint: "a task that needs it fetches it, as far as the disk has room"})
		}
	}
	st := n.ledger.Status()
	s.LedgerVoter = st.Role == ledger.RoleVoter
	switch {
	case s.LedgerVoter:
		s.LedgerState = "voter"
	case st.Connected:
		s.LedgerState = "following " + n.adverts.name(n.mesh.Founder())
	default:
		s.LedgerState = "founder unreachable: cached records only"
		s.Troubles = append(s.Troubles, &beamv1.Trouble{Code: "founder_unreachable", Severity: "warning",
			Text: "the founding node cannot be reached: known functions run, new ones cannot be registered", Hint: "start it again"})
	}
	s.Troubles = append(s.Troubles, n.refusals.troubles(n.adverts.name)...)
	for _, note := range n.notes {
		s.Troubles = append(s.Troubles, &beamv1.Trouble{Code: "note", Severity: "warning", Text: note})
	}
	if n.worker != nil {
		s.Containers = uint32(len(n.worker.Leases()))
		if a := n.worker.Advert(); a.Capacity.Free.DiskMiB <= a.Capacity.DiskFloorMiB {
			s.Troubles = append(s.Troubles, &beamv1.Trouble{Code: "disk_full", Severity: "error",
				Text: fmt.Sprintf("only %d MiB of disk are free: no containers are started", a.Capacity.Free.DiskMiB), Hint: "free some space below the data directory"})
		}
	}
	f, srv := n.fetcher.Metrics(), n.serving.Metrics()
	s.Counters["blocks.bytes_in"], s.Counters["blocks.corrupt"] = f.Total.BytesIn, f.Total.Corrupt
	s.Counters["blocks.bytes_out"] = srv.Total.BytesOut
	return s
}

// Nodes implements admin.Node.
func (n *Node) Nodes() []*beamv1.NodeInfo {
	var out []*beamv1.NodeInfo
	for _, m := range n.mesh.Members() {
		i := &beamv1.NodeInfo{Id: string(m.ID), Name: m.Name, Tier: m.Tier, Version: m.Version, Self: m.Path == mesh.PathSelf,
			State: "ready", Path: string(m.Path), RttMs: float64(m.RTT.Microseconds()) / 1000, ClockSkewMs: m.ClockSkew.Milliseconds(),
			Addrs: m.Addrs, BootId: m.BootID}
		if !m.LastSeen.IsZero() {
			i.LastSeen = timestamppb.New(m.LastSeen)
		}
		if !m.Connected && !i.Self {
			i.State, i.Reason = "unreachable", "no connection"
		}
		if ad, ok := n.adverts.of(m.ID); ok {
			c := ad.Capacity
			i.CpuMillis, i.CpuFreeMillis = c.Total.CPUMillis, c.Free.CPUMillis
			i.MemoryBytes, i.MemoryFreeBytes = c.Total.MemoryMiB<<20, c.Free.MemoryMiB<<20
			i.Worker = c.Total.CPUMillis > 0
			for _, d := range c.Devices {
				i.Gpus = append(i.Gpus, &beamv1.Gpu{Id: d.ID, Model: d.Class, MemoryMib: d.MemoryMiB, Free: d.FreeMilli > 0, Simulated: d.Simulated})
			}
			if c.Draining && i.State == "ready" {
				i.State = "draining"
			}
		}
		out = append(out, i)
	}
	return out
}

// Unplaceable implements gateway.Placer: it tells at registration when a GPU
// name is known to nobody, which is nearly always a typing error.
func (n *Node) Unplaceable(c stub.Config) (string, error) {
	if c.GPU == "" {
		return "", nil
	}
	var have []string
	for _, i := range n.Nodes() {
		for _, g := range i.Gpus {
			have = append(have, g.Model)
		}
	}
	wants, err := gpu.Parse(c.GPU, max(c.GPUCount, 1))
	if err != nil {
		return "", err
	}
	for _, w := range wants {
		if gpu.IsKnown(w.Class, have) {
			continue
		}
		hint := "'beam node ls' shows the GPUs of the mesh"
		if s := gpu.Suggest(w.Class, have); len(s) > 0 {
			hint = fmt.Sprintf("did you mean %s? %s", s[0], hint)
		}
		return "", fault.New(fault.Invalid, fmt.Sprintf("no GPU is called %q", w.Class), hint)
	}
	return "", nil
}

// local makes the token that the machine's own user gets; it is valid for a
// year and made anew at every start.
func (t *tokens) local(ctx context.Context) (id, bearer string, err error) {
	return t.Issue(ctx, DefaultWorkspace, "local user", []token.Scope{token.Admin}, 365*24*time.Hour)
}

// loopbackOnly tells whether an API address is reachable from this machine only.
func loopbackOnly(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

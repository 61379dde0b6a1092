package owner_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/mesh/meshtest"
	"github.com/beammesh/beammesh/node/link"
	"github.com/beammesh/beammesh/node/marketwire"
	"github.com/beammesh/beammesh/node/owner"
	"github.com/beammesh/beammesh/node/stub"
	"github.com/beammesh/beammesh/node/worker/workertest"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
)

func TestMain(m *testing.M) {
	workertest.Main()
	os.Exit(m.Run())
}

// cluster is an owner's node and workers, joined by real links over an in-memory
// mesh.
type cluster struct {
	t       testing.TB
	net     *meshtest.Network
	node    *meshtest.Node
	dialer  *rogue // of the owner
	links   *link.Links
	journal *memJournal
	plans   *planner
	boxes   map[string]*box
	began   time.Time
	epoch   uint64
	current atomic.Pointer[owner.Owner]

	mu      sync.Mutex
	adverts map[scheduler.NodeID]scheduler.Advert // the newest, for an owner that starts later
}

type box struct {
	*workertest.Worker
	links *link.Links
}

func newCluster(t testing.TB, boxes ...string) *cluster {
	t.Helper()
	workertest.NoLeaks(t)
	c := &cluster{t: t, net: meshtest.NewNetwork(), journal: newJournal(), plans: newPlanner(), boxes: map[string]*box{}, began: time.Now(),
		adverts: map[scheduler.NodeID]scheduler.Advert{}}
	c.node = c.net.Join("owner")
	c.dialer = &rogue{Dialer: c.node}
	c.links = link.New(c.node.PeerID(), c.node, func(from mesh.PeerID, m *peerv1.MarketMessage) {
		d, err := marketwire.Decode(scheduler.NodeID(from), m)
		if err != nil {
			t.Errorf("the owner was sent a bad message: %v", err)
			return
		}
		if o := c.current.Load(); o != nil && d.ToOwner != nil {
			o.Step(d.ToOwner)
		}
	}, slog.New(slog.DiscardHandler))
	c.node.Handle(link.Protocol, c.links.Serve)
	t.Cleanup(func() {
		c.stop()
		_ = c.links.Close()
		_ = c.node.Close()
	})
	c.node.Start()
	c.node.Watch(func(ev mesh.Event) {
		o, id := c.current.Load(), scheduler.NodeID(ev.Member.ID)
		switch {
		case o == nil:
		case ev.Type == mesh.MemberUp:
			c.mu.Lock()
			ad, ok := c.adverts[id]
			c.mu.Unlock()
			if ok {
				o.Step(market.AdvertSeen{Advert: ad, Source: scheduler.SourceHello})
			}
			o.Step(market.NodeUp{Node: id})
		case ev.Type == mesh.MemberDown:
			o.Step(market.NodeDown{Node: id, Reason: ev.Reason})
		}
	})
	c.start()
	for _, b := range boxes {
		c.box(b, workertest.Options{})
	}
	return c
}

// start begins a life of the owner; Restore is up to the caller from the second on.
func (c *cluster) start() *owner.Owner {
	c.epoch++
	o := owner.New(owner.Config{Self: c.node.PeerID(), Name: "owner", Epoch: c.epoch, Clock: func() time.Duration { return time.Since(c.began) },
		Dialer: c.dialer, Planner: c.plans, Journal: c.journal, Log: slog.New(slog.DiscardHandler),
		Send: func(to scheduler.NodeID, m any, order []byte, failed func(error)) {
			w, err := marketwire.Encode(m, order)
			if err != nil {
				c.t.Errorf("encode %T: %v", m, err)
				return
			}
			c.links.Send(mesh.PeerID(to), w, failed)
		},
		Publish:  func(market.OpenOffer) {},
		Discover: func(context.Context, []string) {},
		NodeName: func(id mesh.PeerID) string {
			for n, b := range c.boxes {
				if b.Mesh.PeerID() == id {
					return n
				}
			}
			return string(id)
		},
	})
	c.current.Store(o)
	c.mu.Lock()
	ads := make([]scheduler.Advert, 0, len(c.adverts))
	for _, a := range c.adverts {
		ads = append(ads, a)
	}
	c.mu.Unlock()
	for _, a := range ads {
		o.Step(market.AdvertSeen{Advert: a, Source: scheduler.SourceHello})
	}
	if c.epoch == 1 {
		if err := o.Restore(c.t.Context()); err != nil {
			c.t.Fatal(err)
		}
	}
	return o
}

// stop ends the owner's life as a kill does: nothing of it reaches anybody.
func (c *cluster) stop() {
	if o := c.current.Swap(nil); o != nil {
		o.Close()
	}
}

func (c *cluster) owner() *owner.Owner { return c.current.Load() }

// box adds a worker.
func (c *cluster) box(name string, o workertest.Options) *box {
	c.t.Helper()
	n := c.net.Join(name)
	b := &box{}
	var self atomic.Pointer[box]
	b.links = link.New(n.PeerID(), n, func(from mesh.PeerID, m *peerv1.MarketMessage) {
		d, err := marketwire.Decode(scheduler.NodeID(from), m)
		if err != nil {
			c.t.Errorf("%s was sent a bad message: %v", name, err)
			return
		}
		if w := self.Load(); w != nil && d.ToWorker != nil {
			w.Step(d.ToWorker, d.Order)
		}
	}, slog.New(slog.DiscardHandler))
	o.Send = func(to scheduler.NodeID, m any) {
		w, err := marketwire.Encode(m, nil)
		if err != nil {
			c.t.Errorf("encode %T: %v", m, err)
			return
		}
		b.links.Send(mesh.PeerID(to), w, nil)
	}
	o.Advert = func(a scheduler.Advert) {
		c.mu.Lock()
		c.adverts[a.Node] = a
		c.mu.Unlock()
		if o := c.current.Load(); o != nil {
			o.Step(market.AdvertSeen{Advert: a, Source: scheduler.SourceGossip})
		}
	}
	n.Handle(link.Protocol, b.links.Serve)
	c.t.Cleanup(func() { _ = n.Close() })
	c.t.Cleanup(func() { _ = b.links.Close() })
	b.Worker = workertest.New(c.t, n, o)
	self.Store(b)
	c.boxes[name] = b
	n.Start()
	n.Watch(func(ev mesh.Event) {
		switch ev.Type {
		case mesh.MemberUp:
			b.Step(market.OwnerUp{Peer: scheduler.NodeID(ev.Member.ID)}, nil)
		case mesh.MemberDown:
			b.Step(market.OwnerDown{Peer: scheduler.NodeID(ev.Member.ID)}, nil)
		}
	})
	o.Advert(b.Advert())
	return b
}

// submit takes a call of a stub whose handler loads as the stub's name says.
func (c *cluster) submit(stubID, args string, change ...func(*owner.Request)) (string, *client) {
	c.t.Helper()
	cl := newClient()
	r := owner.Request{Workspace: "ws", StubID: stubID, Args: []byte(args), Format: "pickle", Notify: cl}
	for _, f := range change {
		f(&r)
	}
	id, err := c.owner().Submit(c.t.Context(), r)
	if err != nil {
		c.t.Fatal(err)
	}
	return id, cl
}

// ended gives a task's outcome once the owner tells it to whoever asks.
func (c *cluster) ended(id string) (*beamv1.Outcome, error) {
	c.t.Helper()
	for deadline := time.Now().Add(workertest.Patience); ; time.Sleep(time.Millisecond) {
		info, err := c.owner().Get("ws", id)
		if err != nil || info.Outcome != nil {
			return info.GetOutcome(), err
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("task %s did not end: %v", id, info)
		}
	}
}

func headless(r *owner.Request) { r.Headless = true }

// client is a Notify that writes down what it is told.
type client struct {
	mu   sync.Mutex
	out  strings.Builder
	ends int
	more chan struct{} // one token: something was printed
	done chan *beamv1.Outcome
}

func newClient() *client {
	return &client{more: make(chan struct{}, 1), done: make(chan *beamv1.Outcome, 16)}
}

func (c *client) Log(_ context.Context, _ string, _ int, data []byte) {
	c.mu.Lock()
	c.out.Write(data)
	c.mu.Unlock()
	select {
	case c.more <- struct{}{}:
	default:
	}
}

func (c *client) Done(_ string, o *beamv1.Outcome) {
	c.mu.Lock()
	c.ends++
	c.mu.Unlock()
	c.done <- o
}

func (c *client) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.String()
}

func (c *client) wait(t testing.TB) *beamv1.Outcome {
	t.Helper()
	select {
	case o := <-c.done:
		return o
	case <-time.After(workertest.Patience):
		t.Fatal("the task did not end")
		return nil
	}
}

// printed waits until the program has printed text.
func (c *client) printed(t testing.TB, text string) {
	t.Helper()
	c.printedTimes(t, text, 1)
}

// printedTimes waits until text was printed n times.
func (c *client) printedTimes(t testing.TB, text string, n int) {
	t.Helper()
	limit := time.After(workertest.Patience)
	for strings.Count(c.text(), text) < n {
		select {
		case <-c.more:
		case o := <-c.done:
			t.Fatalf("the task ended before it printed %q: %v", text, o)
		case <-limit:
			t.Fatalf("%q was not printed, only %q", text, c.text())
		}
	}
}

// planner makes plans of stub ids: the handler is what stands before a dash.
type planner struct {
	mu      sync.Mutex
	configs map[string]stub.Config // by stub id
	fail    error
}

func newPlanner() *planner { return &planner{configs: map[string]stub.Config{}} }

func (p *planner) set(stubID string, c stub.Config) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.configs[stubID] = c
}

func (p *planner) failWith(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = err
}

func (p *planner) Plan(_ context.Context, workspace, stubID string) (*owner.Plan, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return nil, p.fail
	}
	cfg, ok := p.configs[stubID]
	if !ok {
		cfg = stub.Config{KeepWarmSec: -1}
	}
	if cfg.CPUMillis == 0 {
		cfg.CPUMillis, cfg.MemoryMiB = 1000, 64
	}
	handler, _, _ := strings.Cut(stubID, "-")
	if handler == "gone" {
		return nil, fault.New(fault.NotFound, "stub is not known", "")
	}
	order := workertest.Order(handler + ":3")
	order.WorkspaceId, order.StubId = workspace, stubID
	d, err := cfg.Demand(workspace, nil)
	if err != nil {
		return nil, err
	}
	return &owner.Plan{StubID: stubID, StubName: handler, Workspace: workspace, Config: cfg, Demand: d, Order: order}, nil
}

func (p *planner) Complete(*owner.Plan, *peerv1.WorkOrder, string, string) {}

// memJournal is a journal in memory that can be slow or broken on cue.
type memJournal struct {
	mu        sync.Mutex
	tasks     map[string]*owner.StoredTask
	order     []string
	submitted func(owner.TaskRecord) error
	attempted func(id string, a owner.AttemptRecord) error
	ended     func(id string) error
	ends      map[string]int
}

func newJournal() *memJournal {
	return &memJournal{tasks: map[string]*owner.StoredTask{}, ends: map[string]int{}}
}

func (j *memJournal) hook(set func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	set()
}

func (j *memJournal) Submitted(_ context.Context, r owner.TaskRecord) error {
	j.mu.Lock()
	h := j.submitted
	j.mu.Unlock()
	if h != nil {
		if err := h(r); err != nil {
			return err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	r.Args = slices.Clone(r.Args)
	j.tasks[r.ID] = &owner.StoredTask{TaskRecord: r}
	j.order = append(j.order, r.ID)
	return nil
}

func (j *memJournal) Attempted(_ context.Context, id string, a owner.AttemptRecord) error {
	j.mu.Lock()
	h := j.attempted
	j.mu.Unlock()
	if h != nil {
		if err := h(id, a); err != nil {
			return err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.tasks[id].Attempt = &a
	return nil
}

func (j *memJournal) Ended(_ context.Context, id string, e owner.EndRecord) error {
	j.mu.Lock()
	h := j.ended
	j.mu.Unlock()
	if h != nil {
		if err := h(id); err != nil {
			return err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.tasks[id] == nil {
		return fmt.Errorf("no task %s", id)
	}
	j.ends[id]++
	j.tasks[id].End = &e
	return nil
}

func (j *memJournal) Get(id string) (owner.StoredTask, bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	st := j.tasks[id]
	if st == nil {
		return owner.StoredTask{}, false, nil
	}
	return *st, true, nil
}

func (j *memJournal) List(workspace string, limit int) ([]owner.StoredTask, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []owner.StoredTask
	for _, id := range slices.Backward(j.order) {
		if st := j.tasks[id]; (workspace == "" || st.Workspace == workspace) && len(out) < limit {
			out = append(out, *st)
		}
	}
	return out, nil
}

func (j *memJournal) Open() ([]owner.StoredTask, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []owner.StoredTask
	for _, id := range j.order {
		if st := j.tasks[id]; st.End == nil {
			out = append(out, *st)
		}
	}
	return out, nil
}

func (j *memJournal) endsOf(id string) (n int, status string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if e := j.tasks[id].End; e != nil {
		status = e.Status
	}
	return j.ends[id], status
}

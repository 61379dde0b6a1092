package owner

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/beammesh/beammesh/mesh"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/record"
	"github.com/beammesh/beammesh/scheduler/replicas"
)

// Bounds of what one owner keeps in memory.
const (
	maxOpenTasks = 100_000 // waiting and running
	maxOpenBytes = 2 << 30 // of their arguments
	maxRecent    = 10_000  // ended tasks kept for explain; older ones are in the journal
	maxPools     = 1024    // stubs; idle ones are dropped above it
	// defaultTTL is how long a task may wait to begin.
	defaultTTL = 12 * time.Hour
	// startTries is how often a container may fail to start before the stub's
	// waiting tasks are told.
	startTries = 3
	// detailWait is how long the lease's stream may take to bring the end that
	// the market has told already.
	detailWait = 10 * time.Second
)

// Config is what an Owner is made from.
type Config struct {
	Self    mesh.PeerID
	Name    string
	Epoch   uint64 // higher than in every earlier life of this node
	Clock   func() time.Duration
	Dialer  Dialer
	Planner Planner
	Journal Journal
	Log     *slog.Logger
	// Send carries a market message to a worker; order goes with an Award.
	// failed is called if it surely was not sent. It must not block.
	Send func(to scheduler.NodeID, m any, order []byte, failed func(error))
	// Publish gossips an open offer; it must not block.
	Publish func(market.OpenOffer)
	// Discover looks for nodes of these GPU classes (none = any worker), feeds
	// their adverts to Step and returns.
	Discover func(ctx context.Context, classes []string)
	// Limits say how this node finds others, where that is not by all means;
	// explanations carry them.
	Limits []string
	// Wanted hears of every container that is asked of the market; nil = nobody.
	Wanted func(scheduler.Demand)
	// NodeName gives a node's name for people.
	NodeName func(mesh.PeerID) string
	// Record takes every step of the machines, for the market's journal; it must
	// not block. nil = nobody keeps one.
	Record func(record.Record)
}

// Dialer opens the lease streams; the node's own id works too.
type Dialer interface {
	Open(ctx context.Context, to mesh.PeerID, protocol string) (mesh.Stream, error)
}

// Owner answers for the tasks of this node.
type Owner struct {
	cfg    Config
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // guards everything below
	market  *market.Owner
	timer   *time.Timer
	todo    []func() // steps that follow from steps, in order
	running bool     // todo is being worked off
	pools   map[string]*pool
	offers  map[market.OfferID]*wanted
	leases  map[market.LeaseID]*leaseClient
	tasks   map[string]*task
	recent  []string // ended tasks in tasks, oldest first
	open    int
	seq     uint64
	closed  bool

	openBytes int          // arguments of open tasks
	restored  bool         // Restore is over: what is still an orphan is nobody's
	parked    []StoredTask // headless ones that Restore could not plan
}

// wanted is one container that was asked of the market.
type wanted struct {
	id        market.OfferID
	pool      *pool
	submitted time.Time
	placed    bool
	adopted   bool
}

// firstWidth is how many nodes an offer asks first. Adverts are a tenth of a second
// old in a node, so the best two nearly always have room; four more are asked when
// they do not. See docs/adr/two-asks-first.md.
const firstWidth = 2

// New makes an owner; Restore and Close frame its life.
func New(cfg Config) *Owner {
	machine := market.OwnerConfig{ID: market.OwnerID{Peer: scheduler.NodeID(cfg.Self), Epoch: cfg.Epoch}, FirstWidth: firstWidth}
	if cfg.Record != nil {
		cfg.Record(record.Record{At: cfg.Clock(), Machine: record.Owner, Event: record.OwnerStart{Config: machine, Name: cfg.Name, Wall: time.Now()}})
	}
	o := &Owner{
		cfg: cfg, log: cfg.Log,
		market: market.NewOwner(machine),
		pools:  map[string]*pool{}, offers: map[market.OfferID]*wanted{},
		leases: map[market.LeaseID]*leaseClient{}, tasks: map[string]*task{},
	}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	o.timer = time.AfterFunc(time.Hour, func() { o.Step(market.Tick{}) })
	return o
}

// Step feeds the market machine an event from outside.
func (o *Owner) Step(ev market.OwnerEvent) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.marketLocked(ev)
	if _, up := ev.(market.NodeUp); up {
		o.unparkLocked()
	}
	o.drainLocked()
}

// later queues a step behind those that are under way: a machine is never
// stepped while its last actions are still being carried out.
func (o *Owner) later(fn func()) { o.todo = append(o.todo, fn) }

func (o *Owner) drainLocked() {
	if o.running {
		return
	}
	o.running = true
	for len(o.todo) > 0 {
		fn := o.todo[0]
		o.todo = o.todo[1:]
		fn()
	}
	o.running = false
}

func (o *Owner) marketLocked(ev market.OwnerEvent) {
	o.later(func() {
		if o.closed {
			return
		}
		now := o.cfg.Clock()
		actions := slices.Clone(o.market.Step(now, ev))
		if o.cfg.Record != nil {
			o.cfg.Record(record.Record{At: now, Machine: record.Owner, Event: ev, Decisions: record.OwnerDecisions(actions)})
		}
		for _, a := range actions {
			o.marketActionLocked(a)
		}
		if at, ok := o.market.NextWake(); ok {
			o.timer.Reset(max(at-o.cfg.Clock(), 0))
		}
	})
}

func (o *Owner) marketActionLocked(a market.OwnerAction) {
	switch a := a.(type) {
	case market.SendAsk:
		o.cfg.Send(a.To, a.Ask, nil, func(err error) {
			o.Step(market.SendFailed{Node: a.To, Offer: a.Ask.Offer, Round: a.Ask.Round, Reason: err.Error()})
		})
	case market.SendAward:
		o.cfg.Send(a.To, a.Award, o.orderLocked(a.Award, a.To), func(err error) {
			o.Step(market.SendFailed{Node: a.To, Offer: a.Award.Offer, Lease: a.Award.Lease, Reason: err.Error()})
		})
	case market.SendRelease:
		o.cfg.Send(a.To, a.Release, nil, nil)
	case market.SendRenewAck:
		o.cfg.Send(a.To, a.Ack, nil, nil)
	case market.SendEndedAck:
		o.cfg.Send(a.To, a.Ack, nil, nil)
	case market.SendOpenOffer:
		o.cfg.Send(a.To, a.OpenOffer, nil, nil)
	case market.PublishOpenOffer:
		o.cfg.Publish(a.OpenOffer)
	case market.Discover:
		o.wg.Add(1)
		go func() {
			defer o.wg.Done()
			o.cfg.Discover(o.ctx, a.Classes)
			o.Step(market.DiscoveryDone{Offer: a.Offer})
		}()
	case market.Placed:
		o.placedLocked(a)
	case market.Waiting:
		if w := o.offers[a.Offer]; w != nil {
			w.pool.waiting = waitingText(a.Reasons, a.Hint)
		}
	case market.Infeasible:
		if w := o.offers[a.Offer]; w != nil {
			delete(o.offers, a.Offer)
			w.pool.fatal = &beamv1.ErrorDetail{Code: string(fault.NoCapacity), Message: infeasibleText(w.pool.plan, a.Reasons), Hint: a.Hint}
			w.pool.stepLocked(replicas.AcquireFailed{N: 1, Final: true, Reason: w.pool.fatal.Message})
		}
	case market.Lost:
		o.lostLocked(a)
	case market.NodeDraining:
		if c := o.leases[a.Lease]; c != nil {
			c.pool.stepLocked(replicas.ReplicaDraining{Replica: replicas.ReplicaID(a.Lease)})
		}
	case market.Orphan:
		// Leases of an earlier life that Restore did not take over. They say so
		// again and again: before Restore is over nothing is decided.
		if o.restored && !o.isParkedLocked(a.Lease.Lease) {
			o.marketLocked(market.Disown{Lease: a.Lease, Node: a.Node})
		}
	default:
		o.log.Error("action is not carried out", "action", fmt.Sprintf("%T", a))
	}
}

func (o *Owner) placedLocked(a market.Placed) {
	w := o.offers[a.Offer]
	if w == nil || w.placed {
		if w == nil {
			o.marketLocked(market.ReleaseLease{Lease: a.Lease, Reason: "nobody waits for it any more"})
		}
		return
	}
	w.placed = true
	w.pool.waiting = ""
	c := newLeaseClient(o, w, a.Lease, a.Fence, mesh.PeerID(a.Node))
	c.placedAt = time.Now()
	c.note = a.Note
	o.leases[a.Lease] = c
	o.wg.Add(1)
	go c.run()
}

// lostLocked: the market gave a lease up. What the worker said itself comes on
// the lease stream, behind the results that were there before.
func (o *Owner) lostLocked(a market.Lost) {
	c := o.leases[a.Lease]
	if c == nil {
		if w := o.offers[a.Offer]; w != nil {
			delete(o.offers, a.Offer)
			w.pool.stepLocked(replicas.AcquireFailed{N: 1, Reason: string(a.Reason)})
		}
		return
	}
	node := o.cfg.NodeName(c.node)
	switch a.Reason {
	case market.EndExpired, market.EndNodeDown:
		o.dropLeaseLocked(c, goneBy{nodeLost: true, text: fmt.Sprintf("node %s was lost (%s)", node, a.Detail)})
	default:
		// Give the stream time to bring the end with its details.
		time.AfterFunc(detailWait, func() {
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.closed {
				return
			}
			o.dropLeaseLocked(c, goneBy{nodeLost: true, text: fmt.Sprintf("the container on %s ended: %s", node, a.Detail)})
			o.drainLocked()
		})
	}
}

// dropLeaseLocked gives a lease up whose worker does not say the last word.
func (o *Owner) dropLeaseLocked(c *leaseClient, by goneBy) {
	if !c.over {
		o.leaseGoneLocked(c, by)
		c.cancel()
	}
}

// orderLocked puts the work order of an award together.
func (o *Owner) orderLocked(a market.Award, to scheduler.NodeID) []byte {
	w := o.offers[a.Offer]
	if w == nil {
		return nil
	}
	b, err := w.pool.order(o.cfg.Planner, string(a.Lease), string(to))
	if err != nil {
		o.log.Error("encode work order", "offer", a.Offer, "err", err)
		return nil
	}
	return b
}

func (o *Owner) newOfferIDLocked(p *pool) market.OfferID {
	o.seq++
	stub := p.plan.StubID[:min(8, len(p.plan.StubID))]
	return market.OfferID(fmt.Sprintf("function-%s-%s", stub, shortID(o.cfg.Self, o.cfg.Epoch, o.seq)))
}

// Submit takes one call. It returns the task's id after the journal has it.
func (o *Owner) Submit(ctx context.Context, r Request) (string, error) {
	p, err := o.pool(ctx, r.Workspace, r.StubID)
	if err != nil {
		return "", err
	}
	cfg := p.plan.Config
	t := &task{
		id: NewTaskID(string(o.cfg.Self)), workspace: r.Workspace, stubID: r.StubID, stubName: p.plan.StubName,
		args: r.Args, format: r.Format, headless: r.Headless || cfg.Headless, callback: r.CallbackURL,
		created: time.Now(), status: Pending, notify: r.Notify, answers: map[uint32]answer{},
	}
	if t.callback == "" {
		t.callback = cfg.CallbackURL
	}
	t.ctx, t.stop = context.WithCancel(o.ctx)
	o.mu.Lock()
	if err := o.roomLocked(len(t.args)); err != nil {
		o.mu.Unlock()
		t.stop()
		return "", err
	}
	o.open++
	o.openBytes += len(t.args)
	o.mu.Unlock()
	// A client that leaves now must not make it unknown whether the journal has
	// the task: it is cancelled like any other.
	err = o.cfg.Journal.Submitted(context.WithoutCancel(ctx), TaskRecord{ID: t.id, Workspace: t.workspace, StubID: t.stubID, StubName: t.stubName,
		Format: t.format, CallbackURL: t.callback, Args: t.args, Headless: t.headless, CreatedUnixMicro: t.created.UnixMicro()})
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil && o.closed {
		err = errClosing
	}
	if err != nil {
		o.open--
		o.openBytes -= len(t.args)
		t.stop()
		return "", fmt.Errorf("journal task: %w", err)
	}
	if q := o.pools[p.key]; q != nil {
		p = q
	} else {
		o.pools[p.key] = p // dropped as idle meanwhile
	}
	o.tasks[t.id] = t
	o.submitLocked(p, t)
	o.drainLocked()
	return t.id, nil
}

var errClosing = fault.New(fault.Unreachable, "the node is shutting down", "submit at another node")

// roomLocked refuses a task that this node has no memory for.
func (o *Owner) roomLocked(bytes int) error {
	switch {
	case o.closed:
		return errClosing
	case o.open >= maxOpenTasks:
		return fault.New(fault.NoCapacity, fmt.Sprintf("%d tasks are open at this node", o.open), "wait for some to end, or submit at another node")
	case o.openBytes+bytes > maxOpenBytes:
		return fault.New(fault.NoCapacity, fmt.Sprintf("the arguments of the tasks that are open at this node fill %d MiB", o.openBytes>>20),
			"wait for some to end, or submit at another node")
	}
	return nil
}

func (o *Owner) submitLocked(p *pool, t *task) {
	p.enlistLocked(t)
	p.stepLocked(replicas.Submit{Call: o.callOf(p, t)})
}

// callOf is what a pool knows of a task.
func (o *Owner) callOf(p *pool, t *task) replicas.Call {
	cfg := p.plan.Config
	ttl := defaultTTL
	if cfg.TTLSec > 0 {
		ttl = time.Duration(cfg.TTLSec) * time.Second
	}
	call := replicas.Call{ID: replicas.CallID(t.id), Deadline: o.cfg.Clock() + ttl, Retries: cfg.Retries, RetryFor: retryFor}
	if d := cfg.Timeout(); d > 0 {
		call.Timeout = d + timeoutSlack // the worker's own timer comes first
	}
	return call
}

// retryName marks the failures that the runner found in the stub's retry_for;
// others of the user's own exceptions are final.
const retryName = "retry_for"

// retryFor is what a stub's retries are for: these, and containers that crash.
var retryFor = []string{retryName, string(replicas.FailCrash), string(replicas.FailOOM)}

// timeoutSlack is how much later than the worker the owner gives a call up.
const timeoutSlack = 15 * time.Second

// Cancel ends a task; ending one that has ended is no error.
func (o *Owner) Cancel(taskID, reason string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	t := o.tasks[taskID]
	if t == nil {
		return fault.New(fault.NotFound, "task "+taskID+" is not known here", "see 'beam task list'")
	}
	if p := o.pools[poolKey(t.workspace, t.stubID)]; p != nil && !Ended(t.status) {
		p.stepLocked(replicas.Cancel{Call: replicas.CallID(taskID), Reason: reason})
	}
	o.drainLocked()
	return nil
}

// Forget tells that nobody listens to a task any more: without a headless flag
// it is cancelled.
func (o *Owner) Forget(taskID string) {
	o.mu.Lock()
	t := o.tasks[taskID]
	if t == nil || Ended(t.status) {
		o.mu.Unlock()
		return
	}
	t.notify = nil
	t.stop()
	headless := t.headless
	o.mu.Unlock()
	if !headless {
		_ = o.Cancel(taskID, "the client went away")
	}
}

// Close stops the owner. Attached tasks are left to the workers' owner gap,
// headless ones go on without us.
func (o *Owner) Close() {
	o.mu.Lock()
	o.closed = true
	o.timer.Stop()
	for _, p := range o.pools {
		p.timer.Stop()
	}
	o.mu.Unlock()
	o.cancel()
	o.wg.Wait()
}

package worker

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"github.com/beammesh/beammesh/runtime"
	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/record"
	"google.golang.org/protobuf/proto"
)

const (
	// maxFinished bounds the ended leases whose last events wait for their owner.
	maxFinished = 256
	// maxFinishedBytes bounds what they hold together.
	maxFinishedBytes = 256 << 20
	// finishedFor is how long they are kept for an owner that is away.
	finishedFor = 24 * time.Hour
)

// Config is what a Worker is made from. All fields but Zero ones are required.
type Config struct {
	Market  market.WorkerConfig
	Engine  runtime.Engine
	Puller  Puller
	LogDir  string
	Bundle  string // host path of the runner bundle, mounted into every container
	APIEnv  []string
	Name    string // of this node, for messages
	Clock   func() time.Duration
	Log     *slog.Logger
	RunDirs string // short path for the containers' socket folders; emptied by New
	// Sockets puts the node's API into a container's folder.
	Sockets func(dir string) (stop func(), err error)
	// Send carries a market message to an owner; it must not block.
	Send func(to scheduler.NodeID, m any)
	// Advertise gossips a changed advert; it must not block.
	Advertise func(scheduler.Advert)
	// Record takes every event of the machine, for the market's journal; it must
	// not block. nil = nobody keeps one.
	Record func(record.Record)
}

// Worker runs granted leases.
type Worker struct {
	cfg Config
	env *environment
	log *slog.Logger

	ctx    context.Context // of all leases; ends in Close
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	tick   chan struct{} // one token: NextWake may have changed

	mu       sync.Mutex // guards everything below and the machine
	machine  *market.Worker
	leases   map[string]*lease // granted, and ended ones not yet acknowledged
	finished []finished        // ended leases, oldest first
	changed  chan struct{}     // closed and replaced at every step
	closed   bool              // no lease begins any more
}

type finished struct {
	id string
	at time.Time
}

// New makes a worker; Run drives it.
func New(cfg Config) (*Worker, error) {
	logs, err := newLogDir(cfg.LogDir)
	if err != nil {
		return nil, err
	}
	// Folders of an earlier life have no containers any more.
	if err := os.RemoveAll(cfg.RunDirs); err != nil {
		return nil, fmt.Errorf("clean socket folders: %w", err)
	}
	if err := os.MkdirAll(cfg.RunDirs, 0o700); err != nil {
		return nil, fmt.Errorf("make socket folders: %w", err)
	}
	w := &Worker{
		cfg: cfg, log: cfg.Log, machine: market.NewWorker(cfg.Market),
		leases: map[string]*lease{}, tick: make(chan struct{}, 1), changed: make(chan struct{}),
		env: &environment{engine: cfg.Engine, puller: cfg.Puller, logs: logs, bundle: cfg.Bundle,
			nodeName: cfg.Name, sockets: cfg.Sockets, runDirs: cfg.RunDirs, bootstrap: cfg.APIEnv},
	}
	if cfg.Record != nil {
		cfg.Record(record.Record{At: cfg.Clock(), Machine: record.Worker, Event: record.WorkerStart{Config: cfg.Market, Wall: time.Now()}})
	}
	w.ctx, w.cancel = context.WithCancelCause(context.Background())
	return w, nil
}

// Run feeds the machine its ticks until ctx ends.
func (w *Worker) Run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		w.mu.Lock()
		at, ok := w.machine.NextWake()
		w.mu.Unlock()
		wait := time.Hour
		if ok {
			wait = max(at-w.cfg.Clock(), 0)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-w.tick:
		case <-timer.C:
			w.Step(market.Tick{}, nil)
		}
	}
}

// Step feeds one event and carries out what follows. order belongs to an Award.
func (w *Worker) Step(ev market.WorkerEvent, order []byte) {
	w.mu.Lock()
	now := w.cfg.Clock()
	if w.cfg.Record != nil {
		w.cfg.Record(record.Record{At: now, Machine: record.Worker, Event: ev})
	}
	for _, a := range w.machine.Step(now, ev) {
		w.doLocked(a, order)
	}
	close(w.changed)
	w.changed = make(chan struct{})
	w.mu.Unlock()
	select {
	case w.tick <- struct{}{}:
	default:
	}
}

func (w *Worker) doLocked(a market.WorkerAction, order []byte) {
	switch a := a.(type) {
	case market.ReplyAsk:
		w.cfg.Send(a.To.Peer, a.Reply)
	case market.ReplyAward:
		w.cfg.Send(a.To.Peer, a.Reply)
	case market.ReplyRelease:
		w.cfg.Send(a.To.Peer, a.Reply)
	case market.SendRenew:
		w.cfg.Send(a.To.Peer, a.Renew)
	case market.SendEnded:
		w.cfg.Send(a.To.Peer, a.Ended)
	case market.SendPull:
		w.cfg.Send(a.To.Peer, a.Pull)
	case market.AdvertChanged:
		w.cfg.Advertise(a.Advert)
	case market.Start:
		w.startLocked(a, order)
	case market.Stop:
		if l := w.leases[string(a.Lease)]; l != nil {
			l.cancel(&endCause{reason: string(a.Reason), message: endText(a.Reason)})
		}
	default:
		w.log.Error("action is not carried out", "action", fmt.Sprintf("%T", a))
	}
}

func endText(r market.EndReason) string {
	switch r {
	case market.EndReleased:
		return "the owner released it"
	case market.EndSuperseded:
		return "a newer attempt took its place"
	case market.EndOwnerGone:
		return "no sign of the owner for too long"
	case market.EndDevice:
		return "a granted GPU vanished"
	case market.EndDrained:
		return "the node is shutting down"
	}
	return string(r)
}

func (w *Worker) startLocked(a market.Start, order []byte) {
	if w.closed {
		return
	}
	o := new(peerv1.WorkOrder)
	if err := proto.Unmarshal(order, o); err != nil {
		w.goLeaseDone(a.Lease, market.EndFailed, "work order cannot be read: "+err.Error())
		return
	}
	ctx, cancel := context.WithCancelCause(w.ctx)
	l := &lease{
		id: string(a.Lease), containerID: string(a.Lease), fence: uint64(a.Fence.Attempt),
		owner: string(a.Owner.Peer), order: o, gpus: a.Grant.Devices, cpuMillis: a.Grant.CPUMillis,
		granted: time.Now(), env: w.env, log: w.log, out: newEventLog(), wake: make(chan struct{}, 1), cancel: cancel,
	}
	l.onDrained = func() { w.forget(l.id) }
	l.onReady = func() { w.Step(market.LeaseReady{Lease: a.Lease}, nil) }
	l.order.MemoryBytes = a.Grant.MemoryMiB << 20
	w.leases[l.id] = l
	w.wg.Add(1)
	go func() {
		defer w.wg.Done()
		defer cancel(nil)
		gone := l.run(ctx)
		w.finish(l)
		w.Step(market.LeaseDone{Lease: a.Lease, Reason: endReason(gone.Reason), Detail: gone.Message}, nil)
	}()
}

// goLeaseDone reports a lease that never began, outside the lock.
func (w *Worker) goLeaseDone(id market.LeaseID, r market.EndReason, detail string) {
	w.wg.Add(1)
	go func() {
		defer w.wg.Done()
		w.Step(market.LeaseDone{Lease: id, Reason: r, Detail: detail}, nil)
	}()
}

func endReason(s string) market.EndReason {
	switch r := market.EndReason(s); r {
	case market.EndFailed, market.EndOOM, market.EndReleased, market.EndSuperseded, market.EndOwnerGone, market.EndDevice, market.EndDrained:
		return r
	}
	return market.EndExited
}

// finish keeps an ended lease for its owner's last acknowledgement, bounded by
// number, bytes and age: the oldest go first.
func (w *Worker) finish(l *lease) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if over, _ := l.out.drained(); over {
		delete(w.leases, l.id)
		return
	}
	w.finished = append(w.finished, finished{l.id, time.Now()})
	bytes := 0
	for _, f := range w.finished {
		bytes += w.leases[f.id].out.size()
	}
	for len(w.finished) > 0 {
		f := w.finished[0]
		if len(w.finished) <= maxFinished && bytes <= maxFinishedBytes && time.Since(f.at) < finishedFor {
			break
		}
		bytes -= w.leases[f.id].out.size()
		delete(w.leases, f.id)
		w.finished = w.finished[1:]
	}
}

// forget drops an ended lease that has nothing left to say.
func (w *Worker) forget(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.finished, func(f finished) bool { return f.id == id })
	if i >= 0 { // else finish, which comes later, sees it
		w.finished = slices.Delete(w.finished, i, i+1)
		delete(w.leases, id)
	}
}

func (w *Worker) lookup(id string) *lease {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leases[id]
}

// Advert is what this node says of itself now.
func (w *Worker) Advert() scheduler.Advert {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.machine.Advert()
}

// Leases lists what is granted now.
func (w *Worker) Leases() []market.LeaseState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.machine.Leases()
}

// Changed gives a channel that closes at the next step of the machine.
func (w *Worker) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

// Order gives the work order of a lease that still is known.
func (w *Worker) Order(leaseID string) (*peerv1.WorkOrder, bool) {
	if l := w.lookup(leaseID); l != nil {
		return l.order, true
	}
	return nil, false
}

// Granted is when a lease began.
func (w *Worker) Granted(leaseID string) (time.Time, bool) {
	if l := w.lookup(leaseID); l != nil {
		return l.granted, true
	}
	return time.Time{}, false
}

// Stop ends a container of a workspace at a user's wish; false means that there
// is none.
func (w *Worker) Stop(leaseID, workspace string) bool {
	l := w.lookup(leaseID)
	if l == nil || l.order.WorkspaceId != workspace {
		return false
	}
	l.cancel(&endCause{reason: string(market.EndExited), message: "the container was stopped by the user"})
	return true
}

// PruneLogs removes logs that are old or too many.
func (w *Worker) PruneLogs() { w.env.logs.prune(time.Now()) }

// Close ends all leases and waits until nothing of them is left.
func (w *Worker) Close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.cancel(&endCause{reason: string(market.EndDrained), message: endText(market.EndDrained)})
	w.wg.Wait()
}

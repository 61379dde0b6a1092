package owner

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/node/wire"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/scheduler/replicas"
	"google.golang.org/protobuf/proto"
)

const (
	leaseProtocol = "lease/1"
	openLimit     = 5 * time.Second
	// reattach bounds the pause between tries to reach a worker again.
	reattachFirst = 200 * time.Millisecond
	reattachMost  = 5 * time.Second
	// releasedLimit is how long a worker that cannot be reached is told that its
	// lease was released. It finds out by itself too.
	releasedLimit = 30 * time.Second
	// settleLimit bounds the wait for the journal before the last word.
	settleLimit = 30 * time.Second
	// maxPhases bounds what a worker may tell of a start.
	maxPhases = 16
)

// leaseClient is the owner's end of one lease: it sends calls, reads events and
// attaches again when the stream breaks.
type leaseClient struct {
	o      *Owner
	pool   *pool
	id     market.LeaseID
	offer  market.OfferID
	fence  market.Fence
	node   mesh.PeerID
	ctx    context.Context
	cancel context.CancelFunc
	wanted time.Time // when the container was asked for
	note   string

	// guarded by Owner.mu
	placedAt  time.Time
	readyAt   time.Time
	ready     bool
	released  bool // let go: its end needs no answer
	over      bool // the pool knows that it is gone
	adopted   bool // of an earlier life of this owner
	calls     int
	phases    []*beamv1.Phase // pull, start, import, with times from wanted
	container string

	mu      sync.Mutex
	queue   []*peerv1.LeaseDown  // waits for the writer
	unended map[callKey]sentCall // calls whose end has not come
	sent    uint64               // calls so far
	ackDue  bool                 // the writer says what may be forgotten
	wake    chan struct{}
	next    uint64          // event wanted next
	held    map[uint64]bool // ends that the journal does not have yet
	calm    chan struct{}   // closed and replaced when held shrinks
}

type callKey struct {
	task    string
	attempt uint32
}

type sentCall struct {
	seq uint64
	m   *peerv1.LeaseDown
}

func newLeaseClient(o *Owner, w *wanted, id market.LeaseID, fence market.Fence, node mesh.PeerID) *leaseClient {
	c := &leaseClient{o: o, pool: w.pool, id: id, offer: w.id, fence: fence, node: node, wanted: w.submitted,
		unended: map[callKey]sentCall{}, wake: make(chan struct{}, 1), next: 1,
		held: map[uint64]bool{}, calm: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(o.ctx)
	return c
}

// send queues a message for the worker. What waits is bounded by the calls that
// the pool has out at this lease.
func (c *leaseClient) send(m *peerv1.LeaseDown) {
	c.mu.Lock()
	if call := m.GetCall(); call != nil {
		c.sent++
		c.unended[callKey{call.TaskId, call.Attempt}] = sentCall{c.sent, m}
	}
	c.queue = append(c.queue, m)
	c.mu.Unlock()
	c.poke()
}

// ack makes the writer acknowledge what may be forgotten by then.
func (c *leaseClient) ack() {
	c.mu.Lock()
	c.ackDue = true
	c.mu.Unlock()
	c.poke()
}

func (c *leaseClient) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run keeps a stream to the worker until the lease is over.
func (c *leaseClient) run() {
	defer c.o.wg.Done()
	defer c.cancel()
	pause := reattachFirst
	since := time.Now() // of the last stream that lasted
	for c.ctx.Err() == nil {
		began := time.Now()
		end, err := c.attach()
		if end {
			return
		}
		if time.Since(began) > reattachMost+openLimit {
			pause, since = reattachFirst, time.Now()
		}
		if time.Since(since) > releasedLimit && c.letGo() {
			return
		}
		c.o.log.Debug("lease stream broke", "lease", c.id, "peer", c.node, "err", err)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-c.ctx.Done():
			t.Stop()
		}
		pause = min(2*pause, reattachMost)
	}
}

// letGo gives up telling a worker that its lease was released.
func (c *leaseClient) letGo() bool {
	c.o.mu.Lock()
	defer c.o.mu.Unlock()
	if !c.released {
		return false
	}
	c.o.leaseGoneLocked(c, goneBy{text: "released"})
	c.o.drainLocked()
	return true
}

// attach runs one stream. end is true when the worker said its last word.
func (c *leaseClient) attach() (end bool, err error) {
	ctx, cancel := context.WithTimeout(c.ctx, openLimit)
	s, err := c.o.cfg.Dialer.Open(ctx, c.node, leaseProtocol)
	cancel()
	if err != nil {
		return false, err
	}
	defer s.Close()
	conn := wire.New(s)
	c.mu.Lock()
	hello := &peerv1.LeaseDown{What: &peerv1.LeaseDown_Attach{Attach: &peerv1.Attach{
		LeaseId: string(c.id), Fence: uint64(c.fence.Attempt), FromEvent: c.next}}}
	// The worker knows calls it has already: sending them again is harmless.
	queue := []proto.Message{hello}
	calls := slices.SortedFunc(maps.Values(c.unended), func(a, b sentCall) int { return cmp.Compare(a.seq, b.seq) })
	for _, call := range calls {
		queue = append(queue, call.m)
	}
	for _, m := range c.queue {
		if m.GetCall() == nil {
			queue = append(queue, m)
		}
	}
	c.queue = nil
	c.mu.Unlock()
	if err := conn.Write(queue...); err != nil {
		_ = s.Reset()
		return false, err
	}
	sctx, stop := context.WithCancel(c.ctx)
	var over atomic.Bool
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		c.writeLoop(sctx, conn)
		if !over.Load() {
			_ = s.Reset() // ends the reader too, when ctx ended first
		}
	}()
	end, err = c.readLoop(conn)
	if end {
		// The worker waits for this before it forgets the lease.
		c.settle()
		over.Store(true)
		_ = s.SetWriteDeadline(time.Now().Add(openLimit))
		_ = conn.Write(&peerv1.LeaseDown{What: &peerv1.LeaseDown_Ack{Ack: c.ackable()}})
		_ = s.CloseWrite()
	}
	stop()
	wg.Wait()
	return end, err
}

func (c *leaseClient) writeLoop(ctx context.Context, conn *wire.Conn) {
	for {
		select {
		case <-c.wake:
		case <-ctx.Done():
			return
		}
		c.mu.Lock()
		batch := make([]proto.Message, len(c.queue), len(c.queue)+1)
		for i, m := range c.queue {
			batch[i] = m
		}
		c.queue = nil
		ack := c.ackDue
		c.ackDue = false
		c.mu.Unlock()
		if ack {
			batch = append(batch, &peerv1.LeaseDown{What: &peerv1.LeaseDown_Ack{Ack: c.ackable()}})
		}
		if len(batch) == 0 {
			continue
		}
		if err := conn.Write(batch...); err != nil {
			return // calls are in unended, the rest is advice
		}
	}
}

func (c *leaseClient) readLoop(conn *wire.Conn) (end bool, err error) {
	for {
		ev := new(peerv1.LeaseUp)
		if err := conn.Read(ev); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return false, err
		}
		if g := ev.GetGone(); g != nil {
			c.mu.Lock()
			c.next = max(c.next, ev.Event+1)
			c.mu.Unlock()
			c.gone(g)
			return true, nil
		}
		c.mu.Lock()
		// In a new life of the owner the first event is not number one: those
		// before it were acknowledged by the old one.
		fresh := ev.Event >= c.next
		if fresh {
			c.next = ev.Event + 1
		}
		c.mu.Unlock()
		if !fresh {
			continue // a repeat after attaching again
		}
		c.handle(ev)
		if ev.GetOutput() == nil || ev.Event%16 == 0 {
			c.ack()
		}
	}
}

// hold keeps an end unacknowledged until release: the worker is its only keeper
// until the journal has it.
func (c *leaseClient) hold(event uint64) (release func()) {
	c.mu.Lock()
	c.held[event] = true
	c.mu.Unlock()
	return func() {
		c.mu.Lock()
		delete(c.held, event)
		close(c.calm)
		c.calm = make(chan struct{})
		c.mu.Unlock()
		c.ack()
	}
}

// ackable is the newest event that may be forgotten with all before it.
func (c *leaseClient) ackable() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.next - 1
	for ev := range c.held {
		n = min(n, ev-1)
	}
	return n
}

// settle waits, for a while, until nothing is held. What still is then, the
// worker keeps.
func (c *leaseClient) settle() {
	limit := time.NewTimer(settleLimit)
	defer limit.Stop()
	for {
		c.mu.Lock()
		n, calm := len(c.held), c.calm
		c.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-calm:
		case <-limit.C:
			return
		case <-c.o.ctx.Done():
			return
		}
	}
}

func (c *leaseClient) handle(ev *peerv1.LeaseUp) {
	o := c.o
	switch w := ev.What.(type) {
	case *peerv1.LeaseUp_Output:
		c.output(w.Output)
		return
	case *peerv1.LeaseUp_Ended:
		key := callKey{w.Ended.TaskId, w.Ended.Attempt}
		c.mu.Lock()
		_, ours := c.unended[key]
		delete(c.unended, key)
		c.mu.Unlock()
		if !ours {
			return // a worker speaks of the calls that it was given, and once of each
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.drainLocked()
	switch w := ev.What.(type) {
	case *peerv1.LeaseUp_Phase:
		if len(c.phases) >= maxPhases {
			return
		}
		d := time.Duration(w.Phase.DurationUs) * time.Microsecond
		c.phases = append(c.phases, &beamv1.Phase{Name: w.Phase.Name, StartMs: time.Since(c.wanted).Milliseconds() - d.Milliseconds(),
			DurationMs: d.Milliseconds(), Detail: w.Phase.Detail})
	case *peerv1.LeaseUp_Ready:
		c.ready, c.readyAt, c.container = true, time.Now(), w.Ready.ContainerId
		c.pool.failures, c.pool.userFail, c.pool.fatal = 0, nil, nil
		if !c.released && !c.adopted {
			c.pool.stepLocked(replicas.ReplicaReady{Replica: replicas.ReplicaID(c.id), Node: string(c.node)})
		}
	case *peerv1.LeaseUp_Started:
		if t := o.tasks[w.Started.TaskId]; t != nil {
			at := t.attempt(w.Started.Attempt)
			if at == nil || at.lease != c.id {
				return
			}
			if at.started.IsZero() {
				at.started = time.Now()
			}
			if t.started.IsZero() {
				t.started = at.started
			}
			if !Ended(t.status) {
				t.status = Running
			}
			c.pool.stepLocked(replicas.Begun{Replica: replicas.ReplicaID(c.id), Call: replicas.CallID(t.id), Attempt: int(w.Started.Attempt)})
		}
	case *peerv1.LeaseUp_Ended:
		c.endedLocked(w.Ended, ev.Event)
	}
}

// output hands log bytes on; it may block on a slow reader, which then slows
// the program down.
func (c *leaseClient) output(out *peerv1.Output) {
	o := c.o
	o.mu.Lock()
	t := o.tasks[out.TaskId]
	if out.TaskId == "" {
		// Printed while the program loads: it belongs to whoever waits for it.
		t = c.pool.listenerLocked()
	} else if t != nil && !t.ranOn(c.id) {
		t = nil
	}
	var n Notify
	if t != nil {
		n = t.notify
	}
	o.mu.Unlock()
	if n == nil {
		return
	}
	t.logMu.Lock()
	n.Log(t.ctx, t.id, int(out.Fd), out.Data)
	t.logMu.Unlock()
}

// endedLocked feeds a call's end to the pool, which decides whether it counts.
func (c *leaseClient) endedLocked(e *peerv1.CallEnded, event uint64) {
	t := c.o.tasks[e.TaskId]
	id, call, n := replicas.ReplicaID(c.id), replicas.CallID(e.TaskId), int(e.Attempt)
	if e.Kind == peerv1.CallEnded_RECALLED {
		if t != nil {
			t.attempts = slices.DeleteFunc(t.attempts, func(a *attempt) bool { return a.number == e.Attempt && a.lease == c.id })
		}
		c.pool.stepLocked(replicas.Recalled{Replica: id, Call: call, Attempt: n, Given: true})
		return
	}
	if t == nil || Ended(t.status) {
		// It was cancelled or ran out of time: now the container is free again.
		c.pool.stepLocked(replicas.Result{Replica: id, Call: call, Attempt: n, Failure: &replicas.Failure{Kind: replicas.FailCancelled}})
		return
	}
	at := t.attempt(e.Attempt)
	if at != nil {
		at.ended = time.Now()
		at.end = e.Kind.String()
	}
	o, f := c.outcome(t, at, e)
	t.answers[e.Attempt] = answer{o, f}
	t.holds = append(t.holds, c.hold(event))
	c.pool.stepLocked(replicas.Result{Replica: id, Call: call, Attempt: n, Failure: f})
}

// goneBy is why a lease is over.
type goneBy struct {
	nodeLost bool
	text     string
	code     string // set: the stub cannot run at all
	hint     string
	user     *peerv1.UserError
	oom      bool
}

// gone takes the worker's last word on a lease.
func (c *leaseClient) gone(g *peerv1.LeaseGone) {
	c.o.mu.Lock()
	defer c.o.mu.Unlock()
	defer c.o.drainLocked()
	by := goneBy{text: g.Message, code: g.Code, hint: g.Hint, user: g.Error, oom: g.Reason == string(market.EndOOM)}
	switch g.Reason {
	case "unknown", string(market.EndDrained), string(market.EndDevice), string(market.EndOwnerGone), string(market.EndSuperseded), "lost":
		by.nodeLost = true
	}
	c.o.leaseGoneLocked(c, by)
}

// forgetUnbegunLocked takes the attempts off their tasks that the container
// never began: the pool sends them again, elsewhere, under the same number.
func (c *leaseClient) forgetUnbegunLocked() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key := range c.unended {
		if t := c.o.tasks[key.task]; t != nil {
			t.attempts = slices.DeleteFunc(t.attempts, func(a *attempt) bool {
				return a.number == key.attempt && a.lease == c.id && a.started.IsZero()
			})
		}
	}
}

// leaseGoneLocked tells the pool, once, that a lease is over.
func (o *Owner) leaseGoneLocked(c *leaseClient, by goneBy) {
	if c.over {
		return
	}
	c.over = true
	delete(o.leases, c.id)
	delete(o.offers, c.offer)
	// In case it was only the stream that ended: the market lets it go too.
	o.marketLocked(market.Withdraw{Offer: c.offer, Reason: by.text})
	if c.released {
		return
	}
	p := c.pool
	if c.ready {
		f := replicas.Failure{Kind: replicas.FailCrash, Text: by.text}
		if by.oom {
			f.Kind = replicas.FailOOM
		}
		if !by.nodeLost {
			c.forgetUnbegunLocked()
		}
		p.stepLocked(replicas.ReplicaLost{Replica: replicas.ReplicaID(c.id), NodeLost: by.nodeLost, Failure: f})
		return
	}
	p.failures++
	final := by.code != "" || (p.failures >= startTries && !by.nodeLost)
	if final {
		code := by.code
		if code == "" {
			code = string(fault.Failed)
		}
		p.fatal = &beamv1.ErrorDetail{Code: code, Message: by.text, Hint: by.hint}
		p.userFail = by.user
		p.failures = 0
	}
	p.stepLocked(replicas.AcquireFailed{N: 1, Final: final, Reason: by.text})
}

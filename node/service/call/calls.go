package call

import (
	"context"
	"sync"
	"time"

	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
	"google.golang.org/protobuf/proto"
)

const (
	// keptBytes of events that were sent already, for a reader that comes back.
	keptBytes = 64 << 20
	// unsentBytes of results stop new items from being taken.
	unsentBytes = 64 << 20
	// unsentLogs slows programs down that print faster than the client reads.
	unsentLogs = 4 << 20
)

// calls is the state of one map.
type calls struct {
	id, workspace, stub, callback string
	headless                      bool
	most                          int
	expire                        *time.Timer
	gap                           time.Duration // after which it fires

	mu        sync.Mutex
	wake      chan struct{} // closed and replaced on every change
	nextIndex uint64        // of the item taken next
	lastPut   bool          // no more items follow
	stopped   bool
	why       string // it was stopped
	closed    bool
	open      map[uint64]string // items that have not ended → task id ("" = being submitted)
	ended     bool              // the end event is in the log
	readers   int

	first  uint64 // number of events[0]
	events []*beamv1.ResultEvent
	unsent uint64 // number of the first event that no reader was sent
	kept   int    // bytes of events sent
	fresh  int    // bytes of events not sent
	logs   int    // of these, log bytes
}

func newCalls(id, workspace, stub string, headless bool, callback string, most int) *calls {
	return &calls{id: id, workspace: workspace, stub: stub, headless: headless, callback: callback, most: most,
		wake: make(chan struct{}), open: map[uint64]string{}}
}

func (c *calls) changedLocked() {
	close(c.wake)
	c.wake = make(chan struct{})
}

// take accepts the items of a Put that are new, and gives the index of the first.
func (c *calls) take(first uint64, items [][]byte, last bool) (uint64, [][]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.stopped || c.closed:
		return 0, nil, fault.New(fault.Cancelled, "the map was cancelled", "")
	case first > c.nextIndex:
		return 0, nil, fault.Newf(fault.Conflict, "items %d to %d are missing", c.nextIndex, first-1)
	case first+uint64(len(items)) < c.nextIndex:
		items = nil // all of it is a repeat
	default:
		items = items[c.nextIndex-first:]
	}
	if c.lastPut && len(items) > 0 {
		return 0, nil, fault.New(fault.Conflict, "items come after the last one", "")
	}
	if len(items) > c.creditLocked() && len(items) > 0 {
		return 0, nil, fault.Newf(fault.Conflict, "%d items were put with a credit of %d", len(items), c.creditLocked())
	}
	first = c.nextIndex
	for i := range items {
		c.open[first+uint64(i)] = ""
	}
	c.nextIndex += uint64(len(items))
	return first, items, nil
}

func (c *calls) creditLocked() int {
	if c.stopped || c.closed || c.fresh-c.logs > unsentBytes {
		return 0
	}
	return max(c.most-len(c.open), 0)
}

// credit gives the items that may be put now, waiting up to wait for one.
func (c *calls) credit(ctx context.Context, wait time.Duration) int {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		c.mu.Lock()
		n, wake := c.creditLocked(), c.wake
		over := c.stopped || c.closed || c.lastPut
		c.mu.Unlock()
		if n > 0 || over || wait <= 0 {
			return n
		}
		select {
		case <-wake:
		case <-timer.C:
			return n
		case <-ctx.Done():
			return n
		}
	}
}

// began records an item's task id. If the map was stopped before it was known,
// the caller must cancel it, for the reason that is given.
func (c *calls) began(index uint64, task string) (cancel string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.open[index]; !ok {
		return "" // it has ended already
	}
	c.open[index] = task
	if c.stopped {
		return c.why
	}
	return ""
}

// expireAfter sets what happens when nobody reads for a while.
func (c *calls) expireAfter(d time.Duration, fn func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gap, c.expire = d, time.AfterFunc(d, fn)
}

// isRead tells whether somebody reads now.
func (c *calls) isRead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.readers > 0
}

// read tells whether the map has ended and all of it was sent.
func (c *calls) read() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended && c.readers == 0 && c.unsent == c.first+uint64(len(c.events))
}

func (c *calls) last() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastPut = true
	c.endLocked()
	c.changedLocked()
}

// finish files an item's outcome.
func (c *calls) finish(index uint64, task string, o *beamv1.Outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.open[index]; !ok {
		return
	}
	delete(c.open, index)
	if o.TaskId == "" {
		o.TaskId = task
	}
	c.addLocked(&beamv1.ResultEvent{Index: index, What: &beamv1.ResultEvent_Outcome{Outcome: o}})
	c.endLocked()
	c.changedLocked()
}

func (c *calls) endLocked() {
	if (c.lastPut || c.stopped) && len(c.open) == 0 && !c.ended {
		c.ended = true
		c.addLocked(&beamv1.ResultEvent{What: &beamv1.ResultEvent_End{End: true}})
	}
}

func (c *calls) addLocked(ev *beamv1.ResultEvent) {
	if c.closed {
		return
	}
	ev.Event = c.first + uint64(len(c.events))
	c.events = append(c.events, ev)
	n := proto.Size(ev)
	c.fresh += n
	if ev.GetLog() != nil {
		c.logs += n
	}
}

// log files output; it waits while the client is behind.
func (c *calls) log(ctx context.Context, index uint64, task string, fd int, data []byte) {
	for {
		c.mu.Lock()
		if c.closed || c.readers == 0 && c.logs > unsentLogs {
			c.mu.Unlock()
			return // nobody reads: the log on the worker has it
		}
		if c.logs <= unsentLogs {
			c.addLocked(&beamv1.ResultEvent{Index: index, What: &beamv1.ResultEvent_Log{Log: &beamv1.LogLine{TaskId: task, Fd: uint32(fd), Data: data}}})
			c.changedLocked()
			c.mu.Unlock()
			return
		}
		wake := c.wake
		c.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
}

// stop takes no more items and gives the tasks that are open.
func (c *calls) stop(why string) (open []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stopped {
		c.stopped, c.why = true, why
	}
	for _, task := range c.open {
		if task != "" {
			open = append(open, task)
		}
	}
	c.endLocked()
	c.changedLocked()
	return open
}

func (c *calls) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.events = nil
	if c.expire != nil {
		c.expire.Stop()
	}
	c.changedLocked()
}

func (c *calls) attach(from uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if from < c.first {
		return fault.Newf(fault.Conflict, "events before %d are no longer kept", c.first)
	}
	if from > c.first+uint64(len(c.events)) {
		return fault.Newf(fault.Invalid, "there is no event %d yet", from)
	}
	c.readers++
	c.expire.Stop()
	return nil
}

func (c *calls) detach() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readers--
	if c.readers == 0 && !c.closed {
		c.expire.Reset(c.gap)
	}
	c.changedLocked()
}

// next gives the events from number from on, waiting for one; nothing after wait.
func (c *calls) next(ctx context.Context, from uint64, wait time.Duration) ([]*beamv1.ResultEvent, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return nil, fault.Wrap(fault.Cancelled, errClosed, "the map has ended", "")
		}
		if from < c.first {
			first := c.first
			c.mu.Unlock()
			return nil, fault.Newf(fault.Conflict, "events before %d are no longer kept: another reader was faster", first)
		}
		if i := from - c.first; from >= c.first && i < uint64(len(c.events)) {
			evs := append([]*beamv1.ResultEvent(nil), c.events[i:]...)
			c.mu.Unlock()
			return evs, nil
		}
		wake := c.wake
		c.mu.Unlock()
		select {
		case <-wake:
		case <-timer.C:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// sent moves the bound of what is kept for a reader that comes back.
func (c *calls) sent(next uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; c.unsent < next && c.unsent-c.first < uint64(len(c.events)); c.unsent++ {
		ev := c.events[c.unsent-c.first]
		n := proto.Size(ev)
		c.fresh -= n
		c.kept += n
		if ev.GetLog() != nil {
			c.logs -= n
		}
	}
	for c.kept > keptBytes && c.first < c.unsent {
		c.kept -= proto.Size(c.events[0])
		c.events[0] = nil
		c.events = c.events[1:]
		c.first++
	}
	c.changedLocked()
}

package call

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/beammesh/beammesh/node/owner"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/fault"
)

const (
	// keptBytes of events that were sent already, for a reader that comes back.
	keptBytes = 32 << 20
	// unsentBytes of results stop new items from being taken.
	unsentBytes = 64 << 20
	// unsentLogs slows programs down that print faster than the client reads.
	unsentLogs = 4 << 20
	// stallLimit is how long a result waits for room while the client takes
	// nothing: as long as a map lives without any reader.
	stallLimit = readerGap
	// batchBytes bounds what is handed to a reader at once.
	batchBytes = 8 << 20
)

// calls is the state of one map.
type calls struct {
	id, workspace, stub, callback string
	headless                      bool
	most                          int
	shelf                         *shelf
	stall                         time.Duration // stallLimit, shorter in tests
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
	events []event
	unsent uint64 // number of the first event that no reader was sent
	kept   int    // bytes of events sent
	fresh  int    // bytes of events not sent
	logs   int    // of these, log bytes
	memory int    // bytes of all of these that are in memory
	disk   int    // and in files
}

func newCalls(id, workspace, stub string, headless bool, callback string, most int, sh *shelf) *calls {
	return &calls{id: id, workspace: workspace, stub: stub, headless: headless, callback: callback, most: most,
		shelf: sh, stall: stallLimit, wake: make(chan struct{}), open: map[uint64]string{}}
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

// finish files an item's outcome. It waits while there is no room for it; until
// it returns the worker keeps the result too, and begins no more calls when
// enough of them wait.
func (c *calls) finish(index uint64, task string, o *beamv1.Outcome) {
	c.mu.Lock()
	_, open := c.open[index]
	c.mu.Unlock()
	if !open {
		return
	}
	if o.TaskId == "" {
		o.TaskId = task
	}
	e, err := c.keep(&beamv1.ResultEvent{Index: index, What: &beamv1.ResultEvent_Outcome{Outcome: o}})
	if errors.Is(err, errClosed) {
		return
	}
	if err != nil {
		f := fault.From(err)
		o = owner.WithoutResult(o)
		o.Status, o.Error = owner.Error, &beamv1.ErrorDetail{Code: string(f.Code), Message: f.Message, Hint: f.Hint}
		e = c.force(&beamv1.ResultEvent{Index: index, What: &beamv1.ResultEvent_Outcome{Outcome: o}})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, open := c.open[index]; !open { // told twice at once
		c.giveLocked(e)
		return
	}
	delete(c.open, index)
	c.addLocked(e)
	c.endLocked()
	c.changedLocked()
}

// keep finds room for an event: in memory, else in a file. Where neither has
// room it waits until something was read, at most for stall in which this map's
// client takes nothing.
func (c *calls) keep(ev *beamv1.ResultEvent) (event, error) {
	e := event{ev: ev, size: sizeOf(ev)}
	stalled := time.NewTimer(c.stall)
	defer stalled.Stop()
	for taken := uint64(0); ; {
		freed := c.shelf.waitFreed()
		c.mu.Lock()
		switch {
		case c.closed:
			c.mu.Unlock()
			return e, errClosed
		case c.memory+e.size <= c.shelf.mapMemory && c.shelf.takeMemory(e.size):
			c.memory += e.size
			c.mu.Unlock()
			return e, nil
		case c.disk+e.size <= c.shelf.mapDisk:
			if file, ok := c.shelf.takeDisk(e.size); ok {
				c.disk += e.size
				c.mu.Unlock()
				return c.toFile(e, file)
			}
		}
		if c.kept > 0 { // room for a new one is worth more than a repeat
			c.trimLocked(0)
			c.mu.Unlock()
			continue
		}
		if c.unsent != taken {
			taken = c.unsent
			stalled.Reset(c.stall)
		}
		unread, wake := c.fresh, c.wake
		c.mu.Unlock()
		select {
		case <-wake:
		case <-freed:
		case <-stalled.C:
			return e, fault.New(fault.NoCapacity,
				fmt.Sprintf("this result was not kept: %d MiB of the map's results wait, and the client took none for %s", unread>>20, c.stall),
				"read the results as they come, return less, or lower max_in_flight")
		}
	}
}

func (c *calls) toFile(e event, file string) (event, error) {
	e.file = file
	if err := c.shelf.write(file, e.ev); err != nil {
		c.mu.Lock()
		c.giveLocked(e)
		c.mu.Unlock()
		code := fault.Internal
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			code = fault.DiskFull
		}
		return e, fault.Wrap(code, err, "this result was not kept: the node could not write it to disk", "read the results as they come, or free disk space on the node")
	}
	e.ev = nil
	return e, nil
}

// force keeps a small event whether there is room or not.
func (c *calls) force(ev *beamv1.ResultEvent) event {
	e := event{ev: ev, size: sizeOf(ev), log: ev.GetLog() != nil}
	c.shelf.forceMemory(e.size)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.memory += e.size
	return e
}

// giveLocked takes an event of this map off the shelf.
func (c *calls) giveLocked(e event) {
	if e.file != "" {
		c.disk -= e.size
	} else {
		c.memory -= e.size
	}
	c.shelf.give(e)
}

func (c *calls) endLocked() {
	if (c.lastPut || c.stopped) && len(c.open) == 0 && !c.ended {
		c.ended = true
		ev := &beamv1.ResultEvent{What: &beamv1.ResultEvent_End{End: true}}
		e := event{ev: ev, size: sizeOf(ev)}
		c.shelf.forceMemory(e.size)
		c.memory += e.size
		c.addLocked(e)
	}
}

// addLocked files an event that has its place.
func (c *calls) addLocked(e event) {
	if c.closed {
		c.giveLocked(e)
		return
	}
	if e.ev != nil {
		e.ev.Event = c.first + uint64(len(c.events))
	}
	c.events = append(c.events, e)
	c.fresh += e.size
	if e.log {
		c.logs += e.size
	}
}

// log files output; it waits while the client is behind.
func (c *calls) log(ctx context.Context, index uint64, task string, fd int, data []byte) {
	ev := &beamv1.ResultEvent{Index: index, What: &beamv1.ResultEvent_Log{Log: &beamv1.LogLine{TaskId: task, Fd: uint32(fd), Data: data}}}
	e := event{ev: ev, size: sizeOf(ev), log: true}
	for {
		freed := c.shelf.waitFreed()
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return
		}
		if c.logs <= unsentLogs && c.shelf.takeMemory(e.size) {
			c.memory += e.size
			c.addLocked(e)
			c.changedLocked()
			c.mu.Unlock()
			return
		}
		if c.readers == 0 {
			c.mu.Unlock()
			return // nobody reads: the log on the worker has it
		}
		wake := c.wake
		c.mu.Unlock()
		select {
		case <-wake:
		case <-freed:
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
	for _, e := range c.events {
		c.giveLocked(e)
	}
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
			batch, size := c.events[i:], 0
			for n, e := range batch {
				if size += e.size; n > 0 && size > batchBytes {
					batch = batch[:n]
					break
				}
			}
			batch = slices.Clone(batch)
			c.mu.Unlock()
			return load(batch, from)
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

func load(batch []event, from uint64) ([]*beamv1.ResultEvent, error) {
	evs := make([]*beamv1.ResultEvent, len(batch))
	for i, e := range batch {
		var err error
		if evs[i], err = e.load(from + uint64(i)); err != nil {
			return nil, err
		}
	}
	return evs, nil
}

// sent moves the bound of what is kept for a reader that comes back.
func (c *calls) sent(next uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; c.unsent < next && c.unsent-c.first < uint64(len(c.events)); c.unsent++ {
		e := c.events[c.unsent-c.first]
		c.fresh -= e.size
		c.kept += e.size
		if e.log {
			c.logs -= e.size
		}
	}
	c.trimLocked(keptBytes)
	c.changedLocked()
}

// trimLocked forgets the oldest events that were sent until at most most bytes
// of such are left.
func (c *calls) trimLocked(most int) {
	for c.kept > most && c.first < c.unsent {
		c.kept -= c.events[0].size
		c.giveLocked(c.events[0])
		c.events[0] = event{}
		c.events = c.events[1:]
		c.first++
	}
}

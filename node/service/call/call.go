// Package call serves beammesh.v1.CallService: many calls of one stub over few
// requests, with flow control and a result stream that can be resumed.
package call

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/beammesh/beammesh/node/api"
	"github.com/beammesh/beammesh/node/auth"
	"github.com/beammesh/beammesh/node/owner"
	"github.com/beammesh/beammesh/node/token"
	beamv1 "github.com/beammesh/beammesh/proto/beammesh/v1"
	"github.com/beammesh/beammesh/proto/beammesh/v1/beammeshv1connect"
	"github.com/beammesh/beammesh/proto/fault"
	"golang.org/x/sync/errgroup"
)

// Bounds of the service.
const (
	maxMaps         = 1024 // open at a node
	defaultInFlight = 1000
	maxInFlight     = 10_000
	maxPutItems     = 256
	maxPutBytes     = 1 << 20 // in all, unless it is a single item
	maxItem         = 16 << 20
	maxWait         = 30 * time.Second
	// readerGap is how long a map lives without anybody reading its results.
	readerGap = 60 * time.Second
	// submitters bounds the journal entries that one Put has under way, so that
	// they share their fsync.
	submitters = 64
	keepalive  = 10 * time.Second
)

// Tasks is what the service needs of the owner.
type Tasks interface {
	Submit(ctx context.Context, r owner.Request) (string, error)
	Cancel(taskID, reason string) error
	Forget(taskID string)
}

// Service implements beammesh.v1.CallService.
type Service struct {
	beammeshv1connect.UnimplementedCallServiceHandler
	Tasks Tasks
	Log   *slog.Logger
	// Dir is an empty folder for results that wait for their readers and do not
	// fit into memory; "" = they wait on their workers.
	Dir string

	mu     sync.Mutex
	shelf  *shelf // made by the first Open
	maps   map[string]*calls
	closed bool
	gap    time.Duration // readerGap, shorter in tests
}

func (s *Service) readerGap() time.Duration {
	if s.gap > 0 {
		return s.gap
	}
	return readerGap
}

// Open makes an empty map.
func (s *Service) Open(ctx context.Context, req *connect.Request[beamv1.OpenRequest]) (*connect.Response[beamv1.OpenResponse], error) {
	id, err := auth.Require(ctx, token.Invoke)
	if err != nil {
		return nil, err
	}
	m := req.Msg
	most := int(m.MaxInFlight)
	if most == 0 {
		most = defaultInFlight
	}
	if most > maxInFlight {
		return nil, fault.New(fault.Invalid, fmt.Sprintf("max_in_flight is %d, at most %d are allowed", most, maxInFlight), "leave it out, or give less")
	}
	var raw [16]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shelf == nil {
		s.shelf = newShelf(s.Dir)
	}
	c := newCalls(hex.EncodeToString(raw[:]), id.Workspace, m.StubId, m.Headless, m.CallbackUrl, most, s.shelf)
	if s.closed {
		return nil, fault.New(fault.Unreachable, "the node is shutting down", "use another node")
	}
	if len(s.maps) >= maxMaps {
		s.dropReadLocked()
	}
	if len(s.maps) >= maxMaps {
		return nil, fault.New(fault.NoCapacity, fmt.Sprintf("%d maps are open at this node", maxMaps), "wait for some to end, or use another node")
	}
	if s.maps == nil {
		s.maps = map[string]*calls{}
	}
	s.maps[c.id] = c
	c.expireAfter(s.readerGap(), func() { s.abandoned(c) })
	return connect.NewResponse(&beamv1.OpenResponse{MapId: c.id, Credit: uint32(most)}), nil
}

// dropReadLocked forgets the maps that have ended and were read to their end:
// they are only kept in case their last message was lost.
func (s *Service) dropReadLocked() {
	for id, c := range s.maps {
		if c.read() {
			delete(s.maps, id)
			c.close()
		}
	}
}

func (s *Service) find(ctx context.Context, id string) (*calls, error) {
	who, err := auth.Require(ctx, token.Invoke)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.maps[id]
	if c == nil || c.workspace != who.Workspace {
		return nil, fault.New(fault.NotFound, "this map is not open here", fmt.Sprintf("a map ends %s after its last reader left; open a new one", readerGap))
	}
	return c, nil
}

// Put adds items. A repeated Put is recognised by first_index.
func (s *Service) Put(ctx context.Context, req *connect.Request[beamv1.PutRequest]) (*connect.Response[beamv1.PutResponse], error) {
	c, err := s.find(ctx, req.Msg.MapId)
	if err != nil {
		return nil, err
	}
	m := req.Msg
	total := 0
	for _, it := range m.Items {
		if len(it) > maxItem {
			return nil, fault.New(fault.TooLarge, "the arguments of one call are above 16 MiB", "pass large data by name")
		}
		total += len(it)
	}
	if len(m.Items) > maxPutItems || (len(m.Items) > 1 && total > maxPutBytes) {
		return nil, fault.New(fault.TooLarge, fmt.Sprintf("one Put takes at most %d items and 1 MiB", maxPutItems), "send several")
	}
	first, items, err := c.take(m.FirstIndex, m.Items, m.Last)
	if err != nil {
		return nil, err
	}
	var g errgroup.Group
	g.SetLimit(submitters)
	for i, args := range items {
		g.Go(func() error {
			n := &notify{calls: c, index: first + uint64(i)}
			// The map outlives this request.
			task, err := s.Tasks.Submit(context.WithoutCancel(ctx), owner.Request{Workspace: c.workspace, StubID: c.stub, Args: args,
				Format: "pickle", Headless: c.headless, CallbackURL: c.callback, Notify: n})
			if err != nil {
				f := fault.From(err)
				c.finish(n.index, "", &beamv1.Outcome{Status: owner.Error, Error: &beamv1.ErrorDetail{Code: string(f.Code), Message: f.Message, Hint: f.Hint}})
				return nil
			}
			if reason := c.began(n.index, task); reason != "" {
				// The map ended while this item was on its way to the journal.
				if err := s.Tasks.Cancel(task, reason); err != nil {
					s.Log.Debug("cancel", "task", task, "err", err)
				}
			}
			return nil
		})
	}
	_ = g.Wait() // every item's error is its outcome
	if m.Last {
		c.last()
	}
	wait := min(time.Duration(m.WaitMs)*time.Millisecond, maxWait)
	return connect.NewResponse(&beamv1.PutResponse{Credit: uint32(c.credit(ctx, wait))}), nil
}

// Cancel ends everything of a map that has not ended.
func (s *Service) Cancel(ctx context.Context, req *connect.Request[beamv1.CancelRequest]) (*connect.Response[beamv1.CancelResponse], error) {
	c, err := s.find(ctx, req.Msg.MapId)
	if err != nil {
		return nil, err
	}
	n := s.cancel(c, "cancelled by the client")
	return connect.NewResponse(&beamv1.CancelResponse{Cancelled: uint32(n)}), nil
}

func (s *Service) cancel(c *calls, reason string) int {
	open := c.stop(reason)
	for _, task := range open {
		if err := s.Tasks.Cancel(task, reason); err != nil {
			s.Log.Debug("cancel", "task", task, "err", err)
		}
	}
	return len(open)
}

// abandoned ends a map that nobody reads.
func (s *Service) abandoned(c *calls) {
	if c.isRead() {
		return // a reader came just now
	}
	s.mu.Lock()
	delete(s.maps, c.id)
	s.mu.Unlock()
	if !c.headless {
		s.cancel(c, "nobody reads the results any more")
	}
	c.close()
}

// Results streams events from a number on until all items have ended. The map
// is forgotten after the last event was read.
func (s *Service) Results(ctx context.Context, req *connect.Request[beamv1.ResultsRequest], out *connect.ServerStream[beamv1.ResultEvent]) error {
	c, err := s.find(ctx, req.Msg.MapId)
	if err != nil {
		return err
	}
	if err := c.attach(req.Msg.FromEvent); err != nil {
		return err
	}
	defer c.detach()
	next := req.Msg.FromEvent
	for {
		evs, err := c.next(ctx, next, keepalive)
		if err != nil {
			return err
		}
		if len(evs) == 0 {
			if err := out.Send(&beamv1.ResultEvent{What: &beamv1.ResultEvent_Keepalive{Keepalive: true}}); err != nil {
				return err
			}
			continue
		}
		release := api.Hold(ctx)
		for _, ev := range evs {
			if err := out.Send(ev); err != nil {
				return err
			}
			next = ev.Event + 1
			if ev.GetEnd() {
				// Kept for the gap, in case this very message is lost.
				c.sent(next)
				return nil
			}
		}
		release()
		c.sent(next)
	}
}

// Close ends all maps.
func (s *Service) Close() {
	s.mu.Lock()
	maps := s.maps
	s.maps, s.closed = nil, true
	s.mu.Unlock()
	for _, c := range maps {
		c.close()
	}
}

var errClosed = errors.New("map is closed")

// notify is the owner.Notify of one item.
type notify struct {
	calls *calls
	index uint64
}

// Log implements owner.Notify.
func (n *notify) Log(ctx context.Context, task string, fd int, data []byte) {
	n.calls.log(ctx, n.index, task, fd, data)
}

// Done implements owner.Notify.
func (n *notify) Done(task string, o *beamv1.Outcome) { n.calls.finish(n.index, task, o) }

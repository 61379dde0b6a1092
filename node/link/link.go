// Package link carries market messages between this node and its peers.
//
// There is one stream per direction and pair of nodes ("market/1"), opened when
// there is something to say and closed after a quiet minute. Messages to one
// peer keep their order. A message is lost with its stream; the sender is told
// when it surely was not sent, and both market machines cope with the rest.
//
// Messages to oneself take the same way without a stream. Links is safe for
// concurrent use.
package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/beammesh/beammesh/mesh"
	"github.com/beammesh/beammesh/node/wire"
	peerv1 "github.com/beammesh/beammesh/proto/beammesh/peer/v1"
	"google.golang.org/protobuf/proto"
)

// Protocol is the mesh protocol of the streams.
const Protocol = "market/1"

const (
	// maxQueued bounds the messages that wait for one peer.
	maxQueued = 1024
	// idleAfter is when a quiet stream is closed.
	idleAfter = time.Minute
	// openLimit bounds opening a stream: a silent peer is found out elsewhere.
	openLimit = 3 * time.Second
	// writeLimit bounds one write to a peer that does not read.
	writeLimit = 10 * time.Second
)

// ErrQueueFull says that a peer takes messages slower than we make them.
var ErrQueueFull = errors.New("too many messages wait for this peer")

// Links is all links of one node.
type Links struct {
	self    mesh.PeerID
	dialer  mesh.Dialer
	deliver func(from mesh.PeerID, m *peerv1.MarketMessage)
	log     *slog.Logger
	ctx     context.Context
	stop    context.CancelFunc
	wg      sync.WaitGroup

	mu     sync.Mutex
	queues map[mesh.PeerID]chan item // one goroutine each
}

type item struct {
	m      *peerv1.MarketMessage
	failed func(error)
}

// New makes the links. deliver takes what peers and this node itself send; it
// is called from one goroutine per sender and should not block for long.
func New(self mesh.PeerID, dialer mesh.Dialer, deliver func(mesh.PeerID, *peerv1.MarketMessage), log *slog.Logger) *Links {
	l := &Links{self: self, dialer: dialer, deliver: deliver, log: log, queues: map[mesh.PeerID]chan item{}}
	l.ctx, l.stop = context.WithCancel(context.Background())
	return l
}

// Send queues m for a peer and returns. failed, which may be nil, is called
// once from another goroutine if m was surely not sent.
func (l *Links) Send(to mesh.PeerID, m *peerv1.MarketMessage, failed func(error)) {
	if failed == nil {
		failed = func(error) {}
	}
	l.mu.Lock()
	if l.ctx.Err() != nil {
		l.mu.Unlock()
		go failed(mesh.ErrClosed)
		return
	}
	q := l.queues[to]
	if q == nil {
		q = make(chan item, maxQueued)
		l.queues[to] = q
		l.wg.Add(1)
		go l.run(to, q)
	}
	select {
	case q <- item{m, failed}:
		l.mu.Unlock()
	default:
		l.mu.Unlock()
		go failed(ErrQueueFull)
	}
}

// run writes one peer's messages until it is quiet for a while.
func (l *Links) run(to mesh.PeerID, q chan item) {
	defer l.wg.Done()
	var s mesh.Stream
	var conn *wire.Conn
	drop := func() {
		if s != nil {
			_ = s.Reset()
			s, conn = nil, nil
		}
	}
	defer func() {
		if s != nil {
			_ = s.Close()
		}
	}()
	idle := time.NewTimer(idleAfter)
	defer idle.Stop()
	for {
		idle.Reset(idleAfter)
		var it item
		select {
		case it = <-q:
		case <-idle.C:
			l.mu.Lock()
			if len(q) > 0 {
				l.mu.Unlock()
				continue
			}
			delete(l.queues, to)
			l.mu.Unlock()
			return
		case <-l.ctx.Done():
			drop()
			return
		}
		if to == l.self {
			l.deliver(to, it.m)
			continue
		}
		if s == nil {
			ctx, cancel := context.WithTimeout(l.ctx, openLimit)
			ns, err := l.dialer.Open(ctx, to, Protocol)
			cancel()
			if err != nil {
				l.failAll(it, q, err)
				continue
			}
			s, conn = ns, wire.New(ns)
		}
		batch := []proto.Message{it.m}
		for more := true; more && len(batch) < 64; {
			select {
			case next := <-q:
				batch = append(batch, next.m)
			default:
				more = false
			}
		}
		_ = s.SetWriteDeadline(time.Now().Add(writeLimit))
		if err := conn.Write(batch...); err != nil {
			// They may or may not have arrived: the machines' timers decide.
			l.log.Debug("market stream broke", "peer", to, "err", err)
			drop()
		}
	}
}

// failAll tells everyone whose message waits that the peer cannot be reached.
func (l *Links) failAll(it item, q chan item, err error) {
	it.failed(err)
	for {
		select {
		case next := <-q:
			next.failed(err)
		default:
			return
		}
	}
}

// Serve is the mesh handler of Protocol.
func (l *Links) Serve(ctx context.Context, s mesh.Stream) {
	conn := wire.New(s)
	for {
		m := new(peerv1.MarketMessage)
		if err := conn.Read(m); err != nil {
			if err != io.EOF && ctx.Err() == nil {
				l.log.Debug("market stream ended", "peer", s.Peer(), "err", err)
			}
			_ = s.Close()
			return
		}
		l.deliver(s.Peer(), m)
	}
}

// Close drops what is queued and waits for the writers.
func (l *Links) Close() error {
	l.mu.Lock()
	l.stop()
	l.mu.Unlock()
	l.wg.Wait()
	return nil
}

// String helps in logs and tests.
func (l *Links) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("links of %s to %d peers", l.self, len(l.queues))
}

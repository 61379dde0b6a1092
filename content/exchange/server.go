package exchange

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/beammesh/beammesh/content"
)

// ServerOptions bounds what peers may use. Zero fields take the defaults.
type ServerOptions struct {
	StreamsPerPeer int           // default 16: twice what a Fetcher opens
	Streams        int           // default 128
	WindowBytes    int64         // block bytes on their way per stream, at most; default 16 MiB
	IdleTimeout    time.Duration // a stream on which nothing moves for so long ends; default 60 s
	// Allow refuses to give blocks under root to peer by returning an error;
	// nil allows every peer. It is called for each want.
	Allow func(peer string, root content.Root) error
	Log   *slog.Logger
}

// Server answers block requests of peers. It reads one block at a time per
// stream, so a stream takes at most 1 MiB plus its queue of digests (64 KiB).
type Server struct {
	store content.Blocks
	o     ServerOptions
	count counters

	mu      sync.Mutex
	streams int
	peers   map[string]int
}

// NewServer makes a Server of store.
func NewServer(store content.Blocks, o ServerOptions) *Server {
	if o.StreamsPerPeer <= 0 {
		o.StreamsPerPeer = 16
	}
	if o.Streams <= 0 {
		o.Streams = 128
	}
	if o.WindowBytes <= 0 {
		o.WindowBytes = 16 << 20
	}
	o.WindowBytes = max(o.WindowBytes, minWindow)
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{store: store, o: o, peers: map[string]int{}}
}

// Metrics copies the counters.
func (s *Server) Metrics() Metrics { return s.count.metrics() }

// Serve answers requests on rw until the peer closes it (answers still to come
// are dropped then), breaks a rule or ctx ends; it closes rw and leaves no
// goroutine. A clean end gives nil. Close of rw must unblock its Read and Write,
// and is called more than once.
func (s *Server) Serve(ctx context.Context, peer string, rw io.ReadWriteCloser) error {
	defer rw.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { rw.Close() })()
	idle := time.AfterFunc(s.o.IdleTimeout, func() {
		cancel(fmt.Errorf("nothing moved for %s", s.o.IdleTimeout))
	})
	defer idle.Stop()

	st := &stream{s: s, peer: peer, rw: rw, w: bufio.NewWriterSize(rw, 64<<10),
		alive: func() { idle.Reset(s.o.IdleTimeout) }, wake: make(chan struct{}, 1)}
	if err := s.admit(peer); err != nil {
		s.count.add(peer, PeerCounters{Refused: 1})
		st.refuse(err)
		return err
	}
	defer s.leave(peer)

	written := make(chan struct{})
	go func() {
		defer close(written)
		cancel(st.writeAll(ctx))
	}()
	err := st.readAll()
	cancel(err) // the first of the two to end gives the reason
	<-written
	switch err := context.Cause(ctx); {
	case errors.Is(err, errPeerClosed):
		return nil
	case errors.Is(err, errProtocol):
		s.o.Log.Warn("block stream broke a rule", "peer", peer, "err", err)
		return err
	default:
		return err
	}
}

// errPeerClosed is the clean end of a stream.
var errPeerClosed = errors.New("peer closed the stream")

// admit counts a stream in, or says why not.
func (s *Server) admit(peer string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.streams >= s.o.Streams:
		return fmt.Errorf("busy: %d block streams", s.streams)
	case s.peers[peer] >= s.o.StreamsPerPeer:
		return fmt.Errorf("busy: %d block streams from this peer", s.peers[peer])
	}
	s.streams++
	s.peers[peer]++
	return nil
}

func (s *Server) leave(peer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams--
	if s.peers[peer]--; s.peers[peer] == 0 {
		delete(s.peers, peer)
	}
}

// stream is the state of one stream being served. One goroutine reads, one
// writes.
type stream struct {
	s     *Server
	peer  string
	rw    io.ReadWriteCloser
	w     *bufio.Writer // the writing goroutine's
	alive func()        // puts the idle timer back
	wake  chan struct{} // something of the fields below changed; capacity 1

	mu     sync.Mutex
	queue  []*queued
	count  int   // digests in queue
	credit int64 // block bytes that may be sent
	window int64
}

// queued is a want with its next digest to answer.
type queued struct {
	want
	next    int
	refused bool // by Allow: all of it is lacked
}

func (st *stream) signal() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// readAll takes frames until the stream ends; the error is never nil.
func (st *stream) readAll() error {
	r := bufio.NewReaderSize(st.rw, 16<<10)
	var buf []byte
	opened := false
	for {
		kind, n, err := readHeader(r)
		if errors.Is(err, io.EOF) {
			return errPeerClosed
		}
		if err != nil {
			return err
		}
		if kind > frameCredit || opened == (kind == frameOpen) {
			return protocolError("frame type %d was not expected", kind)
		}
		if buf, err = readBody(r, n, buf); err != nil {
			return err
		}
		st.alive()
		switch kind {
		case frameOpen:
			opened = true
			err = st.open(int64(binary.BigEndian.Uint32(buf)))
		case frameCredit:
			err = st.addCredit(int64(binary.BigEndian.Uint32(buf)))
		case frameWant:
			err = st.want(buf)
		}
		if err != nil {
			return err
		}
		st.signal()
	}
}

func (st *stream) open(window int64) error {
	if window < minWindow {
		return protocolError("window of %d bytes", window)
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.window = min(window, st.s.o.WindowBytes)
	st.credit = st.window
	return nil
}

func (st *stream) addCredit(n int64) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.credit += n; st.credit > st.window {
		return protocolError("credit for blocks that were not sent")
	}
	return nil
}

func (st *stream) want(body []byte) error {
	w, err := decodeWant(body)
	if err != nil {
		return err
	}
	q := &queued{want: w}
	if allow := st.s.o.Allow; allow != nil {
		if err := allow(st.peer, w.root.CID()); err != nil {
			q.refused = true
			st.s.o.Log.Warn("blocks not allowed", "peer", st.peer, "digest", w.root.CID().String(), "err", err)
		}
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.count += len(w.digests); st.count > maxQueued {
		return protocolError("more than %d digests wanted at once", maxQueued)
	}
	st.queue = append(st.queue, q)
	return nil
}

// next takes a digest of the most urgent want, the oldest among equals.
func (st *stream) next() (q *queued, index int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	best := -1
	for i, q := range st.queue { // at most maxQueued, mostly a handful
		if best < 0 || q.priority > st.queue[best].priority {
			best = i
		}
	}
	if best < 0 {
		return nil, 0
	}
	q = st.queue[best]
	index = q.next
	if q.next++; q.next == len(q.digests) {
		st.queue = append(st.queue[:best], st.queue[best+1:]...)
	}
	st.count--
	return q, index
}

// pay takes n bytes of credit if there are so many.
func (st *stream) pay(n int) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.credit < int64(n) {
		return false
	}
	st.credit -= int64(n)
	return true
}

// writeAll answers wants until the stream ends; the error is never nil.
func (st *stream) writeAll(ctx context.Context) error {
	var buf []byte
	for {
		q, index := st.next()
		if q == nil {
			if err := st.sleep(ctx); err != nil {
				return err
			}
			continue
		}
		var err error
		if buf, err = st.answer(ctx, q, index, buf); err != nil {
			return err
		}
		st.alive()
	}
}

// sleep sends what is buffered and waits for the reader's signal.
func (st *stream) sleep(ctx context.Context) error {
	if err := st.w.Flush(); err != nil {
		return err
	}
	select {
	case <-st.wake:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (st *stream) answer(ctx context.Context, q *queued, index int, buf []byte) ([]byte, error) {
	data, err := st.read(ctx, q, index, buf)
	if err != nil && ctx.Err() != nil {
		return buf, context.Cause(ctx)
	}
	var head [headerLen + blockHead]byte
	if err != nil {
		if !errors.Is(err, content.ErrNotFound) {
			st.s.o.Log.Warn("read a block to serve", "peer", st.peer, "err", err)
		}
		st.s.count.add(st.peer, PeerCounters{Lacked: 1})
		_, err = st.w.Write(appendAnswer(head[:0], frameLack, q.id, index, 0))
		return buf, err
	}
	for !st.pay(len(data)) {
		if err := st.sleep(ctx); err != nil {
			return data, err
		}
	}
	if _, err := st.w.Write(appendAnswer(head[:0], frameBlock, q.id, index, len(data))); err != nil {
		return data, err
	}
	if _, err := st.w.Write(data); err != nil {
		return data, err
	}
	st.s.count.add(st.peer, PeerCounters{BlocksOut: 1, BytesOut: int64(len(data))})
	return data, nil
}

// read gives the block, from the store that verifies it as it reads.
func (st *stream) read(ctx context.Context, q *queued, index int, buf []byte) ([]byte, error) {
	if q.refused {
		return nil, content.ErrNotFound
	}
	c := q.digests[index].CID()
	if r, ok := st.s.store.(content.Reader); ok {
		return r.ReadBlock(ctx, c, buf)
	}
	b, err := st.s.store.Get(ctx, c)
	if err != nil {
		return nil, err
	}
	if len(b.RawData()) > content.MaxBlock {
		return nil, fmt.Errorf("block %s of %d bytes: %w", c, len(b.RawData()), content.ErrLimit)
	}
	return b.RawData(), nil
}

// refuse tells the peer why its stream ends. The idle timer bounds the write.
func (st *stream) refuse(err error) {
	if _, werr := st.rw.Write(appendRefuse(nil, err.Error())); werr != nil {
		st.s.o.Log.Debug("refuse a block stream", "peer", st.peer, "err", werr)
	}
}

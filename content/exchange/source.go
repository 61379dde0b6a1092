package exchange

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/beammesh/beammesh/content"
)

type sourceState int

// waiting ──launch──► active ──end──► ended, and from active over pausing back to
// waiting when the stream ends while the tree stands back.
const (
	waiting sourceState = iota
	active
	pausing // its goroutines end
	ended
)

// errEnded ends the asking goroutine; the reason stands elsewhere.
var errEnded = errors.New("source has ended")

// ask is a want that was sent and is not answered in full.
type ask struct {
	id     uint32
	pieces []*piece // nil where answered
	left   int
}

// source is one peer's part in a fetch: a stream on which several wants are on
// their way. One goroutine reads, one asks, two verify and store.
type source struct {
	s    *swarm
	peer string

	// Under swarm.mu.
	state     sourceState
	stats     SourceStats
	asks      []*ask // oldest first
	owed      int    // pieces asked for and not answered
	owedBytes int64
	nextID    uint32
	stop      func() // ends the stream; nil before it is open

	writing sync.Mutex // wants and credit share the stream
	rw      io.ReadWriteCloser

	lastBytes atomic.Int64 // time of the last byte, Unix nanoseconds
	handing   atomic.Bool  // the reader waits for our own disk, not for the peer
	sending   atomic.Int64 // when the write that is going on began; 0 = none
}

func newSource(s *swarm, peer string) *source { return &source{s: s, peer: peer} }

// endLocked gives the source up; reason "" is for the end of the fetch. What it
// owed goes back when its goroutines have ended.
func (x *source) endLocked(reason string) {
	if x.state == ended || x.state == pausing && !x.s.closed {
		return
	}
	if x.state == active && len(x.asks) == 0 && !x.s.closed && x.s.standsBackLocked() {
		// We kept it waiting, and a holder may end a stream on which nothing is
		// asked. It is opened again when this tree has its turn.
		x.state = pausing
		if x.stop != nil {
			x.stop()
		}
		x.s.changed.Broadcast()
		return
	}
	if x.stats.Dropped == "" {
		x.stats.Dropped = reason
	}
	if x.state == waiting {
		return
	}
	x.state = ended
	if x.stop != nil {
		x.stop()
	}
	x.s.changed.Broadcast()
}

func (x *source) end(reason string) {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	x.endLocked(reason)
}

// run lives from the opening of the stream to its end, and gives back what was
// owed.
func (x *source) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	x.s.mu.Lock()
	x.stop = cancel
	if x.state != active {
		cancel()
	}
	x.s.mu.Unlock()

	reason := x.serve(ctx)

	s := x.s
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := s.left > 0 && !s.closed && s.err == nil && s.ctx.Err() == nil
	if !wanted {
		reason = ""
	}
	x.endLocked(reason)
	if x.state == pausing && wanted {
		x.state, x.stop = waiting, nil
		s.running--
		s.launchLocked()
		s.changed.Broadcast()
		return
	}
	x.state = ended
	lost := int64(0)
	for _, a := range x.asks {
		for _, p := range a.pieces {
			if p != nil {
				s.backLocked(p)
				lost++
			}
		}
	}
	x.asks, x.owed, x.owedBytes = nil, 0, 0
	s.running--
	if wanted {
		s.f.count.add(x.peer, PeerCounters{Drops: 1, Retries: lost})
		s.f.o.Log.Info("gave up a source of blocks", "peer", x.peer, "reason", x.stats.Dropped)
	}
	s.launchLocked()
	s.changed.Broadcast()
}

// serve opens the stream and works on it until it ends; it returns why.
func (x *source) serve(ctx context.Context) string {
	rw, err := x.open(ctx)
	if err != nil {
		return err.Error()
	}
	var once sync.Once
	closeStream := func() { once.Do(func() { rw.Close() }) }
	defer closeStream()
	defer context.AfterFunc(ctx, closeStream)()
	x.rw = rw

	x.touch()
	stall := x.watch()
	defer stall.Stop()

	arrivals := make(chan arrival, 4)
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() { x.storeAll(arrivals) })
	}
	var asker sync.WaitGroup
	asker.Go(func() {
		if err := x.askAll(ctx); err != nil && !errors.Is(err, errEnded) {
			x.end(fmt.Sprintf("send: %v", err))
		}
	})
	err = x.readAll(arrivals)
	close(arrivals)
	workers.Wait()
	x.end(err.Error())
	closeStream()
	asker.Wait()
	return err.Error()
}

func (x *source) open(ctx context.Context) (io.ReadWriteCloser, error) {
	octx, cancel := context.WithTimeout(ctx, x.s.f.o.OpenTimeout)
	defer cancel()
	rw, err := x.s.f.open.OpenBlocks(octx, x.peer)
	if err != nil {
		return nil, fmt.Errorf("open a stream: %w", err)
	}
	return rw, nil
}

func (x *source) touch() { x.lastBytes.Store(time.Now().UnixNano()) }

// watch ends the source when it owes blocks and sends nothing, or takes
// nothing, for too long.
func (x *source) watch() *time.Timer {
	limit := x.s.f.o.StallTimeout
	var t *time.Timer
	ready := make(chan struct{})
	t = time.AfterFunc(limit, func() {
		<-ready
		x.s.mu.Lock()
		defer x.s.mu.Unlock()
		quiet := time.Since(time.Unix(0, x.lastBytes.Load()))
		sending := x.sending.Load()
		switch {
		case x.state != active:
		case sending != 0 && time.Since(time.Unix(0, sending)) >= limit:
			x.endLocked(fmt.Sprintf("took nothing for %s", limit))
		case x.owed == 0 || x.handing.Load():
			t.Reset(limit)
		case quiet < limit:
			t.Reset(limit - quiet)
		default:
			x.endLocked(fmt.Sprintf("sent nothing for %s", limit))
		}
	})
	close(ready)
	return t
}

// askAll sends wants as there is work and room.
func (x *source) askAll(ctx context.Context) error {
	if err := x.write(appendNumber(nil, frameOpen, uint32(x.s.f.o.WindowBytes))); err != nil {
		return err
	}
	var buf []byte
	for {
		w, err := x.nextWant(ctx)
		if err != nil {
			return err
		}
		buf = appendWant(buf[:0], w)
		if err := x.write(buf); err != nil {
			return err
		}
	}
}

// nextWant waits for pieces to ask for.
func (x *source) nextWant(ctx context.Context) (want, error) {
	s := x.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if x.state != active || s.closed || s.err != nil || ctx.Err() != nil {
			return want{}, errEnded
		}
		if list := s.takeLocked(x); len(list) > 0 {
			if x.owed == 0 {
				x.touch() // quiet until now was no fault of the peer
			}
			x.nextID++
			a := &ask{id: x.nextID, pieces: list, left: len(list)}
			x.asks = append(x.asks, a)
			w := want{id: a.id, priority: s.f.o.Priority, root: s.root}
			for _, p := range list {
				w.digests = append(w.digests, p.digest)
				x.owed++
				x.owedBytes += p.size
			}
			return w, nil
		}
		s.changed.Wait()
	}
}

func (x *source) write(b []byte) error {
	x.writing.Lock()
	defer x.writing.Unlock()
	x.sending.Store(time.Now().UnixNano())
	defer x.sending.Store(0)
	_, err := x.rw.Write(b)
	return err
}

// lastFirstLocked goes through what is owed, the last asked for first.
func (x *source) lastFirstLocked() iter.Seq[*piece] {
	return func(yield func(*piece) bool) {
		for _, a := range slices.Backward(x.asks) {
			for _, p := range slices.Backward(a.pieces) {
				if p != nil && !yield(p) {
					return
				}
			}
		}
	}
}

// answered takes one piece off what is owed.
func (x *source) answered(id uint32, index int) (*piece, error) {
	s := x.s
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(x.asks, func(a *ask) bool { return a.id == id })
	if i < 0 || index >= len(x.asks[i].pieces) || x.asks[i].pieces[index] == nil {
		return nil, protocolError("answer to nothing that was asked")
	}
	a := x.asks[i]
	p := a.pieces[index]
	a.pieces[index] = nil
	if a.left--; a.left == 0 {
		x.asks = slices.Delete(x.asks, i, i+1)
	}
	x.owed--
	x.owedBytes -= p.size
	return p, nil
}

// arrival is a received block on its way to the store.
type arrival struct {
	p    *piece
	data []byte
	buf  *[]byte
}

var buffers = sync.Pool{New: func() any {
	b := make([]byte, 0, blockHead+content.ChunkSize)
	return &b
}}

// alive is the stream's reading side; every byte counts as a sign of life.
type alive struct{ x *source }

func (r alive) Read(p []byte) (int, error) {
	n, err := r.x.rw.Read(p)
	if n > 0 {
		r.x.touch()
	}
	return n, err
}

// readAll takes frames until the stream ends; the error says why, never nil.
func (x *source) readAll(arrivals chan<- arrival) error {
	r := bufio.NewReaderSize(alive{x}, 64<<10)
	for {
		kind, n, err := readHeader(r)
		if errors.Is(err, io.EOF) {
			return errors.New("closed the stream")
		}
		if err != nil {
			return err
		}
		buf := buffers.Get().(*[]byte)
		body, err := readBody(r, n, *buf)
		if err != nil {
			return err
		}
		*buf = body
		switch kind {
		case frameRefuse:
			return fmt.Errorf("refused: %.200q", body)
		case frameBlock, frameLack:
		default:
			return protocolError("frame type %d was not expected", kind)
		}
		id, index, data := decodeAnswer(body)
		p, err := x.answered(id, index)
		if err != nil {
			return err
		}
		if kind == frameLack {
			buffers.Put(buf)
			x.s.lacked(x, p)
			continue
		}
		x.handing.Store(true)
		arrivals <- arrival{p, data, buf}
		x.handing.Store(false)
		x.touch()
	}
}

// storeAll verifies and stores what arrives, and gives credit for it.
func (x *source) storeAll(arrivals <-chan arrival) {
	for a := range arrivals {
		x.s.arrived(x, a.p, a.data)
		n := len(a.data)
		if cap(*a.buf) <= 2*content.ChunkSize { // an odd large one is not kept
			buffers.Put(a.buf)
		}
		if err := x.write(appendNumber(make([]byte, 0, headerLen+4), frameCredit, uint32(n))); err != nil {
			x.end(fmt.Sprintf("send: %v", err))
		}
	}
}

package exchange

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	blockfmt "github.com/ipfs/go-block-format"

	"github.com/beammesh/beammesh/content"
)

// piece is a block to be fetched. All but digest and size is under swarm.mu.
type piece struct {
	digest content.Digest
	size   int64 // expected; for the windows only

	asked   int       // sources that it is on its way from
	lackers []*source // do not have it
	corrupt []*source // sent something else
	done    bool
}

func (p *piece) shunned(s *source) bool {
	return slices.Contains(p.lackers, s) || slices.Contains(p.corrupt, s)
}

// swarm shares out pieces among the sources of one fetch. A source takes work
// when it has room, so the faster takes more; what a dropped source owed goes
// back; at the end idle sources also ask for what others are slow with.
//
//	fresh ──take──► asked of a source ──block──► done
//	  ▲                 │ lack, corrupt, source dropped
//	  └──── retry ◄─────┘
type swarm struct {
	f    *Fetcher
	root content.Digest

	wg      sync.WaitGroup // of the sources
	ctx     context.Context
	changed *sync.Cond // on mu: work, room or an end

	mu       sync.Mutex
	fresh    []*piece // asked of nobody yet
	retry    []*piece // came back; may be shunned by some
	left     int      // pieces that are not done
	sources  []*source
	running  int
	started  bool
	closed   bool
	urgent   bool  // somebody waits for it: it does not stand back
	err      error // ends everything
	received int64
	blocks   int64
	stored   int64 // bytes of chunks, for progress
	present  int64
	progress func(stored int64)
}

func newSwarm(f *Fetcher, root content.Digest) *swarm {
	s := &swarm{f: f, root: root}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// start lets the sources run; each ends with ctx or with close.
func (s *swarm) start(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ctx, s.started = ctx, true
}

// close ends all sources and waits for them.
func (s *swarm) close() {
	s.mu.Lock()
	s.closed = true
	for _, src := range s.sources {
		src.endLocked("")
	}
	s.changed.Broadcast()
	s.mu.Unlock()
	s.wg.Wait()
}

// addSources adds peers that are not known yet.
func (s *swarm) addSources(peers []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, peer := range peers {
		if s.closed || len(s.sources) >= maxSources || s.findLocked(peer) != nil {
			continue
		}
		s.sources = append(s.sources, newSource(s, peer))
	}
	s.launchLocked()
}

// knows is true when all peers take or took part.
func (s *swarm) knows(peers []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, peer := range peers {
		if s.findLocked(peer) == nil && len(s.sources) < maxSources {
			return false
		}
	}
	return true
}

func (s *swarm) findLocked(peer string) *source {
	i := slices.IndexFunc(s.sources, func(x *source) bool { return x.peer == peer })
	if i < 0 {
		return nil
	}
	return s.sources[i]
}

// launchLocked starts sources while there is work and room for streams.
func (s *swarm) launchLocked() {
	if !s.started || s.closed || s.err != nil || s.left == 0 || s.standsBackLocked() {
		return
	}
	for _, src := range s.sources {
		if s.running >= s.f.o.SourcesPerFetch {
			return
		}
		if src.state != waiting {
			continue
		}
		src.state = active
		s.running++
		s.wg.Go(func() { src.run(s.ctx) })
	}
}

// push adds pieces. It waits until the ones before are all asked for, so that
// the list stays short.
func (s *swarm) push(ctx context.Context, list []*piece) error {
	return s.await(ctx, func() bool { return len(s.fresh) == 0 }, func() {
		s.fresh = list
		s.left += len(list)
		s.launchLocked()
		s.changed.Broadcast()
	})
}

// wait waits until all pieces are stored.
func (s *swarm) wait(ctx context.Context) error {
	return s.await(ctx, func() bool { return s.left == 0 }, func() {})
}

// await waits for ready and then calls then with the lock held.
func (s *swarm) await(ctx context.Context, ready func() bool, then func()) error {
	defer context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.changed.Broadcast()
	})()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		s.checkLocked()
		switch {
		case s.err != nil:
			return s.err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case ready():
			then()
			return nil
		}
		s.changed.Wait()
	}
}

// hurry makes it stand back for nobody any more.
func (s *swarm) hurry() {
	s.mu.Lock()
	s.urgent = true
	s.mu.Unlock()
	s.nudge()
}

// standsBackLocked is true while somebody waits for other trees and nobody for
// this one.
func (s *swarm) standsBackLocked() bool { return !s.urgent && s.f.urgent.Load() > 0 }

// nudge has the sources look for work again.
func (s *swarm) nudge() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.launchLocked()
	s.changed.Broadcast()
}

// setProgress sets what is told of each stored chunk from now on.
func (s *swarm) setProgress(fn func(stored int64), present int64) {
	s.mu.Lock()
	s.progress, s.present, s.stored = fn, present, 0
	s.mu.Unlock()
	fn(0)
}

// fail ends the fetch with err.
func (s *swarm) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.changed.Broadcast()
}

// noSource says why nobody can give what is missing.
type noSource struct {
	left    int
	lacked  bool // some source is there and does not have it
	reasons []string
}

func (e *noSource) Error() string {
	why := "no source was given"
	if len(e.reasons) > 0 {
		why = strings.Join(e.reasons, "; ")
	}
	return fmt.Sprintf("%d blocks are missing and no source can give them: %s", e.left, why)
}

func (e *noSource) Is(target error) bool { return target == content.ErrNotFound }

// checkLocked fails the swarm when there is work that no source can do.
func (s *swarm) checkLocked() {
	if !s.started || s.err != nil || s.left == 0 {
		return
	}
	usable := func(src *source) bool { return src.state != ended }
	if slices.ContainsFunc(s.sources, usable) && (len(s.fresh) > 0 || len(s.retry) == 0) {
		return
	}
	for _, p := range s.retry {
		can := func(state sourceState) bool {
			return slices.ContainsFunc(s.sources, func(x *source) bool { return x.state == state && !p.shunned(x) })
		}
		switch {
		case can(active):
			return
		case can(waiting):
			s.makeRoomLocked(p)
			return
		}
	}
	// All that is left came back from everybody. A source that sent a bad
	// block may send a good one: it has not used up its chances.
	again := false
	for _, p := range s.retry {
		if slices.ContainsFunc(p.corrupt, usable) {
			p.corrupt, again = nil, true
		}
	}
	if again {
		s.changed.Broadcast()
		return
	}
	if s.askedLocked() {
		return // what is on its way may still come
	}
	e := &noSource{left: s.left}
	for _, src := range s.sources {
		reason := src.stats.Dropped
		if reason == "" {
			reason = fmt.Sprintf("does not have %d of them", src.stats.Lacked)
		}
		e.reasons = append(e.reasons, src.peer+": "+reason)
	}
	s.err = e
	s.changed.Broadcast()
}

// makeRoomLocked ends a source that is idle and has no use for p, when it holds
// the place of one that may have it.
func (s *swarm) makeRoomLocked(p *piece) {
	if s.running < s.f.o.SourcesPerFetch {
		return
	}
	for _, x := range s.sources {
		if x.state == active && x.owed == 0 && p.shunned(x) {
			x.endLocked("does not have what is missing")
			return
		}
	}
}

func (s *swarm) askedLocked() bool {
	return slices.ContainsFunc(s.sources, func(x *source) bool { return x.state == active && x.owed > 0 })
}

// Shares of work.
const (
	takePieces = 64      // in one want
	takeBytes  = 2 << 20 // in one want
	stealMost  = 8       // pieces asked for twice at a time
)

// takeLocked gives pieces for src to ask for, nil when there are none now.
func (s *swarm) takeLocked(src *source) []*piece {
	room := s.f.o.WindowBytes - src.owedBytes
	pieces := min(takePieces, maxQueued-src.owed)
	// Small wants make many frames: wait for some room, unless idle.
	if pieces <= 0 || s.standsBackLocked() || (src.owed > 0 && room < min(takeBytes, s.f.o.WindowBytes/2)) {
		return nil
	}
	room = min(room, takeBytes)
	var list []*piece
	add := func(p *piece) bool {
		if len(list) == pieces || (len(list) > 0 && room < p.size) {
			return false
		}
		room -= p.size
		p.asked++
		list = append(list, p)
		return true
	}
	for len(s.fresh) > 0 && add(s.fresh[0]) {
		s.fresh = s.fresh[1:]
	}
	if len(s.retry) > 0 {
		s.retry = slices.DeleteFunc(s.retry, func(p *piece) bool {
			return p.done || (!p.shunned(src) && add(p))
		})
	}
	if len(list) == 0 && src.owed == 0 {
		s.stealLocked(src, add)
	}
	if len(s.fresh) == 0 && len(list) > 0 {
		s.changed.Broadcast() // push may go on
	}
	return list
}

// stealLocked asks an idle source for some of what the slowest other source
// was asked for last and has not sent.
func (s *swarm) stealLocked(src *source, add func(*piece) bool) {
	var slow *source
	for _, x := range s.sources {
		if x != src && x.state == active && (slow == nil || x.owed > slow.owed) {
			slow = x
		}
	}
	if slow == nil {
		return
	}
	n := 0
	for p := range slow.lastFirstLocked() {
		if p.asked == 1 && !p.done && !p.shunned(src) {
			if n == stealMost || !add(p) {
				return
			}
			n++
		}
	}
}

// backLocked takes a piece back that src will not give.
func (s *swarm) backLocked(p *piece) {
	p.asked--
	if !p.done && p.asked == 0 {
		s.retry = append(s.retry, p)
	}
}

// arrived takes a block: it is verified, stored and counted. It tells whether
// src may go on.
func (s *swarm) arrived(src *source, p *piece, data []byte) {
	s.mu.Lock()
	done := p.done // somebody else was faster
	s.mu.Unlock()
	n := int64(len(data))
	if done {
		s.mu.Lock()
		p.asked--
		s.changed.Broadcast()
		s.mu.Unlock()
		s.f.count.add(src.peer, PeerCounters{BytesIn: n, BlocksIn: 1})
		return
	}
	if content.DigestOf(data) != p.digest {
		s.bad(src, p)
		return
	}
	if err := s.f.put(s.ctx, p.digest, data); err != nil {
		s.fail(err)
		return
	}
	s.f.count.add(src.peer, PeerCounters{BytesIn: n, BlocksIn: 1})
	s.mu.Lock()
	defer s.mu.Unlock()
	p.asked--
	s.changed.Broadcast()
	if p.done {
		return
	}
	p.done = true
	s.left--
	s.blocks++
	s.received += n
	src.stats.Blocks++
	src.stats.Bytes += n
	if s.progress != nil {
		s.stored += n
		s.progress(s.stored) // under mu, so that it only grows
	}
}

// bad counts a block that is not what was asked for.
func (s *swarm) bad(src *source, p *piece) {
	s.f.count.add(src.peer, PeerCounters{Corrupt: 1, Retries: 1})
	s.f.o.Log.Warn("block does not match its hash", "peer", src.peer, "digest", p.digest.CID().String())
	s.mu.Lock()
	defer s.mu.Unlock()
	p.corrupt = append(p.corrupt, src)
	s.backLocked(p)
	if src.stats.Corrupt++; src.stats.Corrupt >= int64(s.f.o.MaxCorrupt) {
		src.endLocked(fmt.Sprintf("sent %d blocks that do not match their hash", src.stats.Corrupt))
	}
	s.changed.Broadcast()
}

// lacked notes that src does not have p.
func (s *swarm) lacked(src *source, p *piece) {
	s.f.count.add(src.peer, PeerCounters{Lacked: 1, Retries: 1})
	s.mu.Lock()
	defer s.mu.Unlock()
	src.stats.Lacked++
	p.lackers = append(p.lackers, src)
	s.backLocked(p)
	s.changed.Broadcast()
}

func (s *swarm) result() Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := Result{Bytes: s.received, Blocks: s.blocks, Present: s.present, Sources: map[string]SourceStats{}}
	for _, src := range s.sources {
		if src.state != waiting {
			r.Sources[src.peer] = src.stats
		}
	}
	return r
}

// put stores a verified block.
func (f *Fetcher) put(ctx context.Context, d content.Digest, data []byte) error {
	b, err := blockfmt.NewBlockWithCid(data, d.CID())
	if err != nil {
		return err
	}
	if err := f.store.Put(ctx, b); err != nil {
		return fmt.Errorf("store a block: %w", err)
	}
	return nil
}

package mesh

import (
	"cmp"
	"slices"
	"time"

	"github.com/beammesh/beammesh/scheduler"
	"github.com/beammesh/beammesh/scheduler/market"
	"github.com/beammesh/beammesh/simulations/engine"
)

// event is something that happens to an actor. Events of one actor are handled
// in the order of time, then sender, then the sender's count of what it sent:
// an order that does not depend on how the actors are spread over cores.
type event struct {
	at   int64 // nanoseconds
	from int32
	to   int32
	seq  uint32 // of from
	life uint16 // of to when it was made, where that matters
	kind kind
	msg  any // a pointer
}

type kind uint8

const (
	toOwner  kind = iota // msg is a market.OwnerEvent
	toWorker             // msg is a market.WorkerEvent
	bounced              // msg is a *market.SendFailed
	wakeUp
	arrive // the next task of an owner
	ready  // msg is a *container
	exited // msg is a *container
	gossip
	probe // an owner asks for an advert; from is who
	kill
	restart
	takeOver // an owner has a new host
	resume   // and knows the nodes again
	looked   // a lookup is over; msg is a *market.DiscoveryDone
	giveUp   // of a task that waits; msg is its number
)

// outside is who sends what no actor sends.
const outside = -1

// part is a share of the actors, with all that its goroutine touches.
type part struct {
	w     *World
	index int
	wheel wheel
	out   [][]event // for other parts, by part
	now   int64
	cur   int32 // the actor whose turn it is
	done  uint64
	// event is what is being handled, for the report of a panic.
	event event
	err   error
	errAt event

	packing scheduler.Packing
	stats   Stats

	asks         []*market.Ask
	askReplies   []*market.AskReply
	awards       []*market.Award
	awardReplies []*market.AwardReply
	releases     []*market.Release
	releasedAcks []*market.ReleaseReply
	renews       []*market.Renew
	renewAcks    []*market.RenewAck
	ends         []*market.Ended
	endedAcks    []*market.EndedAck
	pulls        []*market.Pull
}

// run handles the events of one tick.
func (p *part) run(tick int64) {
	events := p.wheel.advance(tick)
	slices.SortFunc(events, func(a, b event) int {
		if c := cmp.Compare(a.at, b.at); c != 0 {
			return c
		}
		if c := cmp.Compare(a.to, b.to); c != 0 {
			return c
		}
		if c := cmp.Compare(a.from, b.from); c != 0 {
			return c
		}
		return cmp.Compare(a.seq, b.seq)
	})
	p.err = engine.Guard(p.w.cfg.Seed, func() (uint64, time.Duration) {
		p.errAt = p.event
		return p.w.events + 1, time.Duration(p.now)
	}, func() error {
		for i := range events {
			p.event = events[i]
			p.now, p.cur = p.event.at, p.event.to
			p.handle(&p.event)
		}
		return nil
	})
	p.done += uint64(len(events))
	p.wheel.recycle(events)
}

// before orders two broken events of different parts.
func before(a, b *event) bool {
	if a.at != b.at {
		return a.at < b.at
	}
	if a.to != b.to {
		return a.to < b.to
	}
	return a.from < b.from || a.from == b.from && a.seq < b.seq
}

func (p *part) handle(e *event) {
	if int(e.to) < len(p.w.nodes) {
		p.handleNode(&p.w.nodes[e.to], e)
	} else {
		p.handleOwner(&p.w.owners[int(e.to)-len(p.w.nodes)], e)
	}
}

// post puts an event of the current actor on its way.
func (p *part) post(to int32, at int64, k kind, life uint16, msg any) {
	w := p.w
	w.seqs[p.cur]++
	e := event{at: at, from: p.cur, to: to, seq: w.seqs[p.cur], life: life, kind: k, msg: msg}
	if target := w.partOf(to); target != p {
		p.out[target.index] = append(p.out[target.index], e)
		return
	}
	p.wheel.push(&e)
}

// timer posts an event of an actor to itself, in the next tick at the earliest.
func (p *part) timer(at int64, k kind, life uint16, msg any) {
	p.post(p.cur, p.afterTick(at), k, life, msg)
}

func (p *part) afterTick(at int64) int64 { return max(at, (p.wheel.at+1)*p.wheel.tick) }

// send puts a message on the wire.
func (p *part) send(to int32, k kind, kindOf Message, msg any) {
	p.stats.Messages[kindOf]++
	if p.w.lost(p.cur, to, p.w.seqs[p.cur]) {
		p.w.seqs[p.cur]++
		return
	}
	p.post(to, p.now+p.w.delay(p.cur, to, p.w.seqs[p.cur]), k, 0, msg)
}

// exchange takes over what the other parts have sent to p.
func (p *part) exchange() {
	self := p.index
	for i := range p.w.parts {
		from := &p.w.parts[i]
		in := from.out[self]
		for j := range in {
			p.wheel.push(&in[j])
		}
		clear(in)
		from.out[self] = in[:0]
	}
}

// take gives a message from a pool, or a new one.
func take[T any](pool *[]*T) *T {
	if last := len(*pool) - 1; last >= 0 {
		m := (*pool)[last]
		*pool = (*pool)[:last]
		return m
	}
	return new(T)
}

// maxPool bounds what a pool keeps.
const maxPool = 1 << 14

// give puts a message back that was handled.
func give[T any](pool *[]*T, m *T) {
	if len(*pool) < maxPool {
		*pool = append(*pool, m)
	}
}

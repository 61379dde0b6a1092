package queue

import (
	"slices"
	"time"
)

// ours binds late and keeps no queues at workers. A free slot is known to
// exactly one owner at a time: the one whose task ended there, since the result
// says so, until it gives the slot a task or lends it to another owner. A task
// stays at its owner until the owner has a slot for it, so it is never stuck
// behind another task.
//
// An owner that has more tasks than slots asks other owners, in batches: first
// those that said last that they have some (every message between owners says
// how many slots the sender has), then those of whom it wants nothing yet. What
// an owner cannot lend at once becomes a standing order there, which is filled
// when slots fall free that it does not need, or sooner when the work behind the
// order is older than its own by more than patience. An order is cancelled when
// the work behind it is gone, and its giver is told when no slots will come.
//
// No task is forgotten: as long as an owner has a backlog, either slots on their
// way to it and orders at owners that have tasks running are enough for all of
// it, or it has an ask or order at every other owner.
//
// No message is about all workers, so the cost per task does not depend on their
// number. It grows when owners have fewer slots than their jobs have tasks, up to
// a few messages to each other owner per job.
//
// That workers which fall idle report to one of several dispatchers is
// Join-Idle-Queue (Lu et al., Performance 2011); here it costs no message, and
// lending makes up for the dispatchers' unequal luck.
type ours struct {
	w       *World
	owners  []lender
	parcels []parcel
	spare   []int32 // parcels that may be used again

	ask, lend, cancel Kind
}

// fanout is how many owners are asked at once.
const fanout = 16

// patience is how much longer than its own work an owner lets that of others
// wait before it lends them a slot that it could use. To lend costs the slot a
// message more on its way to a task; never to lend would let an owner without
// slots starve while the others have enough to do.
const patience = 100 * time.Millisecond

// lender is one owner.
type lender struct {
	self    Peer
	slots   []int32 // workers, one entry for each free slot that is this owner's
	backlog fifo    // tasks, the oldest first
	running int     // tasks of this owner that are at workers
	orders  []order // of other owners, when slots is empty; the oldest work first

	// Of the other owners, by index:
	seen    []int32 // slots that it last said it had, less what was asked for
	asked   []int32 // slots asked for and not answered
	ordered []int32 // slots that it will lend when it has some
	hopeful []bool  // it had tasks at workers, so that slots will come
	looking bool    // something is asked or ordered
	next    int     // where to go on looking for somebody to ask
}

// order is a wish of another owner that waits.
type order struct {
	from  int
	slots int32
	since time.Duration // arrival of the oldest work behind it
}

// parcel is what a message between owners carries.
type parcel struct {
	slots   []int32
	wanted  int32         // ask: how many. lend: how many of an ask this answers
	ordered int32         // lend: how many of them will follow later
	left    int32         // how many slots the sender still has
	hopeful bool          // lend: tasks of the sender run, so that slots will come
	since   time.Duration // ask: as in order
}

func newOurs(w *World) Policy {
	p := &ours{w: w, owners: make([]lender, w.Owners), ask: w.Kind("ask"), lend: w.Kind("lend"), cancel: w.Kind("cancel")}
	for i := range p.owners {
		n := w.Owners
		p.owners[i] = lender{
			self: Owner(i), next: i,
			seen: make([]int32, n), asked: make([]int32, n), ordered: make([]int32, n), hopeful: make([]bool, n),
		}
	}
	// A worker that joins says hello to one owner; all have about as many.
	for i := range w.Workers * w.Slots {
		o := &p.owners[i%w.Owners]
		o.slots = append(o.slots, int32(i%w.Workers))
	}
	for i := range p.owners {
		for j := range p.owners {
			p.owners[i].seen[j] = int32(len(p.owners[j].slots))
		}
	}
	return p
}

func (p *ours) Submit(job Job) {
	o := &p.owners[job.Owner.OwnerIndex()]
	for t := range job.Tasks {
		o.backlog.push(job.First + t)
	}
	p.serve(o)
}

func (p *ours) Receive(m Message) {
	if m.Kind == Task {
		p.w.Start(int32(m.To), m.Arg)
		return
	}
	o, from := &p.owners[m.To.OwnerIndex()], m.From.OwnerIndex()
	switch m.Kind {
	case p.ask:
		p.answer(o, from, p.open(m.Arg))
	case p.lend:
		p.lent(o, from, p.open(m.Arg))
	case p.cancel:
		o.seen[from] = p.open(m.Arg).left
		o.drop(from)
	}
}

func (p *ours) Ended(_, _ int32) {}

func (p *ours) Result(worker, task int32) {
	o := &p.owners[p.w.OwnerOf(task).OwnerIndex()]
	o.running--
	if !p.w.Down(worker) {
		o.slots = append(o.slots, worker)
	}
	if o.backlog.len() > 0 && (len(o.orders) == 0 || o.orders[0].since+patience >= p.w.Since(o.backlog.peek())) {
		p.serve(o)
	}
	p.fillOrders(o)
	p.tell(o)
}

// tell lets those who wait for slots of an owner look elsewhere, when none will
// fall free there.
func (p *ours) tell(o *lender) {
	if o.running > 0 {
		return
	}
	for _, w := range o.orders {
		p.send(p.lend, o, w.from, parcel{})
	}
}

// fillOrders lends what is left to those who wait for it.
func (p *ours) fillOrders(o *lender) {
	for len(o.orders) > 0 {
		worker, ok := p.takeSlot(o)
		if !ok {
			return
		}
		w := &o.orders[0]
		to := w.from
		w.slots--
		if w.slots == 0 {
			o.orders = o.orders[1:]
		}
		p.send(p.lend, o, to, parcel{slots: []int32{worker}})
	}
}

// serve gives the backlog the slots there are, and asks for more.
func (p *ours) serve(o *lender) {
	for o.backlog.len() > 0 {
		worker, ok := p.takeSlot(o)
		if !ok {
			p.askOthers(o)
			return
		}
		o.running++
		p.w.SendTask(Task, o.self, o.backlog.pop(), worker)
	}
	if o.looking {
		p.stopLooking(o)
	}
}

func (p *ours) takeSlot(o *lender) (worker int32, ok bool) {
	for n := len(o.slots); n > 0; n = len(o.slots) {
		worker = o.slots[n-1]
		o.slots = o.slots[:n-1]
		if !p.w.Down(worker) {
			return worker, true
		}
	}
	return 0, false
}

// askOthers sees to it that as many slots are asked for as tasks wait.
func (p *ours) askOthers(o *lender) {
	need := int32(o.backlog.len())
	for _, n := range o.asked {
		need -= n
	}
	// Those that have some: the richest first. What was ordered elsewhere counts
	// only when nobody is known to have a slot now.
	for range fanout {
		j := o.richest()
		if need <= 0 || o.seen[j] <= 0 {
			break
		}
		n := min(need, o.seen[j])
		o.seen[j] -= n
		need -= n
		p.askOne(o, j, n)
	}
	for j, n := range o.ordered {
		if o.hopeful[j] {
			need -= n
		}
	}
	if need <= 0 {
		return
	}
	// Nobody is known to have more: those of whom we want nothing yet, else those
	// that will have some. Twice as many as tasks are enough to try.
	who := o.others(min(fanout, 2*int(need)), func(j int) bool { return o.asked[j] == 0 && o.ordered[j] == 0 })
	if len(who) == 0 {
		who = o.others(fanout, func(j int) bool { return o.asked[j] == 0 && o.hopeful[j] })
	}
	for _, j := range who {
		p.askOne(o, j, (need+int32(len(who))-1)/int32(len(who)))
	}
}

func (p *ours) askOne(o *lender, j int, n int32) {
	o.asked[j] += n
	o.looking = true
	p.send(p.ask, o, j, parcel{wanted: n, since: p.w.Since(o.backlog.peek())})
}

// richest is the owner that has the most slots, as far as o knows.
func (o *lender) richest() int {
	best := o.self.OwnerIndex()
	o.seen[best] = 0 // of itself it wants nothing
	for j, n := range o.seen {
		if n > o.seen[best] {
			best = j
		}
	}
	return best
}

// others are at most n other owners that are ok, in turns.
func (o *lender) others(n int, ok func(j int) bool) []int {
	var who []int
	for range o.seen {
		o.next = (o.next + 1) % len(o.seen)
		if len(who) == n {
			break
		}
		if o.next != o.self.OwnerIndex() && ok(o.next) {
			who = append(who, o.next)
		}
	}
	return who
}

// stopLooking cancels the orders of an owner that has nothing left to place, so
// that the slots go to others.
func (p *ours) stopLooking(o *lender) {
	o.looking = false
	for j := range o.ordered {
		switch {
		case o.asked[j] > 0: // the answer may make it an order: cancelled then
			o.looking = true
		case o.ordered[j] > 0:
			o.ordered[j] = 0
			p.send(p.cancel, o, j, parcel{})
		}
	}
}

// answer lends another owner what it asked for, as far as there is some.
func (p *ours) answer(o *lender, from int, ask parcel) {
	lend := parcel{wanted: ask.wanted}
	for int32(len(lend.slots)) < ask.wanted {
		worker, ok := p.takeSlot(o)
		if !ok {
			break
		}
		lend.slots = append(lend.slots, worker)
	}
	lend.ordered = ask.wanted - int32(len(lend.slots))
	if lend.ordered > 0 {
		i, _ := slices.BinarySearchFunc(o.orders, ask.since, func(w order, since time.Duration) int {
			if w.since <= since {
				return -1
			}
			return 1
		})
		o.orders = slices.Insert(o.orders, i, order{from: from, slots: lend.ordered, since: ask.since})
	}
	o.seen[from] = ask.left
	p.send(p.lend, o, from, lend)
}

// lent is an answer, or a slot that came for an order.
func (p *ours) lent(o *lender, from int, lend parcel) {
	o.seen[from] = lend.left
	o.hopeful[from] = lend.hopeful
	if lend.wanted > 0 {
		o.asked[from] -= lend.wanted
		o.ordered[from] += lend.ordered
	} else {
		o.ordered[from] = max(0, o.ordered[from]-int32(len(lend.slots)))
	}
	o.slots = append(o.slots, lend.slots...)
	p.serve(o)
	p.fillOrders(o)
}

// drop forgets the orders of an owner.
func (o *lender) drop(from int) {
	o.orders = slices.DeleteFunc(o.orders, func(w order) bool { return w.from == from })
}

func (p *ours) Down(_ int32, lost []int32) {
	for _, task := range lost {
		o := &p.owners[p.w.OwnerOf(task).OwnerIndex()]
		o.running--
		o.backlog.pushFirst(task)
		p.serve(o)
		p.tell(o)
	}
}

func (p *ours) send(kind Kind, o *lender, to int, x parcel) {
	x.left = int32(len(o.slots))
	x.hopeful = o.running > 0
	i := int32(len(p.parcels))
	if n := len(p.spare); n > 0 {
		i = p.spare[n-1]
		p.spare = p.spare[:n-1]
		p.parcels[i] = x
	} else {
		p.parcels = append(p.parcels, x)
	}
	p.w.Send(kind, o.self, Owner(to), i, 0)
}

// open takes a parcel out of its message.
func (p *ours) open(i int32) parcel {
	x := p.parcels[i]
	p.parcels[i] = parcel{}
	p.spare = append(p.spare, i)
	return x
}

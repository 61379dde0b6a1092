package replay

import (
	"math/bits"
	"slices"
	"time"
)

// host is one machine. Container starts share its processors evenly: with s of
// them on p processors each runs at min(1, p/s) of full speed. Messages find the
// processors taken by starts and by each other, and meet that at every step of
// their way, so that they slow down faster than the load grows: see Crowd.
//
// Each kind of work has its virtual time, the work that something here all the
// time would have had done, so that a job ends when it reaches the value fixed at
// its begin (processor sharing: Kleinrock, Queueing Systems II, 4.4).
type host struct {
	name             string
	crowd            Crowd
	starts, messages share
	updated          time.Duration
	version          int // of the scheduled evJobs
}

// share is the work of one kind.
type share struct {
	jobs    []job // by end
	virtual time.Duration
	speed   int // in millionths
}

type job struct {
	end   time.Duration // in virtual time
	event event
}

// Crowd is how a machine slows down. With n messages and s starts on p processors
// a message runs at min(1, p/(n + s StartLoad)) to the power of Power/2.
type Crowd struct {
	// Processors of a machine.
	Processors int `json:"processors"`
	// StartLoad is as how many messages a start weighs to a message.
	StartLoad int `json:"start_load"`
	// Power is in halves: 2 is proportional.
	Power int `json:"power_halves"`
}

// full speed, in millionths.
const full = 1_000_000

// ofStarts is the speed of a start beside others.
func (c Crowd) ofStarts(starts int) int {
	return full * c.Processors / max(c.Processors, starts)
}

// ofMessages is the speed of a message.
func (c Crowd) ofMessages(messages, starts int) int {
	load := messages + starts*c.StartLoad
	part := full * c.Processors / max(c.Processors, load)
	speed := full
	for range c.Power / 2 {
		speed = speed * part / full
	}
	if c.Power%2 != 0 {
		speed = speed * root(part*full) / full
	}
	return max(1, speed)
}

// root of a whole number, rounded down (Newton's iteration from above).
func root(n int) int {
	if n < 2 {
		return n
	}
	x := 1 << ((bits.Len(uint(n)) + 1) / 2)
	for {
		y := (x + n/x) / 2
		if y >= x {
			return x
		}
		x = y
	}
}

func (w *world) host(name string) *host {
	for _, h := range w.hosts {
		if h.name == name {
			return h
		}
	}
	h := &host{name: name, crowd: w.models.Crowd}
	w.hosts = append(w.hosts, h)
	return h
}

func (h *host) share(e *event) *share {
	if e.kind == evStarted {
		return &h.starts
	}
	return &h.messages
}

// after has e happen when h has done that much work for it.
func (w *world) after(now time.Duration, h *host, work time.Duration, e event) {
	h.progress(now)
	s := h.share(&e)
	end := s.virtual + max(0, work)
	i, _ := slices.BinarySearchFunc(s.jobs, end, func(j job, end time.Duration) int {
		if j.end <= end { // behind those of the same end
			return -1
		}
		return 1
	})
	s.jobs = slices.Insert(s.jobs, i, job{end, e})
	w.nextJob(now, h)
}

// progress brings the virtual times up to now.
func (h *host) progress(now time.Duration) {
	for _, s := range []*share{&h.starts, &h.messages} {
		s.virtual += (now - h.updated) * time.Duration(s.speed) / full
	}
	h.updated = now
}

// nextJob comes after every change of the jobs.
func (w *world) nextJob(now time.Duration, h *host) {
	h.version++
	h.starts.speed = h.crowd.ofStarts(len(h.starts.jobs))
	h.messages.speed = h.crowd.ofMessages(len(h.messages.jobs), len(h.starts.jobs))
	next, some := time.Duration(0), false
	for _, s := range []*share{&h.starts, &h.messages} {
		if len(s.jobs) == 0 {
			continue
		}
		// Rounded up, so that the work is surely done then.
		left := max(0, s.jobs[0].end-s.virtual)
		if at := (left*full + time.Duration(s.speed) - 1) / time.Duration(s.speed); !some || at < next {
			next, some = at, true
		}
	}
	if some {
		w.queue.Push(now+next, event{kind: evJobs, host: h, number: h.version})
	}
}

// finished takes out the jobs that are done, in order.
func (h *host) finished(now time.Duration) []event {
	h.progress(now)
	var done []event
	for _, s := range []*share{&h.starts, &h.messages} {
		n := 0
		for n < len(s.jobs) && s.jobs[n].end <= s.virtual {
			done = append(done, s.jobs[n].event)
			n++
		}
		s.jobs = slices.Delete(s.jobs, 0, n)
	}
	return done
}

// jobsDone lets happen what the host has worked off.
func (w *world) jobsDone(now time.Duration, h *host) {
	done := h.finished(now)
	w.nextJob(now, h)
	for _, e := range done {
		w.handle(now, e)
	}
}

// cancel takes the start of c off its host.
func (w *world) cancel(now time.Duration, h *host, c *container) {
	h.progress(now)
	h.starts.jobs = slices.DeleteFunc(h.starts.jobs, func(j job) bool { return j.event.container == c })
	w.nextJob(now, h)
}

package mesh

import (
	"math/bits"
	"time"
)

// Stats is what a world counts. Those of several parts add up.
type Stats struct {
	Messages     [messageCount]int64
	Published    int64 // adverts by their nodes, however many heard them
	Placements   int64
	Pulled       int64
	Settled      int64 // tasks that need nothing any more
	Killed       int64
	LeasesKilled int64
	Lost         int64 // leases that ended without their task
	Place        Times // from arrival to the first placement
	Again        Times // from the death of a node to the next placement
	Told         Times // until it was said that no node could ever take a task
}

func newStats() Stats { return Stats{} }

func (s *Stats) add(o *Stats) {
	for i := range s.Messages {
		s.Messages[i] += o.Messages[i]
	}
	s.Published += o.Published
	s.Placements += o.Placements
	s.Pulled += o.Pulled
	s.Settled += o.Settled
	s.Killed += o.Killed
	s.LeasesKilled += o.LeasesKilled
	s.Lost += o.Lost
	s.Place.merge(&o.Place)
	s.Again.merge(&o.Again)
	s.Told.merge(&o.Told)
}

// Direct is how many messages went from one node to another: all but gossip and
// what the directory costs.
func (s *Stats) Direct() (n int64) {
	for m, c := range s.Messages {
		if Message(m) != MsgAdvert && Message(m) != MsgProbe {
			n += c
		}
	}
	return n
}

// Times is a histogram of durations with 32 steps to the doubling: within 3 % of
// the truth, and the same on every machine.
type Times struct {
	count   [64 * timeSteps]int64
	n       int64
	longest int64
}

const timeSteps = 32

func (t *Times) add(d int64) {
	t.count[timeBucket(d)]++
	t.n++
	t.longest = max(t.longest, d)
}

func timeBucket(d int64) int {
	if d < timeSteps {
		return int(max(0, d))
	}
	shift := bits.Len64(uint64(d)) - 6 // leaves 32 to 63
	return (shift+1)*timeSteps + int(d>>shift) - timeSteps
}

func (t *Times) merge(o *Times) {
	for i := range t.count {
		t.count[i] += o.count[i]
	}
	t.n += o.n
	t.longest = max(t.longest, o.longest)
}

// N is how many there are.
func (t *Times) N() int64 { return t.n }

// Quantile is the duration that permille of a thousand stay below; 0 of none.
func (t *Times) Quantile(permille int64) time.Duration {
	left := (t.n*permille + 999) / 1000
	if left == 0 {
		return 0
	}
	for i, c := range t.count {
		if left -= c; left <= 0 {
			return time.Duration(min(bucketEnd(i), t.longest))
		}
	}
	return time.Duration(t.longest)
}

// bucketEnd is the longest duration of a bucket.
func bucketEnd(i int) int64 {
	if i < timeSteps {
		return int64(i)
	}
	shift := i/timeSteps - 1
	return (int64(i%timeSteps)+timeSteps+1)<<shift - 1
}

// Stats adds up what all parts have counted.
func (w *World) Stats() Stats {
	s := newStats()
	for i := range w.parts {
		s.add(&w.parts[i].stats)
	}
	return s
}

// Events is how many events were handled.
func (w *World) Events() uint64 { return w.events }

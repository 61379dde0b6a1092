package replay

import (
	"slices"
	"sort"
	"time"
)

// timeline is what a machine worked on, and the virtual times that follow from
// it, see host.
type timeline struct {
	edges []edge
}

// edge is a moment at which the load changes.
type edge struct {
	at                     time.Duration
	starts, messages       int // by how much, and after build how many there are from here on
	ofStarts, ofMessages   time.Duration
	startSpeed, otherSpeed int
}

// add has so many starts and messages run for a while.
func (t *timeline) add(from, to time.Duration, starts, messages int) {
	t.edges = append(t.edges, edge{at: from, starts: starts, messages: messages}, edge{at: to, starts: -starts, messages: -messages})
}

// count comes after the last add.
func (t *timeline) count() {
	slices.SortFunc(t.edges, func(a, b edge) int { return int(a.at - b.at) })
	for i := 1; i < len(t.edges); i++ {
		t.edges[i].starts += t.edges[i-1].starts
		t.edges[i].messages += t.edges[i-1].messages
	}
}

// share comes after count: the virtual times under c.
func (t *timeline) share(c Crowd) {
	for i := range t.edges {
		e := &t.edges[i]
		e.startSpeed, e.otherSpeed = c.ofStarts(e.starts), c.ofMessages(e.messages, e.starts)
		e.ofStarts, e.ofMessages = e.at, e.at
		if i > 0 {
			e.ofStarts, e.ofMessages = t.edges[i-1].until(e.at)
		}
	}
}

// until are the virtual times at a moment before the next edge.
func (e *edge) until(at time.Duration) (ofStarts, ofMessages time.Duration) {
	d := at - e.at
	return e.ofStarts + d*time.Duration(e.startSpeed)/full, e.ofMessages + d*time.Duration(e.otherSpeed)/full
}

// at are the virtual times of a moment.
func (t *timeline) at(now time.Duration) (ofStarts, ofMessages time.Duration) {
	i := sort.Search(len(t.edges), func(i int) bool { return t.edges[i].at > now })
	if i == 0 {
		return now, now
	}
	return t.edges[i-1].until(now)
}

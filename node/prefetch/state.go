package prefetch

import (
	"fmt"
	"strings"
)

// State is what a Prefetcher is at, for people and for who waits.
type State struct {
	// Settled: what was found at the start is ready, or was tried once.
	Settled bool
	Ready   int // images
	Waiting int // images that have not had their turn
	// Doing is the image that is worked on, "" = none: Done of Total bytes are
	// here, or it is being unpacked.
	Doing       string
	Done, Total int64
	Unpacking   bool
	// Trouble is why the last image that was left alone was; "" when one was
	// brought since.
	Trouble string
}

// Percent of the bytes that are here.
func (s State) Percent() int {
	if s.Total <= 0 {
		return 0
	}
	return int(100 * min(s.Done, s.Total) / s.Total)
}

// Activity says what is being done, "" when it is nothing.
func (s State) Activity() string {
	switch {
	case s.Doing == "":
		return ""
	case s.Unpacking:
		return "unpacking " + s.Doing
	}
	return fmt.Sprintf("fetching %s: %d %%", s.Doing, s.Percent())
}

// String is one line about it.
func (s State) String() string {
	parts := []string{fmt.Sprintf("%d ready", s.Ready)}
	if a := s.Activity(); a != "" {
		parts = append(parts, a)
	}
	if s.Waiting > 0 {
		parts = append(parts, fmt.Sprintf("%d to come", s.Waiting))
	}
	return strings.Join(parts, ", ")
}

// State is the present state.
func (p *Prefetcher) State() State {
	s, _ := p.Watch()
	return s
}

// Watch gives the present state, and a channel that closes when it changes.
func (p *Prefetcher) Watch() (State, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state, p.changed
}

// progress notes how far the image is: below are the bytes of its lower layers.
// It tells nobody of less than a percent.
func (p *Prefetcher) progress(below, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.state.Percent()
	p.state.Done, p.state.Total = below+done, max(p.state.Total, below+total)
	if p.state.Percent() != before {
		p.tellLocked()
	}
}

func (p *Prefetcher) unpacking() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.Unpacking = true
	p.tellLocked()
}

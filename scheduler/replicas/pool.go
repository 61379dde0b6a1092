package replicas

import "time"

// Pool is the machine of one stub.
type Pool struct{ cfg Config }

// New makes an empty pool.
func New(cfg Config) *Pool { return &Pool{cfg: cfg} }

// Step takes one event and returns what the shell has to do, in order.
func (p *Pool) Step(now time.Duration, ev Event) []Action { return nil }

// NextWake is when a Tick is due; ok is false when none is.
func (p *Pool) NextWake() (at time.Duration, ok bool) { return 0, false }

// Stats is a snapshot.
func (p *Pool) Stats() Stats { return Stats{} }

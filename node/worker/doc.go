// Package worker runs what other nodes were granted on this one: it carries out
// the actions of the market's Worker machine, which alone decides what fits.
//
// One granted lease is one container with one persistent runner process. The
// owner attaches to a lease by stream ("lease/1"), sends calls and gets events;
// the events outlive the stream, so an owner that comes back misses nothing:
//
//	granted → pull → start → import → ready ⇄ running → gone
//
// A Worker is safe for concurrent use. It starts goroutines only for leases and
// streams, and Close waits for all of them.
package worker

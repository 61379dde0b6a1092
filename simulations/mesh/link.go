package mesh

import (
	"strconv"

	"github.com/beammesh/beammesh/scheduler"
)

// Names of actors are their numbers, so that finding one needs no table.

func nodeID(i int) scheduler.NodeID { return scheduler.NodeID("n" + strconv.Itoa(i)) }

func ownerID(i int) scheduler.NodeID { return scheduler.NodeID("o" + strconv.Itoa(i)) }

func nodeIndex(id scheduler.NodeID) int32 { return number(string(id)) }

func (w *World) ownerIndex(id scheduler.NodeID) int32 {
	return int32(len(w.nodes)) + number(string(id))
}

// number reads the digits after the first letter.
func number(s string) (n int32) {
	for i := 1; i < len(s); i++ {
		n = n*10 + int32(s[i]-'0')
	}
	return n
}

// draw is a random number for one message: a function of the seed, the two ends
// and the sender's count, so that no message moves the fate of another.
func (w *World) draw(from, to int32, seq uint32) uint64 {
	x := w.cfg.Seed ^ uint64(uint32(from))<<32 ^ uint64(uint32(to)) ^ uint64(seq)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9 // SplitMix64's finisher
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// delay is how long a message takes.
func (w *World) delay(from, to int32, seq uint32) int64 {
	d := int64(w.cfg.Latency)
	if w.cfg.Far > 0 && w.zoneOf(from) != w.zoneOf(to) {
		d = int64(w.cfg.Far)
	}
	if w.cfg.Jitter > 0 {
		d += int64(w.draw(from, to, seq) % uint64(w.cfg.Jitter))
	}
	return d
}

func (w *World) lost(from, to int32, seq uint32) bool {
	return w.cfg.LossPPM > 0 && w.draw(to, from, seq)%1_000_000 < uint64(w.cfg.LossPPM)
}

// zoneOf is the number of an actor's zone.
func (w *World) zoneOf(actor int32) int32 {
	if int(actor) < len(w.nodes) {
		return w.nodes[actor].zone
	}
	return w.owners[int(actor)-len(w.nodes)].zone
}

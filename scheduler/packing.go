package scheduler

import "math/bits"

// Packing scores placements by the fragmentation that they leave, by FGD's
// measure (see Mix), and remembers what it computed: most nodes of a mesh look
// alike, and a node looks the same until something is placed there. A View ranks
// by it and a Worker chooses the device of a share by it, once its shell has set
// a mix; without one, or with an empty one, simpler rules hold.
//
// Not safe for concurrent use: a node has one for its owner and one for its
// worker. Views of one goroutine may share one. The zero value has no mix.
type Packing struct {
	mix   *Mix
	epoch uint64 // counts the mixes
	memo  map[memoKey]memoEntry
}

// memoKey stands for a demand and the free part of a node, both by 64-bit
// hashes. Should two ever meet, a node is scored like another: a worse place at
// most, as the worker decides on its real state.
type memoKey struct{ demand, state uint64 }

type memoEntry struct {
	step  int16
	picks Picks
}

// maxMemo bounds the memory of a Packing, about 4 MiB; it starts anew when full.
const maxMemo = 1 << 16

// SetMix replaces the mix: what is ranked by it will be ranked anew. A shell does
// so now and then, not with every task.
func (p *Packing) SetMix(m *Mix) {
	p.mix = m
	p.epoch++
	clear(p.memo)
}

// Mix is the mix in use; nil when there is none.
func (p *Packing) Mix() *Mix { return p.mix }

// active says whether there is something to measure by.
func (p *Packing) active() bool { return p != nil && p.mix != nil && p.mix.Weight() > 0 }

// Step is FGD's score of the best placement of d on c, which must fit: 0 to 99,
// 50 for no change, more is better.
func (p *Packing) Step(d *Demand, c *Capacity) int { return int(p.look(d, c).step) }

// Picks are the devices that leave the least fragment. Demands for several or
// whole devices take what Allocate takes.
func (p *Packing) Picks(d *Demand, c *Capacity) Picks { return p.look(d, c).picks }

func (p *Packing) look(d *Demand, c *Capacity) memoEntry {
	k := memoKey{d.packHash(), c.packHash()}
	if e, ok := p.memo[k]; ok {
		return e
	}
	delta, picks := p.mix.Delta(d, c)
	e := memoEntry{int16(p.mix.Score(delta)), picks}
	if p.memo == nil || len(p.memo) >= maxMemo {
		p.memo = make(map[memoKey]memoEntry)
	}
	p.memo[k] = e
	return e
}

// first is the lowest device of a set that is not empty.
func (p Picks) first() int { return bits.TrailingZeros64(uint64(p)) }

// hashStep folds x into h.
func hashStep(h, x uint64) uint64 {
	h = (h ^ x) * 0x9e3779b97f4a7c15
	return h ^ h>>29
}

func hashName(h uint64, s string) uint64 {
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// packHash is equal for demands that fragment alike.
func (d *Demand) packHash() uint64 {
	h := hashStep(hashStep(1, uint64(d.CPUMillis)), uint64(d.MemoryMiB))
	for i := range d.GPUs {
		h = hashStep(hashName(h, d.GPUs[i].Class), uint64(d.GPUs[i].Count))
	}
	return hashStep(h, uint64(d.Milli()))
}

// packHash is equal for nodes that have the same free.
func (c *Capacity) packHash() uint64 {
	h := hashStep(hashStep(2, uint64(c.Free.CPUMillis)), uint64(c.Free.MemoryMiB))
	for i := range c.Devices {
		if i == 0 || c.Devices[i].Class != c.Devices[i-1].Class {
			h = hashName(h, c.Devices[i].Class)
		}
		h = hashStep(h, uint64(c.Devices[i].FreeMilli))
	}
	return h
}

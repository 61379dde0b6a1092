package scheduler

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Term is one part of a Score.
type Term int

// The terms, each in expected milliseconds until the container runs, or a
// preference expressed as if it were.
const (
	TermGPUChoice Term = iota // a later alternative of the demand
	TermFetch                 // missing bytes / bandwidth
	TermCold                  // preparing roots that are not complete there
	TermQueue                 // containers being started before this one
	TermZone                  // another zone than preferred
	TermCrowd                 // containers of the same group already there
	TermSpareGPU              // CPU-only work on a node that has free GPUs
	TermPack                  // breaking up a node with many free GPUs
	TermLoad                  // share of the node in use afterwards
	TermFrag                  // idle GPU that the mesh's work cannot use afterwards; in place of pack
	termCount
)

var termNames = [termCount]string{
	"gpu choice", "fetch", "cold image", "queue", "zone", "crowd", "spare gpu", "pack", "load", "fragments",
}

// String is the term's name.
func (t Term) String() string { return termNames[t] }

// Weights in milliseconds. Where one stands for a measured time it is the rough
// value from our own measurements; the others are preferences, chosen so that a
// stronger one is not outweighed by a weaker.
const (
	weightGPUChoice = 1_000_000 // the user's order is strict
	weightCold      = 300       // unpack and mount, after the bytes are there
	weightQueue     = 150       // one container start
	weightZone      = 200       // slower blocks and calls, mostly
	weightCrowd     = 10_000    // sharing one machine costs a stub more than fetching an image once
	weightSpareGPU  = 2_000     // all GPUs free; less as they fill
	weightPack      = 50        // per device left free
	weightLoad      = 1_000     // a full node
	// Per step of FGD's score, of which there are 100 and 50 stand for no change.
	weightFrag       = 5  // GPUs abound: like pack
	weightFragScarce = 20 // less than scarceBelow of the view's GPUs is free
	// assumedKiBps stands in for a bandwidth that was never measured: that of a
	// wired network. Were it so slow that a base image (230 MiB) came to more
	// than weightCrowd, the first containers of a stub would all go to the node
	// that has the image. The first fetch corrects it.
	assumedKiBps = 100 << 10
)

// Score says how good a node is for a demand; lower is better. All parts are
// milliseconds.
type Score struct {
	Terms [termCount]int64
	Total int64
}

// Before is the order in which nodes are asked: by score, then the canonical
// order of nodes, which is by hash of the id and then the id.
//
// It has nothing to do with the GPU class: going through the classes one after
// the other fills one with work that any could take, until what needs that one
// finds no room (11.8 % of the GPUs unallocated on the openb trace instead of 4.8).
func (s Score) Before(node NodeID, o Score, onode NodeID) bool {
	if s.Total != o.Total {
		return s.Total < o.Total
	}
	if h, oh := HashOf(node), HashOf(onode); h != oh {
		return h < oh
	}
	return node < onode
}

// String prints the total and the terms that count, the largest first:
// "2.3s: fetch 1.9s, load 400ms".
func (s Score) String() string {
	var b strings.Builder
	b.WriteString(millis(s.Total))
	order := make([]Term, 0, termCount)
	for t := range termCount {
		if s.Terms[t] != 0 {
			order = append(order, t)
		}
	}
	slices.SortStableFunc(order, func(a, b Term) int { return int(s.Terms[b] - s.Terms[a]) })
	for i, t := range order {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(&b, "%s%s %s", sep, t, millis(s.Terms[t]))
	}
	return b.String()
}

func millis(ms int64) string { return (time.Duration(ms) * time.Millisecond).String() }

// ScoreOf scores a node that can take d; crowd is the number of containers of
// the same group that are there already.
func ScoreOf(d *Demand, c *Capacity, crowd int) Score {
	var s Score
	choice := Choice(d, c)
	if choice > 0 {
		s.Terms[TermGPUChoice] = int64(choice) * weightGPUChoice
	}
	if missing := MissingBytes(d, c); missing > 0 {
		rate := c.BandwidthKiBps
		if rate <= 0 {
			rate = assumedKiBps
		}
		s.Terms[TermFetch] = missing / 1024 * 1000 / rate
	}
	for i := range d.Roots {
		if !slices.Contains(c.HotRoots, d.Roots[i].Name) {
			s.Terms[TermCold] = weightCold
			break
		}
	}
	s.Terms[TermQueue] = int64(c.Queue) * weightQueue
	if d.Zone != "" && d.Zone != c.Zone {
		s.Terms[TermZone] = weightZone
	}
	s.Terms[TermCrowd] = int64(crowd) * weightCrowd

	var free int64
	for i := range c.Devices {
		free += c.Devices[i].FreeMilli
	}
	load := max(share(c.Total.CPUMillis-c.Free.CPUMillis+d.CPUMillis, c.Total.CPUMillis),
		share(c.Total.MemoryMiB-c.Free.MemoryMiB+d.MemoryMiB, c.Total.MemoryMiB))
	if choice >= 0 {
		left := free - int64(d.GPUs[choice].Count)*d.Milli()
		s.Terms[TermPack] = left * weightPack / GPUExclusive
		load /= 10 // GPUs are what is scarce there
	} else if n := int64(len(c.Devices)); n > 0 {
		s.Terms[TermSpareGPU] = free * weightSpareGPU / (n * GPUExclusive)
	}
	s.Terms[TermLoad] = load
	for _, t := range s.Terms {
		s.Total += t
	}
	return s
}

// share is used/total in thousandths, times weightLoad / 1000.
func share(used, total int64) int64 {
	if total <= 0 {
		return 0
	}
	return used * weightLoad / total
}

// MissingBytes is what a node has to fetch for d, by the demand's estimates.
func MissingBytes(d *Demand, c *Capacity) int64 {
	var n int64
	for i := range d.Roots {
		if !slices.Contains(c.HotRoots, d.Roots[i].Name) {
			n += d.Roots[i].Bytes
		}
	}
	return n
}

package scheduler

// Term is one part of a Score.
type Term int

// The terms, each in expected milliseconds until the container runs, or a
// preference expressed as if it were.
const (
	TermGPUChoice Term = iota // a later alternative of the demand
	TermFetch                 // missing bytes / bandwidth
	TermCold                  // preparing an image that is not complete here
	TermQueue                 // containers being started before this one
	TermZone                  // another zone than preferred
	TermCrowd                 // containers of the same stub already there
	TermSpareGPU              // CPU-only work on a node that has free GPUs
	TermPack                  // breaking up a node with many free GPUs
	TermLoad                  // share of the node in use afterwards
	termCount
)

// Score says how good a node is for a demand; lower is better.
type Score struct {
	Terms [termCount]int64
	Total int64
}

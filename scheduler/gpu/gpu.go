// Package gpu knows the names of GPUs.
//
// The vocabulary is open: a name it has never heard of is kept as it is and
// matches nodes that say the same. What it does know lets it read a driver's
// product name ("NVIDIA GeForce RTX 4090") and a user's spelling ("rtx-4090")
// as the same class, match A100 with both of its memory sizes, and suggest the
// name that was probably meant.
//
//	wants, err := gpu.Parse("H100,A100-80:2", 1) // H100, or two A100-80
//	gpu.Matches("A100", gpu.Normalise("NVIDIA A100-SXM4-40GB")) // true
//
// All functions are pure and safe for concurrent use.
package gpu

// Any matches every GPU.
const Any = "any"

// Want is one alternative of a demand: Count devices of Class.
type Want struct {
	Class string
	Count int
}

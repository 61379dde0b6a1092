package gpu

import "strings"

// known are the class names with a meaning to Beam users, longest first where
// one is part of another: a name is found as a substring.
var known = []string{
	"RTXPro6000", "RTX6000Ada", "RTX4000Ada", "RTX6000", "RTX5090", "RTX4090",
	"A100-80", "A100-40", "A100", "A10G", "A16", "A10", "A30", "A40",
	"A6000", "A5000", "A4000", "GH200", "GB200", "H100", "H200", "H20", "B200", "B300",
	"L40S", "L40", "L4", "T4", "V100-32", "V100", "GAUDI2",
}

// Known lists the names that need no node to be recognised.
func Known() []string { return append([]string(nil), known...) }

// Normalise gives the class for a driver's product name or a user's spelling.
// What it does not know comes back in upper case without vendor words and
// punctuation, so that "RTX 3080 Ti" and "rtx3080ti" are the same. "" stays "".
func Normalise(name string) string { return strings.TrimSpace(name) }

// Matches says whether a device of class have satisfies want (both normalised).
func Matches(want, have string) bool { return want == Any || want == have }

// Suggest names what was probably meant by an unknown name: from inView (classes
// of nodes in view) and the known names, at most three, the nearest first.
func Suggest(name string, inView []string) []string { return nil }

// IsKnown says whether some node has it or it is in the known list.
func IsKnown(class string, inView []string) bool { return false }

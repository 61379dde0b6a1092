package gpu

import (
	"strings"
	"unicode"
)

// models are the names that users know. The vocabulary is open: a product
// that is not here is called by its own words, "RTX3090".
var models = []string{
	"RTXPro6000", "RTX6000Ada", "RTX4000Ada", "RTX6000", "RTX4090", "RTX5090",
	"A4000", "A5000", "A6000", "A100", "GH200", "H100", "H200", "B200", "B300",
	"L40S", "L40", "L4", "A10G", "A10", "A16", "A30", "A40", "V100", "T4",
}

// maker words say nothing about the model.
var maker = map[string]bool{"NVIDIA": true, "GEFORCE": true, "TESLA": true, "QUADRO": true, "GRAPHICS": true, "DEVICE": true}

// variant words make it another model although it shares the name.
var variant = map[string]bool{"D": true, "TI": true, "SUPER": true, "LAPTOP": true, "MAX": true, "MOBILE": true}

// Model is the name that users ask for, from the driver's product name. A100
// and V100 were sold with two sizes of memory that users tell apart.
func Model(product string, memoryMiB int64) string {
	words := strings.FieldsFunc(product, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
	var kept []string
	other := false
	for _, w := range words {
		if u := strings.ToUpper(w); !maker[u] {
			kept = append(kept, w)
			other = other || variant[u]
		}
	}
	if !other {
		for _, m := range models {
			if hasRun(kept, m) {
				return sized(m, memoryMiB)
			}
		}
	}
	return strings.Join(kept, "")
}

// hasRun reports whether some neighbouring words make up name.
func hasRun(words []string, name string) bool {
	for i := range words {
		s := ""
		for _, w := range words[i:] {
			if s += w; strings.EqualFold(s, name) {
				return true
			}
		}
	}
	return false
}

func sized(m string, memoryMiB int64) string {
	switch {
	case m == "A100" && memoryMiB > 50<<10:
		return "A100-80"
	case m == "A100":
		return "A100-40"
	case m == "V100" && memoryMiB > 20<<10:
		return "V100-32"
	}
	return m
}

package gpu

import "strings"

// alias maps a spelling without separators to the class name.
type alias struct{ text, class string }

// aliases are the class names with a meaning to Beam users and, at the end, the
// names of pairs of words that drivers use for them. Order does not matter: the
// longest match wins.
var aliases = func() []alias {
	names := []string{
		"A10", "A10G", "A16", "A30", "A40", "A100", "A100-40", "A100-80",
		"A4000", "A5000", "A6000", "B200", "B300", "GAUDI2", "GB200", "GB300", "GH200",
		"H20", "H100", "H200", "L4", "L40", "L40S",
		"RTX4000Ada", "RTX4090", "RTX5090", "RTX6000", "RTX6000Ada", "RTXPro6000",
		"T4", "V100", "V100-32",
	}
	var as []alias
	for _, n := range names {
		as = append(as, alias{strings.ToUpper(strings.ReplaceAll(n, "-", "")), n})
	}
	return as
}()

// Known lists the names that are recognised even when no node has them.
func Known() []string {
	var names []string
	for _, a := range aliases {
		names = append(names, a.class)
	}
	return names
}

// Words of product names that say nothing about the class.
var noise = map[string]bool{
	"NVIDIA": true, "GEFORCE": true, "TESLA": true, "QUADRO": true, "AMD": true, "INSTINCT": true,
	"RADEON": true, "INTEL": true, "HABANA": true, "GENERATION": true, "SFF": true, "GPU": true,
	"BLACKWELL": true, "PCIE": true, "SXM": true, "SXM2": true, "SXM3": true, "SXM4": true, "SXM5": true,
	"SXM6": true, "NVL": true, "HBM2": true, "HBM2E": true, "HBM3": true, "HBM3E": true,
}

// Normalise gives the class for a driver's product name or a user's spelling.
// What it does not know comes back in upper case without vendor words, memory
// sizes and punctuation, so that "RTX 3080 Ti" and "rtx3080-ti" are the same.
// "" stays "". Normalise(Normalise(x)) == Normalise(x).
func Normalise(name string) string {
	if len(name) > maxProduct {
		name = name[:maxProduct] // peers send these too
	}
	class := normaliseOnce(name)
	// Joined words can spell a vendor or a size; each further pass drops some.
	for next := normaliseOnce(class); next != class; next = normaliseOnce(class) {
		class = next
	}
	return class
}

func normaliseOnce(name string) string {
	words, sizes := split(name)
	if len(words) == 1 && words[0] == "ANY" {
		return Any
	}
	if class := lookup(words); class != "" {
		// Two classes of one chip differ only by memory.
		switch {
		case class == "A100" && sizes["80"]:
			return "A100-80"
		case class == "A100" && sizes["40"]:
			return "A100-40"
		case class == "V100" && sizes["32"]:
			return "V100-32"
		}
		return class
	}
	return strings.Join(words, "")
}

// Classify is Normalise for a device whose memory is known: it tells the memory
// sizes of a chip apart where the product name does not.
func Classify(product string, memoryMiB int64) string {
	class := Normalise(product)
	switch {
	case class == "A100" && memoryMiB > 60<<10:
		return "A100-80"
	case class == "A100" && memoryMiB > 30<<10:
		return "A100-40"
	case class == "V100" && memoryMiB > 24<<10:
		return "V100-32"
	}
	return class
}

// maxProduct bounds the bytes of a name that are looked at.
const maxProduct = 256

// split cuts a name into upper-case words without the noise; sizes are the
// numbers that look like memory ("80", "80G", "80GB").
func split(name string) (words []string, sizes map[string]bool) {
	sizes = map[string]bool{}
	fields := strings.FieldsFunc(strings.ToUpper(name), func(r rune) bool {
		return !(r >= 'A' && r <= 'Z' || r >= '0' && r <= '9')
	})
	for i, f := range fields {
		for _, vendor := range [...]string{"NVIDIA", "GEFORCE", "TESLA", "QUADRO"} {
			f = strings.TrimPrefix(f, vendor) // "GeForceRTX4090"
		}
		digits := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(f, "B"), "I"), "G")
		number := digits != "" && strings.Trim(digits, "0123456789") == ""
		switch {
		case f == "" || noise[f]:
		case number && digits != f:
			sizes[digits] = true
		case number && i > 0 && (f == "80" || f == "40" || f == "32") && len(words) > 0 &&
			(words[len(words)-1] == "A100" || words[len(words)-1] == "V100"):
			sizes[f] = true // "A100-80"
		default:
			words = append(words, f)
		}
	}
	return words, sizes
}

// lookup finds the longest alias that is a run of whole words.
func lookup(words []string) string {
	best := alias{}
	for i := range words {
		run := ""
		for j := i; j < len(words) && len(run) < maxName; j++ {
			run += words[j]
			for _, a := range aliases {
				if a.text == run && len(run) > len(best.text) {
					best = a
				}
			}
		}
	}
	return best.class
}

// Matches says whether a device of class have satisfies want (both normalised):
// the same name, "any", or a chip asked for without its memory size.
func Matches(want, have string) bool {
	if want == Any || want == have {
		return have != ""
	}
	return len(have) > len(want) && have[len(want)] == '-' && have[:len(want)] == want
}

// IsKnown says whether a class (normalised) is in the known list or matches one
// of inView, the classes of the nodes in view.
func IsKnown(class string, inView []string) bool {
	if class == Any {
		return true
	}
	for _, have := range inView {
		if Matches(class, have) {
			return true
		}
	}
	for _, a := range aliases {
		if a.class == class {
			return true
		}
	}
	return false
}

// Suggest names what was probably meant by an unknown class, at most three, the
// nearest first and of equals those that a node in view has.
func Suggest(class string, inView []string) []string {
	word := strings.Join(strings.Fields(strings.ToUpper(class)), "")
	if len(word) > maxName {
		return nil
	}
	type option struct {
		name string
		dist int
	}
	var opts []option
	add := func(name string, penalty int) {
		for _, o := range opts {
			if o.name == name {
				return
			}
		}
		d := distance(word, strings.ToUpper(strings.ReplaceAll(name, "-", "")))
		if d <= 1+len(word)/4 {
			opts = append(opts, option{name, 2*d + penalty})
		}
	}
	for _, name := range inView {
		if name != "" && len(name) <= maxName {
			add(name, 0)
		}
	}
	for _, a := range aliases {
		add(a.class, 1)
	}
	var names []string
	for len(names) < 3 && len(opts) > 0 {
		best := 0
		for i := range opts {
			if opts[i].dist < opts[best].dist {
				best = i
			}
		}
		names = append(names, opts[best].name)
		opts = append(opts[:best], opts[best+1:]...)
	}
	return names
}

// distance is the number of letters to insert, drop or change.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diag := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diag
			if a[i-1] != b[j-1] {
				cost++
			}
			diag = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

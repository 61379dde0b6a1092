package gpu

import (
	"fmt"
	"strconv"
	"strings"
)

// MaxChoices and MaxCount bound what Parse accepts.
const (
	MaxChoices = 16
	MaxCount   = 64
	maxName    = 64
)

// Parse reads what users write: "", "any", "H100", "rtx-4090", "H100,A100-80",
// "H100:2,any". count stands for alternatives without their own; 0 means 1. The
// order is the order of preference, duplicates fall out. "" gives no Want.
func Parse(s string, count int) ([]Want, error) {
	if count < 0 || count > MaxCount {
		return nil, fmt.Errorf("gpu count %d is not 0 to %d", count, MaxCount)
	}
	if count == 0 {
		count = 1
	}
	var wants []Want
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		w := Want{Count: count}
		name, num, found := strings.Cut(part, ":")
		if found {
			n, err := strconv.Atoi(strings.TrimSpace(num))
			if err != nil || n < 1 || n > MaxCount {
				return nil, fmt.Errorf("gpu %q: the number after ':' must be 1 to %d", part, MaxCount)
			}
			w.Count = n
		}
		w.Class = Normalise(name)
		if w.Class == "" || len(w.Class) > maxName {
			return nil, fmt.Errorf("gpu %q is not a name", part)
		}
		dup := false
		for _, o := range wants {
			dup = dup || o == w
		}
		if dup {
			continue
		}
		if len(wants) == MaxChoices {
			return nil, fmt.Errorf("more than %d alternatives of gpu", MaxChoices)
		}
		wants = append(wants, w)
	}
	return wants, nil
}

// Format is the inverse of Parse, for people: "H100 or 2x A100-80".
func Format(wants []Want) string {
	var b strings.Builder
	for i, w := range wants {
		if i > 0 {
			b.WriteString(" or ")
		}
		if w.Count > 1 {
			fmt.Fprintf(&b, "%dx ", w.Count)
		}
		if w.Class == Any {
			b.WriteString("any GPU")
		} else {
			b.WriteString(w.Class)
		}
	}
	return b.String()
}

package scheduler

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/beammesh/beammesh/scheduler/gpu"
)

// Changes are the names that With knows.
var Changes = []string{"cpu", "memory", "disk", "gpu", "zone"}

// With is d with one thing asked for differently, to answer "what if":
//
//	cpu=2.5          cores
//	memory=8GiB      or a number of MiB; disk likewise
//	gpu=any          as in a function's gpu; gpu=none is without
//	zone=lab
//
// The error is for the one who typed it.
func (d Demand) With(change string) (Demand, error) {
	name, value, ok := strings.Cut(change, "=")
	if !ok || value == "" {
		return d, fmt.Errorf("%q is no change: write it as name=value, such as gpu=any", change)
	}
	switch strings.ToLower(strings.TrimSpace(name)) {
	case "cpu":
		cores, err := strconv.ParseFloat(value, 64)
		if err != nil || !(cores > 0 && cores*1000 <= maxMillis) {
			return d, fmt.Errorf("cpu=%s: a number of cores is wanted, such as 2 or 0.5", value)
		}
		d.CPUMillis = int64(cores * 1000)
	case "memory":
		mib, ok := parseMiB(value)
		if !ok {
			return d, fmt.Errorf("memory=%s: a size is wanted, such as 8GiB or 512", value)
		}
		d.MemoryMiB = mib
	case "disk":
		mib, ok := parseMiB(value)
		if !ok {
			return d, fmt.Errorf("disk=%s: a size is wanted, such as 8GiB or 512", value)
		}
		d.DiskMiB = mib
	case "gpu":
		d.GPUs = nil
		if !strings.EqualFold(value, "none") {
			wants, err := gpu.Parse(value, 1)
			if err != nil {
				return d, fmt.Errorf("gpu=%s: %w", value, err)
			}
			d.GPUs = wants
		}
	case "zone":
		d.Zone = value
	default:
		return d, fmt.Errorf("%q cannot be changed: %s can", name, strings.Join(Changes, ", "))
	}
	return d, d.Validate()
}

// parseMiB reads "8GiB", "512MiB" or a plain number of MiB.
func parseMiB(s string) (int64, bool) {
	t := strings.ToLower(strings.TrimSpace(s))
	factor := int64(1)
	for _, u := range [...]struct {
		suffix string
		mib    int64
	}{{"gib", 1024}, {"gi", 1024}, {"g", 1024}, {"mib", 1}, {"mi", 1}, {"m", 1}} {
		if rest, ok := strings.CutSuffix(t, u.suffix); ok {
			t, factor = strings.TrimSpace(rest), u.mib
			break
		}
	}
	n, err := strconv.ParseInt(t, 10, 64)
	return n * factor, err == nil && n > 0 && n < maxMillis/1024
}

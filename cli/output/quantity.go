package output

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration prints a span of time with two or three digits that matter. Nodes
// tell most of them in whole milliseconds: 0 is less than one.
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return "-"
	case d == 0:
		return "<1 ms"
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// Ago is the distance from t to now; "-" for a time that is not set. Clocks of
// nodes differ a little: a time ahead of us counts as now.
func Ago(now, t time.Time) string {
	if t.IsZero() || t.Unix() == 0 {
		return "-"
	}
	d := now.Sub(t).Truncate(time.Second)
	if d <= 0 {
		return "now"
	}
	return Duration(d)
}

// Bytes prints a size in binary units.
func Bytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	f := float64(n)
	i := -1
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	s := strconv.FormatFloat(f, 'f', 1, 64)
	return strings.TrimSuffix(s, ".0") + " " + units[i:i+1] + "iB"
}

// Millis prints thousandths ("2500" → "2.5"), for cores and GPUs.
func Millis(n int64) string {
	return strconv.FormatFloat(float64(n)/1000, 'f', -1, 64)
}

// Count is a number of things: "1 node", "3 nodes".
func Count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.Itoa(n) + " " + thing + "s"
}

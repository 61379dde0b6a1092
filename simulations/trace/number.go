package trace

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Limits of what a trace can mean. A number beyond them is in another unit.
const (
	maxMillis  = 1 << 31 // thousandths of a core, or MiB: what package scheduler takes
	maxSeconds = 1 << 32 // since 1970, this is the year 2106
	maxCount   = 1 << 40
)

// decimal reads "12", "12.5" or "-0.25" as a whole number of units of 10^-digits;
// what is finer is cut. It never rounds through a float.
func decimal(s string, digits int) (n int64, ok bool) {
	negative := strings.HasPrefix(s, "-")
	whole, fraction, dot := strings.Cut(strings.TrimPrefix(s, "-"), ".")
	if whole == "" || dot && fraction == "" {
		return 0, false
	}
	read := func(c rune) bool {
		if c < '0' || c > '9' || n > (math.MaxInt64-9)/10 {
			return false
		}
		n = n*10 + int64(c-'0')
		return true
	}
	for _, c := range whole {
		if !read(c) {
			return 0, false
		}
	}
	for i := range digits {
		c := '0'
		if i < len(fraction) {
			c = rune(fraction[i])
		}
		if !read(c) {
			return 0, false
		}
	}
	for i := digits; i < len(fraction); i++ {
		if fraction[i] < '0' || fraction[i] > '9' {
			return 0, false
		}
	}
	if negative {
		n = -n
	}
	return n, true
}

// whole reads a whole number of at least 0 and at most limit. "12.0" is one too.
func (t *table) whole(column string, limit int64, unit string) int64 {
	digits, fraction, _ := strings.Cut(t.text(column), ".")
	n, ok := decimal(digits, 0)
	if !ok || n < 0 || strings.Trim(fraction, "0") != "" {
		t.fail(column, "a whole number of "+unit+", 0 or more")
		return 0
	}
	if n > limit {
		t.fail(column, fmt.Sprintf("at most %d %s: is it in another unit?", limit, unit))
		return 0
	}
	return n
}

// scaled reads a number that may have a fraction and gives it times factor,
// at least 0 and at most limit.
func (t *table) scaled(column string, factor, limit int64, unit string) int64 {
	const digits, one = 6, 1_000_000
	n, ok := decimal(t.text(column), digits)
	if !ok || n < 0 {
		t.fail(column, "a number of "+unit+", 0 or more")
		return 0
	}
	if n/one > limit/factor {
		t.fail(column, fmt.Sprintf("at most %d %s: is it in another unit?", limit/factor, unit))
		return 0
	}
	return n/one*factor + n%one*factor/one
}

// seconds reads a time or a duration in seconds.
func (t *table) seconds(column string) time.Duration {
	n, ok := decimal(t.text(column), 9)
	if !ok || n < 0 || n/int64(time.Second) > maxSeconds {
		t.fail(column, fmt.Sprintf("seconds from 0 to %d, like 12 or 0.25", int64(maxSeconds)))
		return 0
	}
	return time.Duration(n)
}

// clock reads a wall-clock time with layout, in UTC.
func (t *table) clock(column, layout string) time.Time {
	at, err := time.Parse(layout, t.text(column))
	if err != nil {
		t.fail(column, "a time like "+layout)
	}
	return at
}

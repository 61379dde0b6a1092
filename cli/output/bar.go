package output

import (
	"strings"
	"time"
)

// Span is one bar of a waterfall.
type Span struct {
	Label  string
	Start  time.Duration
	Length time.Duration
	Detail string
}

// maxSpans bounds a waterfall: phases come from other machines.
const maxSpans = 64

// Waterfall draws spans below each other on one time axis of the given width.
func (p *Printer) Waterfall(spans []Span, width int, indent string) string {
	if len(spans) > maxSpans {
		spans = spans[:maxSpans]
	}
	var end time.Duration
	labels := 0
	for _, s := range spans {
		end = max(end, s.Start+s.Length)
		labels = max(labels, len([]rune(Clean(s.Label))))
	}
	if end <= 0 {
		end = 1
	}
	var b strings.Builder
	for _, s := range spans {
		label := Clean(s.Label)
		from := clamp(int(int64(width)*int64(s.Start)/int64(end)), 0, width-1)
		to := clamp(int((int64(width)*int64(s.Start+s.Length)+int64(end)/2)/int64(end)), from, width)
		bar := p.bar(to - from)
		b.WriteString(indent + label + strings.Repeat(" ", labels-len([]rune(label))) + "  ")
		b.WriteString(strings.Repeat(" ", from) + p.Style.Cyan(bar))
		b.WriteString(strings.Repeat(" ", max(0, width-from-len([]rune(bar)))) + "  ")
		took := Duration(s.Length)
		b.WriteString(strings.Repeat(" ", max(0, 8-len([]rune(took)))) + took)
		if s.Detail != "" {
			b.WriteString("  " + p.Style.Dim(Clean(s.Detail)))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// bar is n cells long; what took nearly no time still shows as a thin line.
func (p *Printer) bar(n int) string {
	switch {
	case n == 0 && p.Style.ASCII:
		return "|"
	case n == 0:
		return "▏"
	case p.Style.ASCII:
		return strings.Repeat("#", n)
	}
	return strings.Repeat("█", n)
}

// Share draws used of total as a bar of the given width.
func (p *Printer) Share(used, total int64, width int) string {
	if total <= 0 {
		return strings.Repeat(" ", width)
	}
	n := clamp(int((used*int64(width)+total/2)/total), 0, width)
	full, empty := "█", "░"
	if p.Style.ASCII {
		full, empty = "#", "."
	}
	return strings.Repeat(full, n) + strings.Repeat(empty, width-n)
}

func clamp(n, low, high int) int { return min(max(n, low), high) }

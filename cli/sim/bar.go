package sim

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/beammesh/beammesh/cli/output"
)

// barCells is the length of the bar, and redraw how often it is drawn at most:
// faster than the eye is only work.
const (
	barCells = 24
	redraw   = 100 * time.Millisecond
)

// bar is a progress bar on stderr. Where stderr is no terminal, or programs read
// the output, it draws nothing. One goroutine at a time may use it.
type bar struct {
	out   io.Writer // nil = draws nothing
	p     output.Printer
	drawn time.Time
	shown bool
}

func (t *tool) newBar(p *output.Printer) *bar {
	env := t.app.Env()
	if !env.StderrTTY || p.Format.Machine() {
		return &bar{}
	}
	return &bar{out: env.Stderr, p: output.Printer{Style: t.app.Style()}}
}

// draw shows how far the work is, at most ten times a second.
func (b *bar) draw(share float64, text string, left time.Duration) {
	if b.out == nil || time.Since(b.drawn) < redraw {
		return
	}
	b.drawn, b.shown = time.Now(), true
	line := fmt.Sprintf("%s %3.0f %%  %s", b.p.Style.Cyan(b.p.Share(int64(share*1000), 1000, barCells)), 100*share, text)
	if left > 0 {
		line += "  " + output.Duration(left.Round(time.Second)) + " left"
	}
	fmt.Fprintf(b.out, "\r\x1b[K%s", line)
}

// clear takes the bar off the screen, before other lines are written.
func (b *bar) clear() {
	if b.shown {
		fmt.Fprint(b.out, "\r\x1b[K")
		b.shown = false
		b.drawn = time.Time{}
	}
}

// steps says of every tenth of the work that it is done, where there is no bar.
type steps struct{ said int }

func (s *steps) next(done, total int) bool {
	if total == 0 || done*10/total <= s.said {
		return false
	}
	s.said = done * 10 / total
	return true
}

func plural(n int, thing string) string { return strings.TrimSpace(output.Count(n, thing)) }

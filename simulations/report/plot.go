package report

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"

	"github.com/beammesh/beammesh/simulations/results"
)

// Line is one curve of a plot.
type Line struct {
	Name  string
	Color int // which of the palette
	Dash  int // 0 = drawn through
	X, Y  []float64
	// Low and High are the edges of a band around Y; nil = none.
	Low, High []float64
}

// Plot is a picture of lines over one x and one y axis.
type Plot struct {
	Title, XLabel, YLabel string
	Lines                 []Line
}

// The size of a plot in its own units; on the page it is as wide as there is room.
const (
	plotWidth, plotHeight = 560, 330
	left, right           = 58, 14
	top, bottom           = 12, 46
	colors                = 8
	dashes                = 4
)

// hovers is how many places of a line tell their values under the mouse.
const hovers = 24

// SVG draws the plot with its title and legend as a <figure>.
func (p *Plot) SVG(b *strings.Builder) {
	xs, ys := p.values()
	if len(xs) == 0 {
		return
	}
	minX, maxX := slices.Min(xs), slices.Max(xs)
	// Two decades or more cannot be read on a plain axis.
	log := minX > 0 && maxX/minX >= 100
	x := newAxis(minX, maxX, left, plotWidth-right, log, false, false, 7)
	y := newAxis(slices.Min(ys), slices.Max(ys), plotHeight-bottom, top, false, true, true, 5)

	fmt.Fprintf(b, "<figure><figcaption>%s</figcaption>\n", esc(p.Title))
	fmt.Fprintf(b, `<svg viewBox="0 0 %d %d" role="img" aria-label="%s">`+"\n", plotWidth, plotHeight, esc(p.Title+": "+p.YLabel+" over "+p.XLabel))
	p.frame(b, &x, &y)
	for _, l := range p.Lines {
		if l.Low != nil {
			l.band(b, &x, &y)
		}
	}
	for _, l := range p.Lines {
		l.draw(b, &x, &y)
	}
	b.WriteString("</svg>\n")
	p.legend(b)
	b.WriteString("</figure>\n")
}

func (p *Plot) values() (xs, ys []float64) {
	for _, l := range p.Lines {
		xs = append(xs, l.X...)
		ys = append(append(append(ys, l.Y...), l.Low...), l.High...)
	}
	return xs, ys
}

func (p *Plot) frame(b *strings.Builder, x, y *axis) {
	for _, t := range y.ticks {
		fmt.Fprintf(b, `<path class="grid" d="M%d %.1fH%d"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			left, y.at(t), plotWidth-right, left-7, y.at(t)+4, tickText(t))
	}
	for _, t := range x.ticks {
		fmt.Fprintf(b, `<path class="grid" d="M%.1f %dV%d"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n",
			x.at(t), top, plotHeight-bottom, x.at(t), plotHeight-bottom+17, tickText(t))
	}
	fmt.Fprintf(b, `<path class="axis" d="M%d %dH%d"/>`+"\n", left, plotHeight-bottom, plotWidth-right)
	fmt.Fprintf(b, `<text class="label" x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", (left+plotWidth-right)/2, plotHeight-8, esc(p.XLabel))
	fmt.Fprintf(b, `<text class="label" transform="translate(14 %d) rotate(-90)" text-anchor="middle">%s</text>`+"\n", (top+plotHeight-bottom)/2, esc(p.YLabel))
}

func (p *Plot) legend(b *strings.Builder) {
	b.WriteString(`<ul class="legend">`)
	for _, l := range p.Lines {
		fmt.Fprintf(b, `<li><svg viewBox="0 0 26 10" class="key"><path class="%s" d="M1 5H25"/></svg>%s</li>`, l.class(), esc(l.Name))
	}
	b.WriteString("</ul>\n")
}

func (l *Line) class() string {
	return fmt.Sprintf("line c%d d%d", l.Color%colors, (l.Dash+l.Color/colors)%dashes)
}

func (l *Line) band(b *strings.Builder, x, y *axis) {
	fmt.Fprintf(b, `<path class="band c%d" d="`, l.Color%colors)
	for i := range l.X {
		fmt.Fprintf(b, "%c%s %s", "ML"[min(i, 1)], short(x.at(l.X[i])), short(y.at(l.High[i])))
	}
	for i := len(l.X) - 1; i >= 0; i-- {
		fmt.Fprintf(b, "L%s %s", short(x.at(l.X[i])), short(y.at(l.Low[i])))
	}
	b.WriteString("Z\"/>\n")
}

func (l *Line) draw(b *strings.Builder, x, y *axis) {
	fmt.Fprintf(b, `<path class="%s" d="`, l.class())
	for i := range l.X {
		fmt.Fprintf(b, "%c%s %s", "ML"[min(i, 1)], short(x.at(l.X[i])), short(y.at(l.Y[i])))
	}
	b.WriteString("\"/>\n")
	few := len(l.X) <= hovers
	class := "hover"
	if few {
		class = "dot"
	}
	step := max(1, (len(l.X)-1)/hovers)
	for i := 0; i < len(l.X); i += step {
		text := fmt.Sprintf("%s: %s at %s", l.Name, results.Number(l.Y[i]), results.Number(l.X[i]))
		if l.Low != nil {
			text += fmt.Sprintf(" (± %s)", results.Number((l.High[i]-l.Low[i])/2))
		}
		fmt.Fprintf(b, `<circle class="%s c%d" cx="%s" cy="%s" r="%d"><title>%s</title></circle>`, class, l.Color%colors,
			short(x.at(l.X[i])), short(y.at(l.Y[i])), map[bool]int{true: 3, false: 9}[few], esc(text))
	}
	b.WriteByte('\n')
}

// short prints a coordinate to a tenth of a unit.
func short(v float64) string {
	s := fmt.Sprintf("%.1f", math.Round(v*10)/10)
	return strings.TrimSuffix(s, ".0")
}

func esc(s string) string { return html.EscapeString(s) }

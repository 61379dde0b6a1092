package report

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bar is a value with its spread.
type Bar struct {
	Name   string
	Color  int
	Value  float64
	Spread float64 // drawn as a whisker to both sides; 0 = none
	Text   string  // beside the bar
	Best   bool
}

// Bars is a picture of one number of several policies.
type Bars struct {
	Title, Unit string
	Bars        []Bar
}

const barHeight = 24

// SVG draws the bars as a <figure>. They begin at 0, so lengths can be compared.
func (c *Bars) SVG(b *strings.Builder) {
	if len(c.Bars) == 0 {
		return
	}
	low, high, names, texts := 0.0, 0.0, 0, 0
	for _, x := range c.Bars {
		low, high = min(low, x.Value-x.Spread), max(high, x.Value+x.Spread)
		names, texts = max(names, utf8.RuneCountInString(x.Name)), max(texts, utf8.RuneCountInString(x.Text))
	}
	if !slices.ContainsFunc(c.Bars, func(x Bar) bool { return x.Value-x.Spread < 0 && x.Value < 0 }) {
		low = 0 // a whisker below 0 is cut off, it does not move the axis
	}
	// 8 units are a wide letter of the 13-unit font.
	from, to := 12+8*float64(min(names, 24)), float64(plotWidth)-16-8*float64(texts)
	x := axis{min: low, max: max(high, low+1e-12), from: from, to: to}
	height := barHeight*len(c.Bars) + 10
	title := c.Title
	if c.Unit != "" {
		title += " (" + c.Unit + ")"
	}
	fmt.Fprintf(b, "<figure><figcaption>%s</figcaption>\n", esc(title))
	fmt.Fprintf(b, `<svg viewBox="0 0 %d %d" role="img" aria-label="%s">`+"\n", plotWidth, height, esc(title))
	for i, v := range c.Bars {
		y := 5 + barHeight*i
		best := ""
		if v.Best {
			best = " best"
		}
		fmt.Fprintf(b, `<text class="name%s" x="%.0f" y="%d" text-anchor="end">%s</text>`, best, from-7, y+16, esc(v.Name))
		a, z := x.at(min(0, v.Value)), x.at(max(0, v.Value))
		fmt.Fprintf(b, `<rect class="bar c%d" x="%s" y="%d" width="%s" height="%d" rx="2"/>`, v.Color%colors, short(a), y+3, short(max(z-a, 1)), barHeight-6)
		if v.Spread > 0 {
			l, r, mid := x.at(max(low, v.Value-v.Spread)), x.at(v.Value+v.Spread), y+barHeight/2
			fmt.Fprintf(b, `<path class="whisker" d="M%s %dH%sM%s %dv8M%s %dv8"/>`, short(l), mid, short(r), short(l), mid-4, short(r), mid-4)
		}
		fmt.Fprintf(b, `<text class="value%s" x="%d" y="%d" text-anchor="end">%s</text>`+"\n", best, plotWidth-4, y+16, esc(v.Text))
	}
	fmt.Fprintf(b, `<path class="axis" d="M%s 4V%d"/>`+"\n</svg></figure>\n", short(x.at(0)), height-4)
}

package output

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Column is one column of a table.
type Column struct {
	Title string
	Wide  bool // shown with -o wide only
	Right bool // numbers
	// Paint colours a cell by its text, on a terminal.
	Paint func(Style, string) string
}

// Table is a list in every format.
type Table struct {
	Columns []Column
	Rows    [][]string
	Names   []string
	Value   any    // a slice; nil slices print as []
	Empty   string // the line for people when there are no rows
	Footer  string // the line for people below the rows
}

// Table prints t in the printer's format.
func (p *Printer) Table(t Table) error {
	switch p.Format {
	case FormatJSON, FormatYAML:
		return p.Value(t.Value)
	case FormatName:
		for _, n := range t.Names {
			if _, err := fmt.Fprintln(p.Out, n); err != nil {
				return err
			}
		}
		return nil
	}
	if len(t.Rows) == 0 && t.Empty != "" {
		_, err := fmt.Fprintln(p.Out, t.Empty)
		return err
	}
	var b strings.Builder
	p.grid(&b, t, "")
	if t.Footer != "" {
		b.WriteString(p.Style.Dim(t.Footer) + "\n")
	}
	_, err := p.Out.Write([]byte(b.String()))
	return err
}

// Grid renders the rows of t for people, indented, into text of a larger page.
func (p *Printer) Grid(t Table, indent string) string {
	var b strings.Builder
	p.grid(&b, t, indent)
	return b.String()
}

func (p *Printer) grid(b *strings.Builder, t Table, indent string) {
	var shown []int
	for i, c := range t.Columns {
		if !c.Wide || p.Format == FormatWide {
			shown = append(shown, i)
		}
	}
	width := make([]int, len(t.Columns))
	for _, i := range shown {
		width[i] = utf8.RuneCountInString(t.Columns[i].Title)
		for _, r := range t.Rows {
			width[i] = max(width[i], utf8.RuneCountInString(cell(r[i])))
		}
	}
	line := func(text func(i int) string, paint func(i int, s string) string) {
		b.WriteString(indent)
		for n, i := range shown {
			s := text(i)
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(s))
			last := n == len(shown)-1
			switch {
			case t.Columns[i].Right:
				b.WriteString(pad + paint(i, s))
			case last: // no spaces at the end of lines
				b.WriteString(paint(i, s))
			default:
				b.WriteString(paint(i, s) + pad)
			}
			if !last {
				b.WriteString("  ")
			}
		}
		b.WriteByte('\n')
	}
	line(func(i int) string { return strings.ToUpper(t.Columns[i].Title) }, func(_ int, s string) string { return p.Style.Bold(s) })
	for _, r := range t.Rows {
		line(func(i int) string { return cell(r[i]) }, func(i int, s string) string {
			if f := t.Columns[i].Paint; f != nil {
				return f(p.Style, s)
			}
			return s
		})
	}
}

// cell makes any text one cell: names and messages come from other machines,
// so a line break or an escape sequence must not break the page.
func cell(s string) string {
	if s == "" {
		return "-"
	}
	return Clean(s)
}

// Clean replaces control characters, so that text from other machines cannot
// move the cursor or start a new line.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r == utf8.RuneError {
			return ' '
		}
		return r
	}, s)
}

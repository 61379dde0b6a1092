package output

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestQuantities(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{Duration(-1), "-"}, {Duration(0), "<1 ms"}, {Duration(950 * time.Microsecond), "950 µs"}, {Duration(12 * time.Millisecond), "12 ms"},
		{Duration(1240 * time.Millisecond), "1.24 s"}, {Duration(59 * time.Second), "59.0 s"}, {Duration(61 * time.Second), "1m01s"},
		{Duration(3 * time.Hour), "3h00m"}, {Duration(80 * time.Hour), "3d"},
		{Bytes(0), "0 B"}, {Bytes(1023), "1023 B"}, {Bytes(1024), "1 KiB"}, {Bytes(64172851), "61.2 MiB"}, {Bytes(math.MaxInt64), "8 EiB"},
		{Millis(6500), "6.5"}, {Millis(8000), "8"}, {Millis(1), "0.001"},
		{Count(1, "node"), "1 node"}, {Count(0, "node"), "0 nodes"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
	now := time.Unix(1000, 0)
	for _, c := range []struct {
		t    time.Time
		want string
	}{{time.Time{}, "-"}, {time.Unix(0, 0), "-"}, {now.Add(-90 * time.Second), "1m30s"}, {now.Add(time.Hour), "now"}, {now.Add(-400 * time.Millisecond), "now"}} {
		if got := Ago(now, c.t); got != c.want {
			t.Errorf("Ago(%v): got %q, want %q", c.t, got, c.want)
		}
	}
}

// Numbers and names of a waterfall come from other machines: whatever they
// are, each span is one line of bounded width.
func FuzzWaterfall(f *testing.F) {
	f.Add("pull", int64(13e6), int64(700e6), "61 MiB", 32)
	f.Add("", int64(0), int64(0), "", 1)
	f.Add("a\nb\x1b[2J", int64(math.MaxInt64/64), int64(-5), "x\ry", 32)
	f.Fuzz(func(t *testing.T, label string, start, length int64, detail string, width int) {
		const year = int64(365 * 24 * time.Hour)
		if width < 1 || width > 200 || start > year || length > year || start < 0 || length < 0 {
			return // callers hold numbers in these bounds
		}
		p := Printer{}
		got := p.Waterfall([]Span{{label, time.Duration(start), time.Duration(length), detail}, {Label: "x", Length: time.Second}}, width, "  ")
		if n := strings.Count(got, "\n"); n != 2 || !strings.HasSuffix(got, "\n") {
			t.Fatalf("%d lines, want 2: %q", n, got)
		}
		if strings.ContainsAny(got, "\x1b\r") {
			t.Fatalf("control characters: %q", got)
		}
		for _, l := range strings.Split(got, "\n") {
			if utf8.RuneCountInString(l) > width+utf8.RuneCountInString(label)+utf8.RuneCountInString(detail)+40 {
				t.Fatalf("line too long: %q", l)
			}
		}
	})
}

func TestTableHoldsItsShape(t *testing.T) {
	var b bytes.Buffer
	p := Printer{Out: &b, Format: FormatTable}
	err := p.Table(Table{
		Columns: []Column{{Title: "Name"}, {Title: "Hidden", Wide: true}, {Title: "Size", Right: true}, {Title: "Last"}},
		Rows:    [][]string{{"naïve", "x", "10", "end"}, {"b\nc", "y", "9", ""}},
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = "NAME   SIZE  LAST\nnaïve    10  end\nb c       9  -\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// YAML and JSON are the same data in the same order, and text that looks like
// another type stays text.
func TestYAMLKeepsTypes(t *testing.T) {
	var b bytes.Buffer
	p := Printer{Out: &b, Format: FormatYAML}
	v := struct {
		Z    string         `json:"z"`
		A    int            `json:"a"`
		No   string         `json:"number"`
		Nest map[string]any `json:"nest"`
		None []string       `json:"none"`
	}{"true", 7, "1e3", map[string]any{"k": "- x: y"}, []string{}}
	if err := p.Value(v); err != nil {
		t.Fatal(err)
	}
	const want = "z: \"true\"\na: 7\nnumber: \"1e3\"\nnest:\n  k: '- x: y'\nnone: []\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestStyleOnlyWithColor(t *testing.T) {
	if got := (Style{}).Status("ERROR"); got != "ERROR" {
		t.Errorf("plain style painted %q", got)
	}
	if got := (Style{Color: true}).Status("ERROR"); got != "\x1b[31mERROR\x1b[0m" {
		t.Errorf("got %q", got)
	}
	if got := (Style{Color: true}).Bold(""); got != "" {
		t.Errorf("painted nothing as %q", got)
	}
}

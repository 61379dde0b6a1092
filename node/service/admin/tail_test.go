package admin

import (
	"fmt"
	"strings"
	"testing"
)

func TestTail(t *testing.T) {
	if newTail(0) != nil || newTail(-1) != nil {
		t.Error("no number of lines means all of them")
	}
	for _, c := range []struct {
		name   string
		lines  int
		pieces []string // "1text": descriptor and text
		want   string
	}{
		{"fewer than wanted", 5, []string{"1a\n", "1b\n"}, "1a\n1b\n"},
		{"the last two", 2, []string{"1a\nb\nc\n", "1d\n"}, "1c\n1d\n"},
		{"a line in pieces", 2, []string{"1a\n", "1b", "1b", "1\nc"}, "1bb\n1c"},
		{"two descriptors", 2, []string{"1a", "2x\n", "1b\n"}, "2x\n1b\n"},
		{"nothing", 3, nil, ""},
	} {
		tl := newTail(c.lines)
		for _, p := range c.pieces {
			tl.add(int(p[0]-'0'), []byte(p[1:]))
		}
		var got strings.Builder
		if err := tl.send(func(fd int, p []byte) error { fmt.Fprint(&got, fd, string(p)); return nil }); err != nil {
			t.Fatal(err)
		}
		if got.String() != c.want {
			t.Errorf("%s: %q, want %q", c.name, got.String(), c.want)
		}
	}
	tl := newTail(1 << 30)
	line := []byte(strings.Repeat("x", 1<<20) + "\n")
	for range 30 {
		tl.add(1, line)
	}
	if tl.bytes > maxTailBytes {
		t.Errorf("holds %d bytes", tl.bytes)
	}
}

package worker

import "testing"

func TestPullDetail(t *testing.T) {
	for _, c := range []struct {
		bytes int64
		from  int
		want  string
	}{{0, 0, "already here"}, {3 << 20, 1, "3.0 MiB from 1 peer"}, {1 << 19, 3, "0.5 MiB from 3 peers"}} {
		if got := pullDetail(c.bytes, make([]string, c.from)); got != c.want {
			t.Errorf("%d bytes from %d: %q, want %q", c.bytes, c.from, got, c.want)
		}
	}
}

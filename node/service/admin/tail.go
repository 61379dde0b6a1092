package admin

import "bytes"

// maxTailBytes bounds what is held of a log to find its last lines.
const maxTailBytes = 8 << 20

// tail keeps the last lines of a log.
type tail struct {
	lines int
	bytes int
	recs  []record
}

type record struct {
	fd int
	p  []byte
}

func newTail(lines int) *tail {
	if lines <= 0 {
		return nil
	}
	return &tail{lines: lines}
}

func (t *tail) add(fd int, p []byte) {
	for line := range bytes.Lines(p) {
		// A piece that continues an unfinished line belongs to it.
		if n := len(t.recs); n > 0 && t.recs[n-1].fd == fd && !bytes.HasSuffix(t.recs[n-1].p, []byte("\n")) {
			t.recs[n-1].p = append(t.recs[n-1].p, line...)
		} else {
			t.recs = append(t.recs, record{fd, bytes.Clone(line)})
		}
		t.bytes += len(line)
	}
	for len(t.recs) > t.lines || (t.bytes > maxTailBytes && len(t.recs) > 1) {
		t.bytes -= len(t.recs[0].p)
		t.recs = t.recs[1:]
	}
}

func (t *tail) send(fn func(fd int, p []byte) error) error {
	for _, r := range t.recs {
		if err := fn(r.fd, r.p); err != nil {
			return err
		}
	}
	return nil
}

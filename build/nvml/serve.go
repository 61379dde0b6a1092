//go:build cgo && linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/beammesh/beammesh/runtime/gpu"
)

// serve answers requests until in ends.
func serve(in io.Reader, out io.Writer, d *driver) error {
	var mu sync.Mutex
	enc := json.NewEncoder(out)
	say := func(r gpu.Reply) error {
		mu.Lock()
		defer mu.Unlock()
		return enc.Encode(r)
	}
	d.changed = func() { _ = say(gpu.Reply{}) } // a closed pipe shows in the next read
	sc := bufio.NewScanner(in)
	sc.Buffer(nil, gpu.MaxLine)
	for sc.Scan() {
		var q gpu.Request
		if err := json.Unmarshal(sc.Bytes(), &q); err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		if err := say(answer(d, q)); err != nil {
			return fmt.Errorf("write reply: %w", err)
		}
	}
	return sc.Err()
}

func answer(d *driver, q gpu.Request) gpu.Reply {
	r := gpu.Reply{ID: q.ID}
	err := d.open()
	if err == nil {
		switch q.Op {
		case gpu.OpList:
			r.Devices, err = d.list()
		case gpu.OpEdits:
			r.Edits, err = d.edits(q.IDs)
		default:
			err = fmt.Errorf("unknown operation %q", q.Op)
		}
	}
	if err != nil {
		r.NoDriver, r.NoDevice = errors.Is(err, gpu.ErrNoDriver), errors.Is(err, gpu.ErrNoDevice)
		r.Error = err.Error()
	}
	return r
}

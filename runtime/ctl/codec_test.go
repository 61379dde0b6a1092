package ctl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
)

func TestCodecRoundTrip(t *testing.T) {
	var b bytes.Buffer
	in := []struct {
		m    Message
		body []byte
	}{
		{Message{Type: Hello, Version: 1, Secret: "s", Procs: []ProcInfo{{Proc: 3, PID: 7, Recv: 9}}}, nil},
		{Message{Type: Output, Proc: 3, Seq: 2, FD: 2}, bytes.Repeat([]byte("x"), Fragment)},
		{Message{Type: Exec, Proc: 4}, bytes.Repeat([]byte("y"), MaxBody)},
		{Message{Type: Exited, Proc: 3, Seq: 3, Code: 137}, nil},
	}
	for _, c := range in {
		if err := Write(&b, &c.m, c.body); err != nil {
			t.Fatal(err)
		}
	}
	r := NewReader(&b)
	for _, c := range in {
		m, body, err := r.Next()
		if err != nil || !reflect.DeepEqual(m, c.m) || !bytes.Equal(body, c.body) {
			t.Errorf("got %+v, %d bytes, %v; want %+v, %d bytes", m, len(body), err, c.m, len(c.body))
		}
	}
	if _, _, err := r.Next(); err != io.EOF {
		t.Errorf("at the end: %v, want EOF", err)
	}
}

func TestCodecRefuses(t *testing.T) {
	head := func(h, b uint32, rest string) string {
		var l [8]byte
		binary.BigEndian.PutUint32(l[:], h)
		binary.BigEndian.PutUint32(l[4:], b)
		return string(l[:]) + rest
	}
	for name, c := range map[string]struct {
		in   string
		want error
	}{
		"header too long": {head(MaxHeader+1, 0, ""), ErrProtocol},
		"body too long":   {head(2, MaxBody+1, "{}"), ErrProtocol},
		"not json":        {head(3, 0, "abc"), ErrProtocol},
		"no type":         {head(2, 0, "{}"), ErrProtocol},
		"cut in lengths":  {head(0, 0, "")[:5], io.ErrUnexpectedEOF},
		"cut in header":   {head(20, 0, `{"ty`), io.ErrUnexpectedEOF},
		"cut before body": {head(16, 5, `{"type":"hello"}`), io.ErrUnexpectedEOF},
		"too many procs": {head(uint32(len(manyProcs)), 0, manyProcs),
			ErrProtocol},
	} {
		if _, _, err := NewReader(strings.NewReader(c.in)).Next(); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	if err := Write(io.Discard, &Message{Type: Output}, make([]byte, MaxBody+1)); err == nil {
		t.Error("wrote a body above the limit")
	}
	if err := Write(io.Discard, &Message{Type: Hello, Secret: strings.Repeat("s", MaxHeader)}, nil); err == nil {
		t.Error("wrote a header above the limit")
	}
}

var manyProcs = `{"type":"hello","procs":[` + strings.Repeat(`{"proc":1},`, MaxProcs) + `{"proc":1}]}`

func FuzzReader(f *testing.F) {
	var b bytes.Buffer
	_ = Write(&b, &Message{Type: Output, Proc: 1, Seq: 1, FD: 1}, []byte("hello"))
	f.Add(b.Bytes())
	f.Add([]byte("\x00\x00\x00\x02\x00\x00\x00\x00{}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewReader(bytes.NewReader(in))
		for {
			m, body, err := r.Next()
			if err != nil {
				return
			}
			if m.Type == "" || len(body) > MaxBody || len(m.Procs) > MaxProcs {
				t.Fatalf("accepted %+v with %d bytes", m, len(body))
			}
		}
	})
}

func TestRunnerRoundTrip(t *testing.T) {
	h := RunnerHeader{Type: RunnerResult, TaskID: "t", Attempt: 2, Status: StatusError, Format: FormatPickle,
		Error: &RunnerError{Kind: KindException, Type: "ValueError", Message: "no", Traceback: "tb"}, DurationMillis: 1.5}
	f, err := EncodeRunner(h, []byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	got, p, err := DecodeRunner(f)
	if err != nil || !reflect.DeepEqual(got, h) || string(p) != "payload" {
		t.Errorf("got %+v %q %v, want %+v", got, p, err, h)
	}
	if _, _, err := DecodeRunner(f[:len(f)-1]); !errors.Is(err, ErrProtocol) {
		t.Errorf("cut frame: %v", err)
	}
	if _, _, err := DecodeRunner(f[:7]); !errors.Is(err, ErrProtocol) {
		t.Errorf("cut lengths: %v", err)
	}
	if _, err := EncodeRunner(h, make([]byte, MaxRunnerPayload+1)); err == nil {
		t.Error("encoded a payload above the limit")
	}
	big := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 2), MaxRunnerPayload+1)
	if _, err := RunnerFrameLen(big); !errors.Is(err, ErrProtocol) {
		t.Errorf("length above the limit: %v", err)
	}
}

func FuzzRunner(f *testing.F) {
	b, _ := EncodeRunner(RunnerHeader{Type: RunnerReady, Python: "3.11"}, []byte("x"))
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		h, p, err := DecodeRunner(in)
		if err != nil {
			return
		}
		again, err := EncodeRunner(h, p)
		if err != nil {
			t.Skip() // a header may grow above its limit by escapes
		}
		h2, p2, err := DecodeRunner(again)
		if err != nil || !reflect.DeepEqual(h, h2) || !bytes.Equal(p, p2) {
			t.Fatalf("%+v became %+v: %v", h, h2, err)
		}
	})
}
